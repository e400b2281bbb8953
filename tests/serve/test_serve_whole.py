"""The whole road in a process of its own: store, command, engine, HTTP, OpenAI's client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from fakes import soon

import kinfold
from kinfold.store import Store
from models import finetuned, llama, tokenizer

ROOT = Path(__file__).parents[2]
PROMPTS = ["a b c", "q", "x y z w v u t s r q p"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model directories of a base and three fine-tunes, their packs, and a family of two of them."""
    folder = tmp_path_factory.mktemp("whole")
    model = llama(vocab_size=27, bos_token_id=None, eos_token_id=None)
    model.save_pretrained(folder / "base")
    for seed, name in enumerate(("movie", "news", "late", "broken"), 1):
        finetuned(model, folder / name, seed, 0.2)
    for name in ("base", "movie", "news", "late", "broken"):
        tokenizer(folder / name)
        (folder / name / "chat_template.jinja").write_text(TEMPLATE)
    for name in ("movie", "news", "late", "broken"):
        pack = folder / f"{name}.kin.safetensors"
        kinfold.pack(folder / "base", folder / name, pack, codec="exact")
        kinfold.restore(pack, folder / "base", folder / f"{name}-restored")
    members = [folder / "movie.kin.safetensors", folder / "news.kin.safetensors"]
    kinfold.fold(members, folder / "both.kin.safetensors", base=folder / "base", budget="1/1", dominance="off")
    return folder


@dataclass
class Running:
    """A server, and the store behind it."""

    url: str
    store: Store
    process: subprocess.Popen[str]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def resident(self) -> int:
        """Bytes of the server's memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024


@contextmanager
def running(store: Store, folder: Path, *options: str) -> Iterator[Running]:
    command = [sys.executable, "-m", "kinfold.cli", "serve", store.url, "--base", "base", "--port", "0"]
    command += ["--store-cache", str(folder / "cache"), "--format", "json", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        with process:
            try:
                assert process.stdout is not None
                lines = []
                while not lines or lines[-1].rstrip() != "}":
                    lines.append(process.stdout.readline())
                    assert lines[-1], (folder / "stderr").read_text()
                yield Running(json.loads("".join(lines))["url"], store, process)
            finally:
                process.kill()


@pytest.fixture(scope="module")
def server(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    store = Store.init(folder / "store", cache=folder / "other-cache")
    store.add(made / "base")
    for name in ("movie", "news", "broken", "both"):
        store.add(made / f"{name}.kin.safetensors")
    shared = {hash for name in ("movie", "news", "both") for hash in store.manifest(name).objects}
    hash = next(hash for hash in store.manifest("broken").objects if hash not in shared)
    path = folder / "store" / "objects" / hash[:2] / hash
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with running(store, folder, "--refresh", "0.2", "--max-batch", "8", "--queue", "16") as found:
        yield found


def greedy(directory: Path, prompt: str, count: int) -> str:
    """What transformers says of a directory."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    ids = words(prompt, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        found = model.generate(ids, max_new_tokens=count, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    return words.decode(found, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_models(server: Running) -> None:
    with server.client() as client:
        names = {model.id for model in client.models.list()}
    assert {"base", "movie", "news", "broken"} <= names
    assert len([name for name in names if name.startswith("both")]) == 2


@pytest.mark.parametrize("name", ["base", "movie", "news"])
def test_greedy_text_is_that_of_the_restored_directory(server: Running, made: Path, name: str) -> None:
    directory = made / ("base" if name == "base" else f"{name}-restored")
    expected = [greedy(directory, prompt, 12) for prompt in PROMPTS]
    with server.client() as client:
        done = client.completions.create(model=name, prompt=PROMPTS, max_tokens=12, temperature=0)
        assert [choice.text for choice in done.choices] == expected
        steps = client.completions.create(model=name, prompt=PROMPTS[0], max_tokens=12, temperature=0, stream=True)
        assert "".join(step.choices[0].text for step in steps) == expected[0]
        chat = client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": PROMPTS[0]}], max_tokens=12, temperature=0
        )
        assert chat.choices[0].message.content == expected[0]
        told = client.completions.create(model=name, prompt=PROMPTS[0], max_tokens=12, temperature=0, logprobs=2)
        assert told.choices[0].logprobs is not None
        assert len(told.choices[0].logprobs.tokens or []) == 12
    if name != "base":
        assert expected != [greedy(made / "base", prompt, 12) for prompt in PROMPTS]


def test_variants_mixed_in_one_batch(server: Running, made: Path) -> None:
    expected = {name: greedy(made / f"{name}-restored", "c b a", 12) for name in ("movie", "news")}

    async def ask() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(name: str) -> tuple[str, str]:
                done = await client.completions.create(model=name, prompt="c b a", max_tokens=12, temperature=0)
                return name, done.choices[0].text

            return await asyncio.gather(*(one(name) for name in ["movie", "news"] * 6))

    assert {text for name, text in asyncio.run(ask()) if name == "movie"} == {expected["movie"]}
    assert {text for name, text in asyncio.run(ask()) if name == "news"} == {expected["news"]}


