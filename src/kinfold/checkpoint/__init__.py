"""Model directories: lazy reading, streaming writing, fingerprints, matching. Knows no codec."""

from kinfold.checkpoint.atomic import atomic_directory, atomic_file
from kinfold.checkpoint.fingerprint import digests, fingerprint
from kinfold.checkpoint.header import DTYPES, TensorInfo
from kinfold.checkpoint.match import Match, Pair, match
from kinfold.checkpoint.reader import Checkpoint
from kinfold.checkpoint.writer import CheckpointWriter

__all__ = [
    "DTYPES",
    "Checkpoint",
    "CheckpointWriter",
    "Match",
    "Pair",
    "TensorInfo",
    "atomic_directory",
    "atomic_file",
    "digests",
    "fingerprint",
    "match",
]
