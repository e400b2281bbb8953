"""A worker whose CPU build leaves the weights where they were loaded, as GPU builds do; for the check of patches."""

import vllm._custom_ops as ops  # pyright: ignore

from kinfold.serve.vllm.patch import KinfoldWorker

ops._supports_onednn = False  # before the model is loaded: its linear layers then keep plain weights


class UnpackedWorker(KinfoldWorker):
    """`KinfoldWorker`, by another way to its weights."""
