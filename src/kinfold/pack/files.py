"""Config and tokenizer files: those that equal the base's cost a hash, the others are kept compressed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import zstandard

from kinfold.checkpoint import Checkpoint
from kinfold.checkpoint.reader import MAX_SIDE_FILE
from kinfold.errors import CheckpointError, PackError
from kinfold.pack.format import short_hash
from kinfold.pack.manifest import MAX_EXPANSION, SideFile

MAX_FILES = 256 << 20  # bytes of all kept files together, so that a small hostile pack cannot fill a disk


def collect(base: Checkpoint, variant: Checkpoint) -> tuple[list[SideFile], bytes, list[str]]:
    """What the variant needs beside its weights.

    Returns:
        The files in order of path, the joined bytes of those that must be kept, and the paths left out
        because `from_pretrained` does not read them.
    """
    kept, left_out = variant.side_files()
    contents = {path: (variant.directory / path).read_bytes() for path in kept}
    return *against(contents, base.directory), left_out


def against(contents: Mapping[str, bytes], base: Path) -> tuple[list[SideFile], bytes]:
    """How each of these files is kept beside those of the base's directory, and the joined bytes to keep.

    Raises:
        CheckpointError: together they are too large.
    """
    files, parts, total = [], [], 0
    for path, data in contents.items():
        there = base / path
        reference = there.read_bytes() if there.is_file() else None
        if reference == data:
            files.append(SideFile(path=path, hash=short_hash(data), origin="base"))
            continue
        packed, origin = zstandard.ZstdCompressor(level=19).compress(data), "pack"
        if reference:  # a tokenizer with one token more costs a few hundred bytes against the base's
            patch = zstandard.ZstdCompressor(level=19, dict_data=_dictionary(reference)).compress(data)
            packed, origin = min((packed, origin), (patch, "patch"), key=lambda choice: len(choice[0]))
        files.append(SideFile(path=path, hash=short_hash(data), origin=origin, bytes=len(packed)))
        parts.append(packed)
        total += len(data)
    if total > MAX_FILES:
        raise CheckpointError(
            f"the config and tokenizer files that differ from those of `{base}` take {total} bytes, at most "
            f"{MAX_FILES} can be carried",
            hint="move what from_pretrained does not need out of the variant's directory",
        )
    return files, b"".join(parts)


def unpack(files: list[SideFile], blob: bytes, base: Path) -> Mapping[str, bytes]:
    """Contents of every file, each checked against its hash.

    Raises:
        PackError: a file of the base is gone or differs, or a kept one does not decompress to its hash.
    """
    contents: dict[str, bytes] = {}
    position, total = 0, 0
    for file in files:
        there = base / file.path
        reference = there.read_bytes() if file.origin != "pack" and there.is_file() else b""
        if file.origin == "base":
            data = reference
        else:
            data = _decompress(blob[position : position + file.bytes], reference, file)
            position += file.bytes
            total += len(data)
            if total > MAX_FILES:
                raise PackError(f"the files in the pack take more than {MAX_FILES} bytes")
        if short_hash(data) != file.hash:
            where = f"`{there}`" if file.origin != "pack" else f"`{file.path}` in the pack"
            raise PackError(
                f"{where} is not the file this pack was made with",
                hint="restore the base's config and tokenizer files, then run the same command again",
            )
        contents[file.path] = data
    return contents


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write files by their paths relative to a directory."""
    for path, data in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)


def _dictionary(reference: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(reference, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _decompress(packed: bytes, reference: bytes, file: SideFile) -> bytes:
    dictionary = _dictionary(reference) if file.origin == "patch" and reference else None
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= min(len(packed) * MAX_EXPANSION + 2 * len(reference), MAX_SIDE_FILE):
            raise PackError(f"`{file.path}` claims {size} bytes")
        return zstandard.ZstdDecompressor(dict_data=dictionary).decompress(packed, max_output_size=max(size, 1))
    except zstandard.ZstdError as cause:
        raise PackError(f"`{file.path}` in the pack does not decompress: {cause}") from cause
