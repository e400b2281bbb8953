"""A whole variant in place of the base's weights, in an engine that runs: for variants that are no LoRA.

    llm = vllm.LLM(BASE, worker_extension_cls="kinfold.serve.vllm.patch.KinfoldWorker")
    apply(llm, "movie.kin.safetensors", base=BASE)
    ...
    put_back(llm, base=BASE)

All requests see the variant meanwhile, adapters too: use one engine for LoRA or for this, not for both at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kinfold.errors import KinfoldError, ServeError
from kinfold.family.peft_io import open_variant
from kinfold.pack.member import Base, Member
from kinfold.serve.vllm.fit import config_changes, text_changes
from kinfold.serve.vllm.probe import PROMPTS, TOP, Tops, distance

_RESTART = "restart the server: its weights are part the base's and part the variant's"


@dataclass(frozen=True)
class Applied:
    """What an engine serves now.

    Attributes:
        way: `patch`, the changed tensors alone, or `swap`, every tensor loaded anew.
        why: of the way.
        tensors: of the checkpoint that were given to the model.
        parameters: of the model that took them; fused ones take several. None for a swap, where vLLM does not say.
        before, after: log-probabilities of the likeliest tokens after fixed prompts, nats.
        notes: what the variant has of its own and the server does not use.
    """

    way: str
    why: str
    tensors: int
    parameters: int | None
    before: Tops
    after: Tops
    notes: list[str]


def apply(llm: Any, artefact: str | Path, *, base: str | Path, member: str | None = None) -> Applied:
    """Serve a variant's weights in place of those that a `vllm.LLM` has now.

    Args:
        llm: made with `worker_extension_cls="kinfold.serve.vllm.patch.KinfoldWorker"`; it must be idle.
        artefact: a pack, a family, a model directory or an adapter folder, readable by every worker.
        base: model directory of the base that the engine was started with.
        member: of a family.

    Raises:
        ServeError: the variant does not fit a running engine, or its answers are those it gave before.
    """
    found = _told(llm, str(artefact), str(base), member)
    if distance(found.before, found.after) == 0.0:
        raise ServeError(
            f"`{artefact}` was loaded and the engine answers as before: the variant was in place, or nothing took it",
            hint="compare with `put_back`, or restart the server",
        )
    return found


def put_back(llm: Any, *, base: str | Path) -> Applied:
    """Serve the base again.

    Raises:
        ServeError: the base's weights cannot be loaded.
    """
    return _told(llm, None, str(base), None)


def _told(llm: Any, artefact: str | None, base: str, member: str | None) -> Applied:
    before = _logprobs(llm)
    answers = llm.collective_rpc("kinfold_apply", args=(artefact, base, member))
    llm.reset_prefix_cache()  # its blocks were computed with the weights before
    wrong = next((answer for answer in answers if "error" in answer), None)
    if wrong is not None:
        raise ServeError(wrong["error"], hint=wrong["hint"])
    return Applied(**answers[0], before=before, after=_logprobs(llm))


def _logprobs(llm: Any) -> Tops:
    from vllm import SamplingParams  # pyright: ignore

    sampling = SamplingParams(temperature=0, max_tokens=1, logprobs=TOP)
    found = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in PROMPTS], sampling, use_tqdm=False)
    return [{str(token): float(one.logprob) for token, one in row.outputs[0].logprobs[0].items()} for row in found]


class KinfoldWorker:
    """What every worker of the engine learns; vLLM mixes it into its own class, hence the prefix."""

    def kinfold_apply(self, artefact: str | None, base: str, member: str | None = None) -> dict[str, Any]:
        """Serve a variant, or the base where `artefact` is None; an error comes back as words."""
        held = getattr(self, "kinfold_weights", None)
        try:
            if held is None or str(held.base.checkpoint.directory) != base:
                held = self.kinfold_weights = ServedWeights(self, Base.open(base))
            variant = None if artefact is None else open_variant(Path(artefact), held.base, member)
            return held.serve(variant)
        except KinfoldError as error:
            return {"error": str(error), "hint": error.hint}


class ServedWeights:
    """The weights of a worker's model, and which of them are not the base's.

    Args:
        worker: of vLLM: `model_runner`, `reload_weights` and `vllm_config` are used.
        base: that the engine was started with.
    """

    def __init__(self, worker: Any, base: Base) -> None:
        self.base = base
        self._worker = worker
        self._foreign: set[str] = set()  # tensors that a variant has changed

    def serve(self, variant: Member | None) -> dict[str, Any]:
        """Load a variant, or the base; the facts of `Applied` but for the log-probabilities.

        Raises:
            ServeError: it does not fit, or the model did not take it.
        """
        if variant is not None:
            _check(variant)
        changed = set(variant.changed) if variant is not None else set()
        way, why = self._way()
        names = [name for name in self.base.checkpoint.tensors if way == "swap" or name in changed | self._foreign]
        self._foreign |= changed  # whatever happens from here on
        try:
            parameters = self._swap(names, variant) if way == "swap" else self._patch(names, variant)
        except KinfoldError:
            raise
        except Exception as cause:  # of vLLM's loaders, whose errors are of every kind
            raise ServeError(f"vLLM could not load the weights: {cause}", hint=_RESTART) from cause
        self._foreign = changed
        texts = text_changes(variant) if variant is not None else []
        notes = [f"its own {', '.join(texts)}: the engine has the base's"] if texts else []
        return {"way": way, "why": why, "tensors": len(names), "parameters": parameters, "notes": notes}

    def _way(self) -> tuple[str, str]:
        model = self._worker.model_runner.get_model()
        emptied = sum(parameter.numel() == 0 for parameter in model.parameters())
        if emptied:
            return "swap", (
                f"this build of vLLM (CPU) repacked {emptied} weights at load and freed the originals, so none can be "
                "patched"
            )
        config = self._worker.vllm_config
        if getattr(config, "quant_config", None) is not None:
            return "swap", "the engine quantised the weights at load"
        if any("MoE" in type(module).__name__ for module in model.modules()):
            return "swap", "the engine laid the experts' weights out anew at load"
        return "patch", "the engine keeps the weights as loaded"

    def _swap(self, names: list[str], variant: Member | None) -> None:
        """Through vLLM's own reloading, which prepares each layer as at the start."""
        self._worker.reload_weights(weights_iterator=self._values(names, variant))

    def _patch(self, names: list[str], variant: Member | None) -> int:
        """One tensor at a time, so that it is known which of them the model took."""
        from vllm.model_executor.model_loader import (  # pyright: ignore
            checkpoint_weight_patch as patches,
        )

        model = self._worker.model_runner.get_model()
        taken: set[str] = set()
        missed = []
        for name, value in self._values(names, variant):
            flat = value.reshape(-1)
            patch = patches.CheckpointWeightPatch(name, tuple(value.shape), value.dtype, flat)
            found = patches.load_checkpoint_weight_patches(model, [patch])
            taken |= found
            if not found:
                missed.append(name)
        if missed:
            raise ServeError(
                f"the served model took {len(names) - len(missed)} of {len(names)} tensors; it has no place for "
                f"{', '.join(missed[:5])}",
                hint=_RESTART,
            )
        return len(taken)

    def _values(self, names: list[str], variant: Member | None) -> Iterator[tuple[str, torch.Tensor]]:
        changed = frozenset(variant.changed) if variant is not None else frozenset()
        for name in names:
            if variant is not None and name in changed:
                yield name, variant.value(variant.own[name])
            else:
                yield name, self.base.checkpoint.read(name)


def _check(variant: Member) -> None:
    hint = "kinfold restore PACK --base BASE -o OUT, then `vllm serve OUT`"
    odd = [*variant.whole, *variant.absent]
    if odd:
        raise ServeError(
            f"`{variant.name}` has tensors that a running engine has no room for, new, resized or absent: "
            f"{', '.join(odd[:5])}",
            hint=hint,
        )
    changed = config_changes(variant)
    if changed:
        raise ServeError(
            f"`{variant.name}` computes by a config of its own, and a running engine keeps the base's: "
            f"{', '.join(changed[:5])} differ",
            hint=hint,
        )
