"""The entry point and the resolver, on a vLLM that is not there."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from vllm_shelf import Shelf

from kinfold.errors import ServeError
from kinfold.serve.vllm import probe
from kinfold.serve.vllm.adapter import RefusedError
from kinfold.serve.vllm.plugin import RESOLVER, register
from kinfold.serve.vllm.probe import Probed


@pytest.fixture
def served(tmp_path: Path, shelf: Shelf, fake_vllm: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The registered resolver."""
    monkeypatch.setenv("KINFOLD_STORE", str(shelf.store))
    monkeypatch.setenv("KINFOLD_VLLM_CACHE", str(tmp_path / "adapters"))
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    register()
    return fake_vllm.resolvers[RESOLVER]


def test_entry_point_is_declared() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8")
    assert '[project.entry-points."vllm.general_plugins"]\nkinfold = "kinfold.serve.vllm.plugin:register"' in text
    for point in entry_points(group="vllm.general_plugins", name="kinfold"):
        assert point.load() is register


def test_nothing_of_vllm_is_imported_before_it_asks() -> None:
    code = (
        "import sys, kinfold, kinfold.serve.vllm.plugin, kinfold.serve.vllm.patch, kinfold.serve.vllm.variants\n"
        "kinfold.serve.vllm.plugin.register()\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'vllm']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_store_nothing_is_registered(fake_vllm: Any) -> None:
    register()
    assert not fake_vllm.resolvers


def test_registered_once_however_often_it_is_called(served: Any, fake_vllm: Any) -> None:
    register()
    assert fake_vllm.resolvers == {RESOLVER: served}


def test_a_mistake_in_the_settings_keeps_no_server_from_starting(
    fake_vllm: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KINFOLD_STORE", "somewhere")
    monkeypatch.setenv("KINFOLD_VLLM_TOLERANCE", "much")
    register()
    assert not fake_vllm.resolvers
    assert "KINFOLD_VLLM_TOLERANCE is `much`" in caplog.text


def test_limits_are_told(fake_vllm: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("KINFOLD_STORE", "somewhere")
    monkeypatch.delenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", raising=False)
    sys.modules["vllm"].__version__ = "0.99.1"  # type: ignore[attr-defined]
    register()
    assert "vLLM 0.99.1 is none of those tested" in caplog.text
    assert "set VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in caplog.text
    assert RESOLVER in fake_vllm.resolvers


def test_a_name_in_the_store_is_answered_with_its_folder(shelf: Shelf, served: Any) -> None:
    request = asyncio.run(served.resolve_lora(str(shelf.base), "red"))
    assert request.lora_name == "red"
    assert (Path(request.lora_path) / "adapter_model.safetensors").is_file()


def test_the_event_loop_is_not_held_up(shelf: Shelf, served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    adapter = served.variants.adapter
    monkeypatch.setattr(
        served.variants, "adapter", lambda *names: (threads.append(threading.current_thread()), adapter(*names))[1]
    )
    asyncio.run(served.resolve_lora(str(shelf.base), "red"))
    assert threads
    assert threads[0] is not threading.main_thread()


def test_a_name_that_is_nowhere_is_left_to_others(shelf: Shelf, served: Any) -> None:
    assert asyncio.run(served.resolve_lora(str(shelf.base), "nobody")) is None


def test_a_dense_variant_is_an_error_and_never_the_base(
    shelf: Shelf, served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RefusedError, match="full rank"):
        asyncio.run(served.resolve_lora(str(shelf.base), "dense"))
    assert "full rank" in caplog.text
    assert "kinfold restore" in caplog.text


@pytest.mark.parametrize("state", ["same", "differs", "unsure"])
def test_probe_after_a_load(
    shelf: Shelf, served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, state: str
) -> None:
    unloaded: list[tuple[str, str]] = []
    monkeypatch.setattr(probe, "check", lambda url, names: [Probed(names[0], state, 0.25)])
    monkeypatch.setattr(probe, "unload", lambda url, name: unloaded.append((url, name)))
    object.__setattr__(served.settings, "url", "http://here")
    caplog.set_level("INFO", "vllm.kinfold")

    async def ask() -> None:
        assert await served.resolve_lora(str(shelf.base), "red")
        await asyncio.gather(*served._probes)

    asyncio.run(ask())
    if state == "same":
        assert unloaded == [("http://here", "red")]
        assert "`red` answers as the base does" in caplog.text
        with pytest.raises(RefusedError, match="answers as the base does"):
            asyncio.run(served.resolve_lora(str(shelf.base), "red"))
    else:
        assert not unloaded
        assert "`red` was probed" in caplog.text


def test_probe_that_gets_no_answer_is_told(
    shelf: Shelf, served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def silent(url: str, names: list[str]) -> list[Probed]:
        raise ServeError("nobody there")

    monkeypatch.setattr(probe, "check", silent)
    served._prove(str(shelf.base), "red")
    assert "`red` could not be probed: nobody there" in caplog.text
