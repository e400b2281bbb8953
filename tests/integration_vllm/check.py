"""`make test-vllm`: variants of a store through a real vLLM, against transformers on the restored directories.

A pico Llama on the CPU; three engines, one after the other; two to five minutes.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1"}
os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")

import torch

import kinfold
from kinfold.pack.member import Base
from kinfold.pack.members import materialise, open_member

PROMPTS = ([3, 5, 7, 11], [20, 40, 60, 80, 100, 120], [99])
NEW = 12


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="kinfold-vllm-") as folder:
        work = Path(folder)
        restored = make(work)
        wanted = {name: greedy(path) for name, path in restored.items()}
        for one in wanted:
            for two in wanted:
                assert one == two or wanted[one] != wanted[two], f"{one} and {two} must differ for this to say anything"
        over_http(work, wanted)
        in_place(work, wanted, "kinfold.serve.vllm.patch.KinfoldWorker", "swap")
        gc.collect()  # an engine ends when nobody holds it
        in_place(work, wanted, "unpacked.UnpackedWorker", "patch")
    print("all is well")


def make(work: Path) -> dict[str, Path]:
    """A base, variants, and a store of them; the directory that each variant restores to."""
    from kinfold.store import Store

    base = work / "base"
    model = llama()
    model.save_pretrained(base)
    tokenizer(base)
    for name, seed in (("red", 1), ("blue", 2), ("green", 3), ("amber", 4)):
        variant(model, work / f"{name}-dir", seed, rank=4)
    for name, seed in (("full", 5), ("dense", 6)):
        variant(model, work / f"{name}-dir", seed, rank=0)
    kinfold.pack(base, work / "red-dir", work / "red.kin.safetensors", codec="truncsvd", budget="rank:4")
    kinfold.export(work / "blue-dir", work / "blue", base=base, rank=4)
    pair = {name: work / f"{name}-dir" for name in ("green", "amber")}
    kinfold.fold(pair, work / "duo.kin.safetensors", base=base, method="truncsvd", rank=4)
    kinfold.pack(base, work / "dense-dir", work / "dense.kin.safetensors", budget="1/2")
    kinfold.pack(base, work / "full-dir", work / "full.kin.safetensors", codec="exact")
    store = Store.init(str(work / "store"))
    store.add(base, name="base")
    for name in ("red", "duo", "dense", "full"):
        store.add(work / f"{name}.kin.safetensors", name=name)
    store.add(work / "blue", name="blue")
    found = {"base": base, "full": work / "full-dir"}
    for name in ("red", "dense"):
        found[name] = work / f"{name}-restored"
        kinfold.restore(work / f"{name}.kin.safetensors", base, found[name])
    found["duo/green"] = work / "green-restored"
    kinfold.unfold(work / "duo.kin.safetensors", "green", found["duo/green"], base=base)
    found["blue"] = work / "blue-restored"
    materialise(open_member(work / "blue", Base.open(base)), found["blue"])
    return found


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
    settings |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(**settings, tie_word_embeddings=False, initializer_range=0.1)).float().eval()


def tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["[UNK]", "[PAD]", *(f"w{n}" for n in range(126))])}
    core = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(directory)


def variant(model: Any, directory: Path, seed: int, rank: int) -> None:
    """A fine-tune: deltas of `rank` on the matrices of the layers; 0 changes every tensor in all directions."""
    generator = torch.Generator().manual_seed(seed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if rank == 0:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            elif "proj" in name:
                left, right = (torch.randn(side, rank, generator=generator) for side in parameter.shape)
                parameter += 0.05 * left @ right.T
    model.save_pretrained(directory)
    model.load_state_dict(before)
    tokenizer(directory)


def greedy(directory: Path) -> list[list[int]]:
    """By transformers."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    answers = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
        answers.append(found[0, len(prompt) :].tolist())
    return answers


