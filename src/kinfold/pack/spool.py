"""Finished payloads on disk, so that a killed run can go on where it stopped."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from kinfold.pack.coding import Coded
from kinfold.pack.format import short_hash


class Spool:
    """`OUT.partial/`: payloads in `data`, and one line of `journal` for each that is finished.

    A journal begins with the key of the whole job (inputs, options, versions); another key starts anew.
    """

    def __init__(self, out: Path, key: str) -> None:
        self.directory = out.with_name(f".{out.name}.partial")
        self._journal = self.directory / "journal"
        self.done: dict[int, dict[str, Any]] = {}
        if not self._resume(key):
            shutil.rmtree(self.directory, ignore_errors=True)
            try:
                self.directory.mkdir()
                self._append({"key": key})
            except OSError:
                shutil.rmtree(self.directory, ignore_errors=True)
                raise
        self.data: BinaryIO = (self.directory / "data").open("ab+")

    def _resume(self, key: str) -> bool:
        try:
            whole, newline, torn = self._journal.read_bytes().rpartition(b"\n")
            records = [json.loads(line) for line in whole.split(b"\n")] if newline else []
            if not records or records[0] != {"key": key}:
                return False
            if torn:  # what follows the last newline was cut short; the next line must not join it
                os.truncate(self._journal, len(whole) + 1)
            with (self.directory / "data").open("rb") as data:
                for record in records[1:]:
                    data.seek(record["offset"])
                    if short_hash(data.read(record["bytes"])) == record["hash"]:
                        self.done[record["unit"]] = record
        except (OSError, ValueError, KeyError, TypeError):
            self.done = {}
            return False
        return True

    def _append(self, record: dict[str, Any]) -> None:
        with self._journal.open("ab") as journal:
            journal.write(json.dumps(record).encode() + b"\n")

    def add(self, unit: int, coded: Coded) -> None:
        """Store a payload, then note it: a kill between the two loses only this payload."""
        self.data.seek(0, os.SEEK_END)
        offset = self.data.tell()
        self.data.write(coded.data)
        self.data.flush()
        record = {
            "unit": unit,
            "offset": offset,
            "bytes": len(coded.data),
            "hash": short_hash(coded.data),
            "params": coded.params,
            "error": coded.error,
            "norm": coded.norm,
        }
        self._append(record)
        self.done[unit] = record

    def place(self, unit: int) -> tuple[int, int]:
        return self.done[unit]["offset"], self.done[unit]["bytes"]

    def close(self, *, remove: bool) -> None:
        try:
            self.data.close()
        except OSError:  # a full disk refuses what is buffered, again; that was reported by the first write
            if not remove:
                raise
        if remove:
            shutil.rmtree(self.directory, ignore_errors=True)
