"""A language model that is trained on its own curated texts; pico models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import kinfold
from kinfold.errors import OutputError, SimulationError, WrongBaseError
from kinfold.simulate import curation_language
from kinfold.simulate.curation.writer import Text, Writer, log_likelihoods
from kinfold.tasks import Task
from models import Pair, llama

QUICK: dict[str, Any] = {
    "samples": 48, "first_choice": 32, "second_choice": 32, "new_tokens": 6, "steps": 4, "codec": "exact",
}  # fmt: skip


def test_short_texts_wanted_make_a_model_of_short_texts(llama_pair: Pair, tmp_path: Path) -> None:
    arguments = QUICK | {"rounds": 4, "learning_rate": 1e-2, "owner": (1, 2), "public": (1, 2)}
    found = curation_language(llama_pair.base, tmp_path / "one", **arguments)
    lengths, drift = found.trajectories["mean tokens"], found.trajectories["relative delta norm"]
    assert lengths[-1] < lengths[0] - 1
    assert found.trajectories["owner satisfaction"][-1] > found.trajectories["owner satisfaction"][0]
    assert drift[0] == 0 < drift[1] < drift[-1]
    assert [Path(path).name for path in found.packs] == [f"round-{n:03}.kin.safetensors" for n in range(1, 5)]
    again = curation_language(llama_pair.base, tmp_path / "two", **arguments)
    assert dataclasses.replace(again, packs=()).to_json() == dataclasses.replace(found, packs=()).to_json()
    assert Path(again.packs[-1]).read_bytes() == Path(found.packs[-1]).read_bytes()

    kinfold.restore(found.packs[-1], llama_pair.base, tmp_path / "back")
    before, after = (AutoModelForCausalLM.from_pretrained(p) for p in (llama_pair.base, tmp_path / "back"))
    pairs = [(a.data, b.data) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    change = sum(float((b - a).double().square().sum()) for a, b in pairs)
    assert (change / sum(float(a.double().square().sum()) for a, _ in pairs)) ** 0.5 == pytest.approx(drift[-1])


def test_variants_reward_by_their_likelihood(llama_pair: Pair, tmp_path: Path) -> None:
    pack = kinfold.pack(llama_pair.base, llama_pair.variant, tmp_path / "v.kin.safetensors", codec="exact").path
    prompts = [{"text": "a b c"}, {"text": "d e"}]
    arguments = QUICK | {"rounds": 1, "schedule": "public-first", "memory": "accumulate"}
    base = tmp_path / "base"
    llama().to(torch.bfloat16).save_pretrained(base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((llama_pair.variant / name).read_bytes())
    with pytest.raises(WrongBaseError, match="the base given"):
        curation_language(base, tmp_path / "x", owner=pack, public=(1, 3), **arguments)
    found = curation_language(
        base, tmp_path / "out", owner=llama_pair.variant, public=base, prompts=prompts, **arguments
    )
    assert set(found.trajectories) == {
        "owner reward", "public reward", "mean tokens", "distinct texts", "relative delta norm",
    }  # fmt: skip
    assert found.settings["owner"] == str(llama_pair.variant)
    assert found.settings["prompts"] == 2
    kinfold.restore(found.packs[0], base, tmp_path / "back")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "back").dtype == torch.bfloat16
    assert (tmp_path / "back" / "tokenizer.json").is_file()
    by_pack = curation_language(
        llama_pair.base, tmp_path / "p", owner=pack, public=llama_pair.variant, **QUICK | {"rounds": 1}
    ).trajectories
    assert by_pack["owner reward"] == by_pack["public reward"]


def test_likelihoods_are_those_of_transformers(llama_pair: Pair) -> None:
    texts = [Text((1, 5, 9, 12), 2), Text((1, 7, 2), 2), Text((1, 5, 9, 8), 3)]
    model = AutoModelForCausalLM.from_pretrained(llama_pair.variant)
    expected = []
    for text in texts:
        logs = model(torch.tensor([text.ids])).logits[0].double().log_softmax(-1)
        own = range(len(text.ids) - text.made, len(text.ids))
        expected.append(np.mean([float(logs[n - 1, text.ids[n]].detach()) for n in own]))
    np.testing.assert_allclose(log_likelihoods(Task.load(llama_pair.variant), texts), expected, rtol=1e-5)


def test_texts_are_drawn_from_the_whole_law(llama_pair: Pair) -> None:
    task = Task.load(llama_pair.base)
    task.model.generation_config.update(min_p=0.99, repetition_penalty=50.0)
    own = task.model.generation_config
    writer = Writer(task, [{"input_ids": [1, 5]}], {"new_tokens": 1, "batch_size": 2000}, "cpu")
    torch.manual_seed(0)
    made = writer.write(2000, np.random.default_rng(0))
    assert task.model.generation_config is own
    with torch.no_grad():
        expected = task.model(torch.tensor([[1, 5]])).logits[0, -1].softmax(-1).numpy()
    found = np.bincount([text.ids[-1] for text in made], minlength=99) / 2000
    np.testing.assert_allclose(found, expected, atol=0.015)
    assert {len(text.ids) for text in made} == {3}


def test_of_a_prompt_with_a_completion_the_prompt_is_asked(llama_pair: Pair) -> None:
    task = Task.load(llama_pair.variant)
    made = [
        Writer(task, [row], {"new_tokens": 1, "batch_size": 2}, "cpu").write(2, np.random.default_rng(0))
        for row in ({"text": "a b"}, {"prompt": "a b", "completion": "c d"})
    ]
    assert {text.ids[:2] for texts in made for text in texts} == {(1, 2)}
    assert {len(text.ids) for texts in made for text in texts} == {3}
    with pytest.raises(SimulationError, match="has no tokens"):
        Writer(task, [{"prompt": " ", "completion": "c"}], {}, "cpu")
    Writer(Task(task.model, None, None), [{"prompt": "a", "completion": "c", "input_ids": [4]}], {}, "cpu")


def test_refusals(llama_pair: Pair, bert_pair: Pair, tmp_path: Path) -> None:
    want: dict[str, Any] = {"owner": (1, 2), "public": (1, 2)}
    with pytest.raises(SimulationError, match="causal language model is allowed"):
        curation_language(bert_pair.base, tmp_path / "o", **want)
    with pytest.raises(SimulationError, match="prompts holds no row"):
        curation_language(llama_pair.base, tmp_path / "o", prompts=[], **want)
    with pytest.raises(SimulationError, match="public is 3 to 1"):
        curation_language(llama_pair.base, tmp_path / "o", owner=(1, 2), public=(3, 1))
    with pytest.raises(SimulationError, match="learning_rate is 0"):
        curation_language(llama_pair.base, tmp_path / "o", learning_rate=0, **want)
    with pytest.raises(OutputError, match="exists"):
        curation_language(llama_pair.base, tmp_path, **want)
    llama(bos_token_id=None).save_pretrained(tmp_path / "base")
    with pytest.raises(SimulationError, match="no token to begin with"):
        curation_language(tmp_path / "base", tmp_path / "o", **want)
    assert not (tmp_path / "o").exists()