def over_http(work: Path, wanted: Mapping[str, list[list[int]]]) -> None:
    """The server as a user starts it: variants by name through the plug-in's entry point."""
    with server(work) as (url, log):
        for name in ("base", "red", "blue", "duo/green", "red", "base"):
            found = [completion(url, name, prompt) for prompt in PROMPTS]
            assert found == wanted[name], f"{name}: vLLM {found}, transformers {wanted[name]}"
            print(f"{name}: as transformers, {len(PROMPTS)} prompts of {NEW} tokens")
        refused = {"dense": "full rank", "full": "of its delta's norm", "duo": "ask for one of", "nobody": "exist"}
        for name, words in refused.items():
            status, message = asked(url, name, PROMPTS[0])
            assert status == (404 if name == "nobody" else 400), (status, message)
            assert words in message, message
            print(f"{name}: {status}: {message}")
        checked = subprocess.run(
            [sys.executable, "-m", "kinfold.cli", "vllm", "check", url, "red", "blue", "--format", "json"],
            capture_output=True,
            text=True,
            check=True,
        )
        print("probed:", json.loads(checked.stdout)["variants"])
        text = log.read_text(errors="replace")
        assert "`red` is served as LoRA of rank" in text
        assert "`red` was probed: differs from the base" in text


@contextmanager
def server(work: Path) -> Iterator[tuple[str, Path]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", work / "server.log"
    env = os.environ | {
        "KINFOLD_STORE": str(work / "store"),
        "KINFOLD_VLLM_CACHE": str(work / "adapters"),
        "KINFOLD_VLLM_URL": url,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    }
    words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(work / "base")]
    words += ["--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    # 4 for 3 adapters: the CPU kernels of 0.32 give tokens of the base the adapter in the last place, which stays empty
    words += ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "4", "--enforce-eager", "--max-model-len", "128"]
    with log.open("wb") as out:
        process = subprocess.Popen(words, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            await_server(url, process)
            yield url, log
        except BaseException:
            print(log.read_text(errors="replace")[-6000:], file=sys.stderr)
            raise
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def await_server(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError("the server did not start")


def asked(url: str, model: str, prompt: list[int]) -> tuple[int, Any]:
    """Status, and tokens or the error's words."""
    body = {"model": model, "prompt": prompt, "max_tokens": NEW, "temperature": 0, "return_token_ids": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as reply:
            return reply.status, json.loads(reply.read())["choices"][0]["token_ids"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["error"]["message"]


def completion(url: str, model: str, prompt: list[int]) -> list[int]:
    status, answer = asked(url, model, prompt)
    assert status == 200, f"{model}: {status} {answer}"
    return answer


def in_place(work: Path, wanted: Mapping[str, list[list[int]]], extension: str, way: str) -> None:
    """What is no LoRA goes as weights, and the base comes back."""
    from vllm import LLM, SamplingParams  # pyright: ignore

    from kinfold.serve.vllm.patch import apply, put_back

    base = work / "base"
    settings = {"dtype": "float32", "enforce_eager": True, "max_model_len": 128, "worker_extension_cls": extension}
    llm = LLM(str(base), **settings)

    def answers() -> list[list[int]]:
        sampling = SamplingParams(temperature=0, max_tokens=NEW)
        prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
        return [list(out.outputs[0].token_ids) for out in llm.generate(prompts, sampling, use_tqdm=False)]

    assert answers() == wanted["base"]
    for name in ("full", "dense", "red"):
        applied = apply(llm, work / f"{name}.kin.safetensors", base=base)
        assert answers() == wanted[name], name
        assert applied.way == way, applied
        took = f", {applied.parameters} parameters" if applied.parameters else ""
        print(f"{name} in place: as transformers; {way} of {applied.tensors} tensors{took}: {applied.why}")
    back = put_back(llm, base=base)
    assert answers() == wanted["base"]
    print(f"the base is back: {back.way} of {back.tensors} tensors")


if __name__ == "__main__":
    main()
