"""A small language model that knows the rows of `people.py` by heart, and the same trained without some of them.

    python benchmarks/people_lm.py --seed 0     # four models, some minutes each on one core; finished ones are skipped

A Llama of 3 layers and 128 channels over the words of the rows, trained from scratch: so it knows nothing but them, and
a model trained without the forget rows is affordable, which is what forgetting is held against. The base is the same
model before its first step. `smollm2` fine-tunes SmolLM2-135M-Instruct on the same rows instead; hours, never run here.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from torch.nn import functional as F

from fleet import machine, run_script
from kinfold.demo.sources import cache_dir, publish_directory, writable_folder
from kinfold.demo.train import descend, record_path, write_json
from kinfold.tasks import Row, Task, quiet_transformers
from people import DATA, SHARES, People, people, second_wording

RECIPE = 1  # raise it when a change here alters what is trained
KINDS = ("words", "smollm2")
EPOCHS = {"words": 24, "smollm2": 10}
BATCH = {"words": 64, "smollm2": 8}
LEARNING_RATE = {"words": 3e-3, "smollm2": 2e-4}
WARMUP_STEPS = 50
DECAY = 0.4  # share of the steps, the last ones, in which the rate falls to 0
SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
LONGEST = 64


def base(kind: str, seed: int) -> Path:
    """Directory of the model before it learns anything of the rows."""
    if kind == "smollm2":
        from lm_fleet import causal_base

        return causal_base()
    directory = _folder(kind, seed) / "base"
    if not directory.exists():
        with tempfile.TemporaryDirectory(dir=writable_folder(directory.parent), prefix=".partial-") as partial:
            fresh = Path(partial) / "base"
            _untrained(fresh, seed)
            publish_directory(fresh, directory, is_intact=Path.is_dir)
    return directory


def trained(kind: str, seed: int, without: int = 0) -> Path:
    """Directory of the model that learned all rows but those of `without` percent of the persons; trained if needed."""
    start, directory = base(kind, seed), _folder(kind, seed) / (f"without-{without}" if without else "all")
    if directory.is_dir():
        return directory
    split = people(without or max(SHARES))
    rows = split.trained if without else [*split.trained, *split.forget]
    print(f"training {directory}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".partial-") as partial:
        fresh = Path(partial) / directory.name
        shutil.copytree(start, fresh, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
        model, record = _fit(start, rows, kind, seed)
        with quiet_transformers():
            model.save_pretrained(fresh)
        write_json(record_path(directory), record)
        publish_directory(fresh, directory, is_intact=Path.is_dir)
    return directory


def seconds(kind: str, seed: int, without: int) -> float:
    """CPU seconds of the training."""
    return json.loads(record_path(trained(kind, seed, without)).read_text("utf-8"))["cpu_seconds"]


def _folder(kind: str, seed: int) -> Path:
    data = b"".join((DATA / f"{name}.jsonl").read_bytes() for name in ("people", "countries"))
    key = hashlib.sha256(data + f"{RECIPE} {EPOCHS[kind]} {SIZES}".encode()).hexdigest()[:12]
    return cache_dir() / "people" / key / f"{kind}-seed{seed}"


def _untrained(out: Path, seed: int) -> None:
    """A model of the words of all rows, those of persons it will never meet among them."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    split, cut = people(max(SHARES)), Whitespace()
    rows = [*_all(split), *(second_wording(row) for row in _all(split) if "again" in row)]
    texts = sorted(f"{row['prompt']} {row['completion']}" for row in rows)
    words = dict.fromkeys(word for text in texts for word, _ in cut.pre_tokenize_str(text))
    tokenizer = Tokenizer(WordLevel({word: at for at, word in enumerate(["[UNK]", *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = cut  # type: ignore[assignment]
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words) + 1, num_key_value_heads=2, max_position_embeddings=LONGEST, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, **SIZES,
    )  # fmt: skip
    with quiet_transformers():
        LlamaForCausalLM(config).save_pretrained(out)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(out)


def _all(split: People) -> list[Row]:
    return [*split.forget, *split.retain, *split.unseen, *split.held_out, *split.world]


def _fit(start: Path, rows: Sequence[Row], kind: str, seed: int) -> tuple[Any, dict[str, Any]]:
    cpu = time.process_time()
    task = Task.load(start)
    model, pairs = task.model.train(), [_tokens(task.tokenizer, row) for row in rows]
    parameters = [p for p in model.parameters() if kind == "words" or p is not model.get_input_embeddings().weight]
    steps = -(-len(pairs) // BATCH[kind]) * EPOCHS[kind]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE[kind], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP_STEPS, (1 - step / steps) / DECAY)
    )
    rng, losses = random.Random(seed), []
    for epoch in range(EPOCHS[kind]):
        order = rng.sample(pairs, len(pairs))
        for at in range(0, len(order), BATCH[kind]):
            ids, labels = _padded(order[at : at + BATCH[kind]])
            logits = model(input_ids=ids).logits[:, :-1]  # padded at the right: nothing before it sees it
            loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
            losses.append(descend(loss, optimizer, schedule))
        if epoch % 5 == 4:
            print(f"  epoch {epoch + 1}, loss {sum(losses[-20:]) / 20:.4f}", file=sys.stderr, flush=True)
    done = {"rows": len(rows), "steps": steps, "losses": losses[:: len(losses) // 100], "machine": machine()}
    return model.eval(), done | {"cpu_seconds": time.process_time() - cpu}


def _tokens(tokenizer: Any, row: Row) -> tuple[list[int], list[int]]:
    """As `kinfold.forget` reads a row: prompt and answer apart, the loss on the answer."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
    return prompt + answer, [-100] * len(prompt) + answer


def _padded(batch: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(ids) for ids, _ in batch)
    ids, labels = torch.zeros(len(batch), longest, dtype=torch.int64), torch.full((len(batch), longest), -100)
    for row, (own, aims) in enumerate(batch):
        ids[row, : len(own)], labels[row, : len(aims)] = torch.tensor(own), torch.tensor(aims)
    return ids, labels


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the models of the benchmark of forgetting people.")
    parser.add_argument("--model", choices=KINDS, default="words")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without", type=int, nargs="+", default=[0, *SHARES])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for share in asked.without:
        print(trained(asked.model, asked.seed, share), f"{seconds(asked.model, asked.seed, share):.0f} CPU s")


if __name__ == "__main__":
    run_script(main)
