"""How many bytes a pack may take, and which errors matter most."""

from kinfold.budget.importance import Calibration
from kinfold.budget.target import Budget

__all__ = ["Budget", "Calibration"]
