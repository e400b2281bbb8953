"""What the catalogue held when it was last looked at, families opened into their members."""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kinfold.checkpoint import Checkpoint
from kinfold.checkpoint.adapter import is_adapter
from kinfold.errors import UnknownModelError
from kinfold.family.file import FamilyFile
from kinfold.pack.format import PackFile
from kinfold.pack.manifest import Manifest
from kinfold.serve.catalogue import Catalogue
from kinfold.serve.live import LiveModel, read_json
from kinfold.serve.placing import BARE_HEAD
from kinfold.serve.request import LONGEST_NAME
from kinfold.serve.resident import Key
from kinfold.serve.variant import abilities_of, members_at

_CLASSIFIERS = ("classifier.", "score.")  # how the sequence classifiers of transformers begin their heads' names


@dataclass(frozen=True)
class Item:
    """A variant that may be asked for.

    Attributes:
        name: `NAME`, or `FAMILY/MEMBER`.
        digest: of its file.
        source: the catalogue's name.
        member: of the family.
        created: seconds since 1970.
        abilities: as far as can be told without loading it.
    """

    name: str
    digest: str
    source: str
    member: str | None
    created: int
    abilities: tuple[str, ...]

    @property
    def key(self) -> Key:
        return self.name, self.digest


class Shelf:
    """The catalogue as a server sees it.

    Args:
        catalogue: names and paths.
        live: the base, for the abilities.
        base: the base's name; a catalogue's entry of that name is the base itself and no variant.
        changed: called after a look that found something new or gone.
    """

    def __init__(
        self, catalogue: Catalogue, live: LiveModel, base: str, changed: Callable[[], None] = lambda: None
    ) -> None:
        self.catalogue, self._live, self._base, self._changed = catalogue, live, base, changed
        self._seen: dict[tuple[str, str], list[Item]] = {}  # by the catalogue's name and digest
        self.items: dict[str, Item] = {}
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Look again; what has the same digest as before is not opened.

        Raises:
            Exception: of the catalogue, which cannot be read; what was known before stays.
        """
        with self._lock:
            names = self.catalogue.names()
            seen = {
                (name, digest): self._seen.get((name, digest)) or self._open(name, digest)
                for name, digest in names.items()
                if name != self._base
            }
            if seen.keys() == self._seen.keys():
                return
            self._seen = seen
            self.items = {item.name: item for items in seen.values() for item in items}
        self._changed()

    def get(self, name: str) -> Item:
        """The variant of this name.

        Raises:
            UnknownModelError: there is none; names like it are told.
        """
        items = self.items
        if name not in items:
            short = len(name) <= LONGEST_NAME
            near = difflib.get_close_matches(name, [self._base, *items], 5, 0.4) if short else []
            shown = name if short else name[:LONGEST_NAME] + "..."
            told = f"; near it are {', '.join(f'`{other}`' for other in near)}" if near else ""
            raise UnknownModelError(f"no model `{shown}` is served{told}", hint="GET /v1/models lists them all")
        return items[name]

    def by_key(self, key: Key) -> Item | None:
        """The item while it is still what the catalogue has."""
        item = self.items.get(key[0])
        return item if item is not None and item.key == key else None

    def _open(self, name: str, digest: str) -> list[Item]:
        usual, created = abilities_of(self._live, self._live.base.checkpoint.config, False), int(time.time())
        try:
            path = Path(self.catalogue.path(name))
            created = int(path.stat().st_mtime)
            members = members_at(path)
            if members:
                family = FamilyFile.open(path)
                can = [_abilities(self._live, family.member_manifest(member)) for member in members]
                pairs = zip(members, can, strict=True)
                return [Item(f"{name}/{m}", digest, name, m, created, able) for m, able in pairs]
            return [Item(name, digest, name, None, created, _peek(self._live, path))]
        except Exception:  # of any backend; whoever asks for it is told by loading it
            return [Item(name, digest, name, None, created, usual)]


def _peek(live: LiveModel, path: Path) -> tuple[str, ...]:
    if path.is_file():
        return _abilities(live, PackFile.open(path).manifest)
    if is_adapter(path):
        return abilities_of(live, live.base.checkpoint.config, False)
    config, names = path / "config.json", Checkpoint.open(path).tensors.keys()
    return abilities_of(live, read_json(config.read_bytes() if config.exists() else None), BARE_HEAD[0] in names)


def _abilities(live: LiveModel, manifest: Manifest) -> tuple[str, ...]:
    names = {*manifest.equal, *manifest.alias, *(piece.name for unit in manifest.units for piece in unit.pieces)}
    classifies = any(name.startswith(_CLASSIFIERS) for name in names)
    config = {"architectures": ["ForSequenceClassification"]} if classifies else {}
    return abilities_of(live, config, BARE_HEAD[0] in names)
