"""Every codec at equal whole-file bytes, by what each does to one variant of the user's own."""

from kinfold.compare.result import Cell, Comparison, Quality
from kinfold.compare.run import compare

__all__ = ["Cell", "Comparison", "Quality", "compare"]
