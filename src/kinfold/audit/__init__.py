"""What members of a family do to each other, measured before anything is built from them."""

from kinfold.audit.dominance import dominance

__all__ = ["dominance"]
