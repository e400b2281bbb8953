"""Delta tensor <-> bytes: one file a codec. Pure functions on tensors: no paths, no files, no model code."""

from kinfold.codec.base import Codec, CodecConfig, Importance, Payload, Plan, create, find, names
from kinfold.codec.random import tensor_seed

__all__ = [
    "Codec",
    "CodecConfig",
    "Importance",
    "Payload",
    "Plan",
    "create",
    "find",
    "names",
    "tensor_seed",
]
