"""What members of a family do to each other, and what made them so."""

from kinfold.audit.dominance import dominance
from kinfold.audit.influence import influence

__all__ = ["dominance", "influence"]