def test_a_member_of_a_family(server: Running) -> None:
    with server.client() as client:
        members = [model.id for model in client.models.list() if model.id.startswith("both")]
        for name in members:
            assert client.models.retrieve(name).id == name
            assert client.completions.create(model=name, prompt="a", max_tokens=3).usage.completion_tokens == 3  # type: ignore[union-attr]


def test_embeddings(server: Running, made: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    words = AutoTokenizer.from_pretrained(made / "movie-restored")
    model = AutoModel.from_pretrained(made / "movie-restored").eval()
    with torch.inference_mode():
        hidden = [model(**words(prompt, return_tensors="pt")).last_hidden_state[0].mean(0) for prompt in PROMPTS]
    with server.client() as client:
        rows = client.embeddings.create(model="movie", input=PROMPTS).data
    for row, expected in zip(rows, hidden, strict=True):
        torch.testing.assert_close(torch.tensor(row.embedding), expected / expected.norm(), atol=1e-5, rtol=1e-4)


def test_what_is_not_there_and_what_cannot_be(server: Running) -> None:
    with server.client() as client:
        with pytest.raises(openai.NotFoundError, match="near names: movie"):
            client.completions.create(model="movies", prompt="a")
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="../movie", prompt="a")
        with pytest.raises(openai.BadRequestError, match="cannot classify"):
            client.post("/classify", body={"model": "movie", "input": "a"}, cast_to=object)
        with pytest.raises(openai.BadRequestError, match="maximum context length is 64"):
            client.completions.create(model="movie", prompt="a " * 64)
        with pytest.raises(openai.BadRequestError, match="token 27"):
            client.completions.create(model="movie", prompt=[27], max_tokens=1)


def test_a_corrupt_object_refuses_that_variant_alone(server: Running) -> None:
    for _ in range(2):
        body = {"model": "broken", "prompt": "a", "max_tokens": 1}
        reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_refused")
    with server.client() as client:
        assert (client.models.retrieve("broken").model_extra or {})["state"] == "refused"
        assert client.completions.create(model="movie", prompt="a", max_tokens=1).choices


def test_a_variant_that_comes_while_serving(server: Running, made: Path) -> None:
    with server.client() as client:
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="late", prompt="a")
        server.store.add(made / "late.kin.safetensors")
        assert soon(lambda: "late" in {model.id for model in client.models.list()})
        done = client.completions.create(model="late", prompt=PROMPTS[0], max_tokens=12, temperature=0)
    assert done.choices[0].text == greedy(made / "late-restored", PROMPTS[0], 12)


async def soak(url: str, count: int) -> Counter[int]:
    """So many requests, eight at once: texts, several texts, streams, abandoned streams, vectors, mistakes."""
    left, found = iter(range(count)), Counter[int]()

    async def worker(client: httpx.AsyncClient) -> None:
        for number in left:
            model = ("base", "movie", "news")[number % 3]
            bodies: list[tuple[str, dict[str, Any]]] = [
                ("completions", {"prompt": "a b c", "max_tokens": 8}),
                ("completions", {"prompt": ["a", "b c d e"], "max_tokens": 4, "logprobs": 1}),
                ("completions", {"prompt": "a b", "max_tokens": 50, "stream": True}),
                ("embeddings", {"input": ["a b", "c"]}),
                ("completions", {"prompt": "a", "model": "nobody"}),
            ]
            route, body = bodies[number % 5]
            async with client.stream("POST", f"/v1/{route}", json={"model": model} | body) as reply:
                found[reply.status_code] += 1
                async for _ in reply.aiter_bytes():
                    if number % 10 == 2:
                        break  # hang up

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        await asyncio.gather(*(worker(client) for _ in range(8)))
    return found


def test_a_soak(server: Running) -> None:
    asyncio.run(soak(server.url, 60))
    before = server.resident()
    found = asyncio.run(soak(server.url, 240))
    assert found == {200: 192, 404: 48}
    assert server.resident() - before < 32e6
    idle = {"kinfold_engine_running 0.0", "kinfold_engine_waiting 0.0"}
    assert soon(lambda: idle <= set(httpx.get(f"{server.url}/metrics").text.splitlines()))


def test_it_stops_when_it_is_told_to(server: Running) -> None:
    body = {"model": "movie", "prompt": "a", "max_tokens": 40, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as reply:
        events = reply.iter_text()
        text = next(events)
        server.process.send_signal(signal.SIGTERM)
        text += "".join(events)
    assert text.endswith("data: [DONE]\n\n")
    assert server.process.wait(60) == 0
