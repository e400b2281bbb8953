"""One variant in one file: plan, encode, write; and back."""

from kinfold.pack.look import diff, inspect, verify
from kinfold.pack.restore import load, restore
from kinfold.pack.write import PackReport, pack

__all__ = ["PackReport", "diff", "inspect", "load", "pack", "restore", "verify"]
