"""What may be served: names and where their files lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Catalogue(Protocol):
    """Names of variants; a store is one. Both methods are called from a thread of their own, `names` often.

    A catalogue may also have `report(name) -> dict`, whose `probe` is what `pack.probe.probe_outputs` said of the
    variant.
    """

    def names(self) -> Mapping[str, str]:
        """A digest for each name; it changes when what it stands for is replaced."""
        ...

    def path(self, ref: str, /) -> Path:
        """A local pack, family, adapter folder or model directory."""
        ...


class Paths:
    """A catalogue of files and folders; one that is written anew has another digest.

    Args:
        paths: by name; the mapping may be changed while it is served.
    """

    def __init__(self, paths: Mapping[str, str | Path]) -> None:
        self._paths = paths

    def names(self) -> dict[str, str]:
        return {name: _stamp(Path(path)) for name, path in dict(self._paths).items() if Path(path).exists()}

    def path(self, ref: str, /) -> Path:
        return Path(self._paths[ref])


def _stamp(path: Path) -> str:
    """Changes when a file is replaced or a folder's files are: names, sizes, times."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    return ";".join(
        f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}:{file.stat().st_ino}" for file in files
    )


def probe_of(catalogue: Catalogue, name: str) -> dict[str, Any] | None:
    """The probe outputs that travel with a variant; None where there are none."""
    report = getattr(catalogue, "report", None)
    found = report(name) if report is not None else None
    return found.get("probe") if isinstance(found, dict) else None
