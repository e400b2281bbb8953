"""Kinfold inside vLLM: the variants of a store by name, as LoRA where they are low-rank, else as weights.

Nothing here imports vLLM before vLLM itself has asked for the plug-in.
"""

TESTED = ("0.32",)  # releases of vLLM that `make test-vllm` was run with
