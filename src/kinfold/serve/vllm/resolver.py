"""vLLM's resolver: it is asked for a model's name that the server does not know yet. Imports vLLM."""

from __future__ import annotations

import asyncio

from vllm.lora.request import LoRARequest  # pyright: ignore
from vllm.lora.resolver import LoRAResolver  # pyright: ignore

from kinfold.errors import KinfoldError
from kinfold.serve.vllm import probe
from kinfold.serve.vllm.adapter import RefusedError
from kinfold.serve.vllm.settings import Settings, log
from kinfold.serve.vllm.variants import StoredVariants


class KinfoldResolver(LoRAResolver):
    """Finds a variant of the store by name and answers with its adapter folder.

    A name that the store lacks is left to other resolvers. One that it has and that cannot be a LoRA is an error:
    its words go to the log, and to the client with status 400.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.variants = StoredVariants(settings)
        self._probes: set[asyncio.Task[None]] = set()

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
        """Decode in a thread, for this runs on the API server's event loop.

        Raises:
            RefusedError: the store has the variant, and vLLM cannot serve it as LoRA.
        """
        try:
            found = await asyncio.to_thread(self.variants.adapter, base_model_name, lora_name)
        except RefusedError as error:
            log.warning("Kinfold: %s; %s", error, error.hint)
            raise
        if found is None:
            return None
        folder, lora = found
        log.info("Kinfold: `%s` is served as %s", lora_name, lora.sentence)
        for note in lora.notes:
            log.warning("Kinfold: `%s`: %s", lora_name, note)
        if self.settings.url:
            task = asyncio.create_task(asyncio.to_thread(self._prove, base_model_name, lora_name))
            self._probes.add(task)  # the loop itself keeps only a weak reference
            task.add_done_callback(self._probes.discard)
        return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(folder))  # vLLM gives it a number

    def _prove(self, model: str, name: str) -> None:
        """Ask the server itself; a variant that answers as the base is taken out again."""
        try:
            row = probe.check(self.settings.url, [name])[0]
            if row.state != "same":
                log.info("Kinfold: `%s` was probed: %s", name, row.sentence)
                return
            self.variants.refuse(model, name, f"`{name}` was loaded and {row.sentence}")
            probe.unload(self.settings.url, name)
            log.error("Kinfold: `%s` %s; it was unloaded", name, row.sentence)
        except KinfoldError as error:
            log.error("Kinfold: `%s` could not be probed: %s", name, error)
