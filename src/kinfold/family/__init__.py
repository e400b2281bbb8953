"""Many variants of one base: fold and unfold, merge, adapters out."""

from kinfold.family.artefact import inspect, load, verify
from kinfold.family.fold import fold
from kinfold.family.look import FamilyReport
from kinfold.family.unfold import add_member, remove_member, unfold

__all__ = ["FamilyReport", "add_member", "fold", "inspect", "load", "remove_member", "unfold", "verify"]
