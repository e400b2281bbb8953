"""Kinfold keeps a family of fine-tuned models in little more room than their one base."""

from kinfold._version import __version__
from kinfold.budget import Calibration
from kinfold.compare import compare
from kinfold.errors import KinfoldError
from kinfold.family.peft_io import export
from kinfold.pack import diff, inspect, load, pack, restore, verify

__all__ = [
    "Calibration",
    "KinfoldError",
    "__version__",
    "compare",
    "diff",
    "export",
    "inspect",
    "load",
    "pack",
    "restore",
    "verify",
]
