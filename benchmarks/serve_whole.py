"""A store of real and synthetic variants behind `kinfold serve`, and PEFT's way of mixing adapters beside it.

    python benchmarks/lm_fleet.py            # once: two fine-tunes of SmolLM2-135M-Instruct
    python benchmarks/serve_whole.py         # about 10 minutes; results/serve_whole.json

Full fine-tunes: greedy answers against transformers on the restored directory, and seconds to the first token of a
variant that is not in memory. Clients: 64 at once over HTTP, 8 adapters of rank 8 between them. PEFT: the same adapters
on one model, the rows of a batch named by `adapter_names`; and what as many full models would take.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import httpx
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import kinfold
from fleet import machine, run_script
from grid import RESULTS
from lm_fleet import causal_base, lm_fleet
from serve import BATCH, PROMPT, adapter, linear_layers, resident_mb

PROMPTS = ["Once upon a time there was", "The wolf said to the", "a small animal that", "The capital of France is"]
CLIENTS, TURNS, NEW = 64, 3, 16


def served(store: Path, work: Callable[[str], Coroutine[Any, Any, Any]], *options: str) -> Any:
    """What `work(url)` returns while `kinfold serve` runs on the store."""
    command = [sys.executable, "-m", "kinfold.cli", "serve", str(store), "--base", "base", "--port", "0"]
    command += ["--dtype", "float32", "--format", "json", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        told = b""
        while not told.endswith(b"\n}\n"):
            told += server.stdout.readline()
        try:
            return asyncio.run(work(json.loads(told)["url"]))
        finally:
            server.terminate()


async def complete(client: httpx.AsyncClient, model: str, prompt: Any, tokens: int) -> tuple[str, float]:
    """The greedy answer, and the seconds it took."""
    started = time.perf_counter()
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    reply = await client.post("/v1/completions", json=body)
    reply.raise_for_status()
    return reply.json()["choices"][0]["text"], time.perf_counter() - started


def greedy(directory: Path, prompts: list[str], tokens: int) -> list[str]:
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    answers = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
        answers.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return answers


def full_variants(folder: Path) -> list[dict[str, Any]]:
    """Real fine-tunes as packs: is the served answer the restored directory's, and how long does a first token take?"""
    base, rows = causal_base(), []
    store = kinfold.Store.init(folder / "full")
    store.add(base, name="base")
    wanted = {"base": greedy(base, PROMPTS, 32)}
    for member in lm_fleet(0):
        for codec, budget in (("exact", None), ("fold", "1/100")):
            name = f"{member.name}-{codec}"
            pack = folder / f"{name}.kin.safetensors"
            kinfold.pack(base, member.directory, pack, codec=codec, budget=budget)
            kinfold.restore(pack, base, folder / name)
            wanted[name] = greedy(folder / name, PROMPTS, 32)
            store.add(pack, name=f"{name}-probed", probe=True)
            store.add(pack, name=name)
            rows.append({"variant": name, "pack_bytes": pack.stat().st_size})

    async def work(url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            await complete(client, "base", PROMPTS[0], 1)
            for row in rows:
                name = row["variant"]
                row["seconds_first"] = (await complete(client, name, PROMPTS[0], 1))[1]
                row["seconds_first_with_stored_probe"] = (await complete(client, f"{name}-probed", PROMPTS[0], 1))[1]
                row["seconds_when_there"] = (await complete(client, name, PROMPTS[0], 1))[1]
            names = [row["variant"] for row in rows]
            asked = [complete(client, name, prompt, 32) for name in names for prompt in PROMPTS]
            answers = [text for text, _ in await asyncio.gather(*asked)]  # all in one mixed batch
            for place, row in enumerate(rows):
                own = answers[place * len(PROMPTS) : (place + 1) * len(PROMPTS)]
                row["answers_equal"] = [a == b for a, b in zip(own, wanted[row["variant"]], strict=True)]
                row["unlike_base"] = sum(a != b for a, b in zip(own, wanted["base"], strict=True))
                print(row, flush=True)

    served(folder / "full", work, "--variant-memory", "8GB")
    return rows


def clients(folder: Path, adapters: list[Path]) -> dict[str, Any]:
    """64 clients at once, three requests of 16 tokens each."""
    store = kinfold.Store.init(folder / "many")
    store.add(causal_base(), name="base")
    names = [store.add(path, base="base").name for path in adapters]

    async def work(url: str) -> list[float]:
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=CLIENTS)) as client:
            await asyncio.gather(*(complete(client, name, [1, 2, 3], 1) for name in names))

            async def one(number: int) -> list[float]:
                prompt = [(7 * number + 13 * place) % 1000 + 5 for place in range(PROMPT)]
                return [(await complete(client, names[number % len(names)], prompt, NEW))[1] for _ in range(TURNS)]

            started = time.perf_counter()
            took = [second for row in await asyncio.gather(*map(one, range(CLIENTS))) for second in row]
            return [time.perf_counter() - started, *took]

    whole, *took = served(folder / "many", work)
    took.sort()
    return {
        "clients": CLIENTS,
        "requests": len(took),
        "requests_a_second": len(took) / whole,
        "tokens_a_second": len(took) * NEW / whole,
        "p50_seconds": took[len(took) // 2],
        "p95_seconds": took[int(0.95 * len(took))],
    }


def peft(adapters: list[Path], tokens: int = 32) -> dict[str, Any]:
    """PEFT on one model: tokens a second with every row of another adapter, and memory of 1, 8 and 64 adapters."""
    from peft import PeftModel

    base: Any = AutoModelForCausalLM.from_pretrained(causal_base(), dtype=torch.float32).eval()
    model_mb = sum(parameter.nbytes for parameter in base.parameters()) / 1e6
    ids = torch.tensor([[(7 * row + 13 * place) % 1000 + 5 for place in range(PROMPT)] for row in range(BATCH)])

    def speed(model: Any, **named: Any) -> float:
        with torch.inference_mode():
            model.generate(input_ids=ids, max_new_tokens=2, min_new_tokens=2, do_sample=False, pad_token_id=0, **named)
            started = time.perf_counter()
            model.generate(
                input_ids=ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0, **named
            )
        return BATCH * tokens / (time.perf_counter() - started)

    found: dict[str, Any] = {"full_model_mb": model_mb, "base_tokens_a_second": speed(base), "adapters": []}
    before, model = resident_mb(), None
    for number, path in enumerate(adapters, 1):
        if model is None:
            model = PeftModel.from_pretrained(base, path, adapter_name="v0")
        else:
            model.load_adapter(path, adapter_name=f"v{number - 1}")
        if number == BATCH:
            found["mixed_tokens_a_second"] = speed(model, adapter_names=[f"v{row}" for row in range(BATCH)])
        if number in (1, 8, 64):
            found["adapters"].append({"adapters": number, "process_mb_more": resident_mb() - before})
    return found


def main() -> None:
    from kinfold.serve.live import LiveModel

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shapes = linear_layers(LiveModel.open(causal_base(), dtype="float32"))
        adapters = [adapter(folder, number, shapes) for number in range(64)]
        content = {"machine": machine(), "kinfold": kinfold.__version__}
        for label, work in (
            ("full_variants", lambda: full_variants(folder)),
            ("clients", lambda: clients(folder, adapters[:BATCH])),
            ("peft", lambda: peft(adapters)),
        ):
            content[label] = work()
            print(label, content[label], flush=True)
            (RESULTS / "serve_whole.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)
