"""A store of every kind of variant, and a vLLM that is not there."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from vllm_shelf import Shelf, drifted

import kinfold
from kinfold.serve.vllm.cache import AdapterCache
from kinfold.store import Store
from models import finetuned, llama, tokenizer


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """red: truncsvd pack; blue: adapter; duo: family of red and amber; dense: fold pack; full: exact pack."""
    folder = tmp_path_factory.mktemp("shelf")
    model = llama(tie_word_embeddings=False)
    base = folder / "base"
    model.save_pretrained(base)
    tokenizer(base)
    for name, seed in (("red", 1), ("blue", 2), ("amber", 3)):
        drifted(model, seed).save_pretrained(folder / name)
        tokenizer(folder / name)
    finetuned(model, folder / "full", scale=5e-2)
    tokenizer(folder / "full")
    packs = {name: folder / f"{name}.kin.safetensors" for name in ("red", "dense", "full", "duo")}
    kinfold.pack(base, folder / "red", packs["red"], codec="truncsvd", budget="rank:2", options={"value_bits": 32})
    kinfold.pack(base, folder / "full", packs["dense"], budget="1/2")
    kinfold.pack(base, folder / "full", packs["full"], codec="exact")
    kinfold.fold([folder / "red", folder / "amber"], packs["duo"], base=base, method="truncsvd", budget="1/2")
    kinfold.unfold(packs["duo"], "amber", folder / "amber-unfolded", base=base)
    kinfold.export(folder / "blue", folder / "blue-adapter", base=base, rank=2)
    store = Store.init(folder / "store", cache=folder / "cache")
    store.add(base, name="base")
    for name, path in packs.items():
        store.add(path, name=name)
    store.add(folder / "blue-adapter", name="blue")
    return Shelf(base, folder / "store", folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KINFOLD_CACHE", str(tmp_path / "kinfold-cache"))
    for name in ("STORE", "VLLM_CACHE", "VLLM_URL", "VLLM_PARTIAL", "VLLM_BASE", "VLLM_TOLERANCE"):
        monkeypatch.delenv(f"KINFOLD_{name}", raising=False)


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server keeps its adapters until it ends; a test lets go of them."""
    made: list[AdapterCache] = []
    start = AdapterCache.__init__
    monkeypatch.setattr(AdapterCache, "__init__", lambda self, *args: (made.append(self), start(self, *args))[1])
    yield
    for cache in made:
        cache.close()


class _Registry:
    def __init__(self) -> None:
        self.resolvers: dict[str, Any] = {}

    def get_supported_resolvers(self) -> Any:
        return self.resolvers.keys()

    def register_resolver(self, name: str, resolver: Any) -> None:
        assert name not in self.resolvers, "vLLM warns of a second one"
        self.resolvers[name] = resolver


class _Resolver(ABC):
    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any: ...


@dataclass
class _Request:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self) -> None:
        assert self.lora_int_id >= 1
        assert self.lora_path


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The few names of vLLM that the plug-in uses, with the checks that vLLM makes; gives the registry."""
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request", "vllm.lora.resolver")}
    registry = _Registry()
    modules["vllm"].__version__ = "0.32.0"  # type: ignore[attr-defined]
    modules["vllm.lora.request"].LoRARequest = _Request  # type: ignore[attr-defined]
    modules["vllm.lora.resolver"].LoRAResolver = _Resolver  # type: ignore[attr-defined]
    modules["vllm.lora.resolver"].LoRAResolverRegistry = registry  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules.pop("kinfold.serve.vllm.resolver", None)  # it keeps the classes that it was imported with
    yield registry
    sys.modules.pop("kinfold.serve.vllm.resolver", None)
