"""Which training rows made a variant answer so, through a seeded subset of the entries of their gradients.

`kinfold.audit.influence` is the function, not this package: write `from kinfold.audit.influence.metrics import lds`.
"""

from kinfold.audit.influence.attributor import MaskedInfluence
from kinfold.audit.influence.baselines import bm25, gradient_cosine, loss_baseline
from kinfold.audit.influence.metrics import brittleness, lds, mislabel_auc
from kinfold.audit.influence.report import InfluenceReport
from kinfold.audit.influence.run import influence
from kinfold.audit.influence.settings import Spec
from kinfold.audit.influence.store import GradientStore

__all__ = [
    "GradientStore",
    "InfluenceReport",
    "MaskedInfluence",
    "Spec",
    "bm25",
    "brittleness",
    "gradient_cosine",
    "influence",
    "lds",
    "loss_baseline",
    "mislabel_auc",
]
