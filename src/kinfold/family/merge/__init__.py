"""Merges of many variants into one model."""

from kinfold.family.merge.recipe import Recipe, merge_recipe, read_recipe
from kinfold.family.merge.registry import Site, gram_method, merge_method, names, space_method
from kinfold.family.merge.run import MergeReport, merge

__all__ = [
    "MergeReport",
    "Recipe",
    "Site",
    "gram_method",
    "merge",
    "merge_method",
    "merge_recipe",
    "names",
    "read_recipe",
    "space_method",
]
