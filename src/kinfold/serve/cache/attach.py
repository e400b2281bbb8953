"""How a cache layer gets at the attention of a transformers model.

The attention modules of transformers call `past_key_values.update(keys, values)` and then an attention function by
name. Two functions of our own, `kinfold_sdpa` and `kinfold_eager`, hand query, keys, values and mask to the layer of
the cache that is active in this context before the model's own function runs. Without one they change nothing.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from kinfold.errors import CacheError

if TYPE_CHECKING:
    from kinfold.serve.cache.base import KVCache

PREFIX = "kinfold_"
KINDS = ("sdpa", "eager")
_ACTIVE: ContextVar[KVCache | None] = ContextVar("kinfold_kv_cache", default=None)


class Inputs(NamedTuple):
    """What one forward pass was given.

    Attributes:
        ids: (batch, n) int64, the new tokens; None where the model was given `inputs_embeds`.
        valid: (batch, n) bool, False at padding; None where every token is real.
    """

    ids: torch.Tensor | None
    valid: torch.Tensor | None


def active() -> KVCache | None:
    """The cache that `activate` made current in this context."""
    return _ACTIVE.get()


@contextmanager
def activate(cache: KVCache) -> Iterator[None]:
    """Make `cache` the one that the attention functions of a switched model consult, in this context only."""
    token = _ACTIVE.set(cache)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


class _Switch:
    """A model's former attention function, its hook, and how many contexts rely on them."""

    def __init__(self, kind: str, hook: Any) -> None:
        self.kind, self.hook, self.users = kind, hook, 1


_SWITCHES: WeakKeyDictionary[Any, _Switch] = WeakKeyDictionary()
_LOCK = threading.Lock()


@contextmanager
def switched(model: Any) -> Iterator[None]:
    """Let `model` call our attention functions inside the block; the last block to end restores its own.

    A server enters it once for its life; `KVCache.attached` enters it for one block.

    Raises:
        CacheError: the model's attention is none of "sdpa" and "eager", or cannot be switched.
    """
    with _LOCK:
        switch = _SWITCHES.get(model)
        if switch is None:
            _SWITCHES[model] = _Switch(*_switch(model))
        else:
            switch.users += 1
    try:
        yield
    finally:
        with _LOCK:
            switch = _SWITCHES[model]
            switch.users -= 1
            if not switch.users:
                del _SWITCHES[model]
                switch.hook.remove()
                model.set_attn_implementation(switch.kind)


def _switch(model: Any) -> tuple[str, Any]:
    config = model.config
    if config.get_text_config(decoder=True) is not config:
        raise CacheError(
            f"`{type(model).__name__}` has parts besides its language model",
            hint="attach the cache to the language model inside it",
        )
    kind = config._attn_implementation
    if kind not in KINDS:
        raise CacheError(
            f"the model's attention is `{kind}`; a compressed cache works with `sdpa` and `eager`",
            hint='model.set_attn_implementation("sdpa")',
        )
    model.set_attn_implementation(PREFIX + kind)
    if config._attn_implementation != PREFIX + kind:
        raise CacheError(f"`{type(model).__name__}` does not use the attention interface of transformers")
    return kind, model.base_model.register_forward_pre_hook(_hand_inputs, with_kwargs=True)


def _hand_inputs(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook: give the new tokens and their padding to the layers of the active cache."""
    cache = active()
    if cache is None or kwargs.get("past_key_values") is not cache:
        return
    cache.refuse_other(module)
    ids = kwargs.get("input_ids", args[0] if args else None)
    new = ids if ids is not None else kwargs.get("inputs_embeds")
    mask = kwargs.get("attention_mask")
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.dim() != 2):
        raise CacheError(
            "a compressed cache needs the attention mask of the tokens, (batch, tokens), and was given another kind"
        )
    valid = None if mask is None or new is None else mask[:, -new.shape[1] :].bool()
    cache.hand(Inputs(ids, None if valid is None or bool(valid.all()) else valid))


def _own_function(kind: str, module: Any) -> Callable[..., Any]:
    """The attention function that the module would have called had the model not been switched."""
    code = sys.modules[type(module).__module__]
    if kind == "eager":
        return code.eager_attention_forward
    return getattr(code, "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)[kind]


def _attention(kind: str) -> Callable[..., Any]:
    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        own = _own_function(kind, module)
        cache = active()
        layer = None if cache is None else cache.updated_layer(getattr(module, "layer_idx", None))
        if layer is None:
            return own(module, query, key, value, attention_mask, **kwargs)
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        key, value, attention_mask = layer.read(query, key, value, attention_mask, scaling)
        out = own(module, query, key, value, attention_mask, **kwargs)
        layer.after()
        layer.done()
        return out

    return attend


for _kind in KINDS:
    AttentionInterface.register(PREFIX + _kind, _attention(_kind))
    AttentionMaskInterface.register(PREFIX + _kind, ALL_MASK_ATTENTION_FUNCTIONS[_kind])
