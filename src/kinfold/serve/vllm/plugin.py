"""The entry point in `vllm.general_plugins`; vLLM calls it in each of its processes."""

from __future__ import annotations

import os

from kinfold.errors import KinfoldError
from kinfold.serve.vllm import TESTED
from kinfold.serve.vllm.settings import Settings, log

RESOLVER = "Kinfold store"


def register() -> None:
    """Register the resolver where KINFOLD_STORE names a store; without one, or a second time, do nothing.

    Nothing is opened or read here, and no mistake in the settings keeps the server from starting without us.
    """
    try:
        settings = Settings.read()
    except KinfoldError as error:
        log.error("Kinfold: no variants are served: %s; %s", error, error.hint)
        return
    if settings is None:
        return
    from vllm.lora.resolver import LoRAResolverRegistry  # pyright: ignore

    if RESOLVER in LoRAResolverRegistry.get_supported_resolvers():
        return
    from kinfold.serve.vllm.resolver import KinfoldResolver

    LoRAResolverRegistry.register_resolver(RESOLVER, KinfoldResolver(settings))
    _say_limits(settings)


def _say_limits(settings: Settings) -> None:
    import vllm  # pyright: ignore

    version = str(getattr(vllm, "__version__", ""))
    if not version.startswith(TESTED):
        log.warning("Kinfold: vLLM %s is none of those tested (%s)", version or "of unknown release", ", ".join(TESTED))
    if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "").lower() not in ("1", "true"):
        log.warning("Kinfold: `%s` is not asked: set VLLM_ALLOW_RUNTIME_LORA_UPDATING=1", settings.store)
