from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as vocabularies
from transformers import PreTrainedTokenizerFast

from kinfold.cli import app
from kinfold.cli.output import run
from kinfold.errors import CacheError
from kinfold.serve.cache import parse_cache
from kinfold.serve.cache.questions import hide, needle, question, recall
from kinfold.tasks import Task
from models import llama

TEXT = "It rained. Nobody came! Why should they? The end of it was near. They all went home (at last.) And slept."


def byte_llama(folder: Path) -> None:
    """Save a pico Llama that reads bytes."""
    core = Tokenizer(
        vocabularies.BPE({token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)
    llama(vocab_size=256, max_position_embeddings=2048).save_pretrained(folder)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("bytes")
    byte_llama(folder)
    return Task.load(folder)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_codes_are_hidden_at_borders_of_sentences(count: int) -> None:
    found = hide(TEXT, count, random.Random(count))
    assert len(found.needles) == count
    bare, places = found.text, []
    for one in found.needles:
        places.append(bare.index(needle(*one)))
        bare = bare.replace(needle(*one) + " ", "")
        before = found.text[: found.text.index(needle(*one))].rstrip()
        assert before[-1] in ".!?)"
    assert bare == TEXT
    assert places == sorted(places)
    assert len({name for name, _ in found.needles}) == count
    assert all(len(code) == 4 and code.isdigit() for _, code in found.needles)


def test_text_without_sentences_hides_codes_between_words() -> None:
    found = hide("one two three four", 3, random.Random(0))
    assert [found.text.count(needle(*one)) for one in found.needles] == [1, 1, 1]


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [("one two", 2, "has no room for 2 hidden codes"), (TEXT, 0, "0 questions"), (TEXT, 41, "from 1 to 40")],
)
def test_what_cannot_be_hidden_is_refused(text: str, count: int, message: str) -> None:
    with pytest.raises(CacheError, match=message):
        hide(text, count, random.Random(0))


def whole(task: Task, row: dict[str, Any], count: int, rng: random.Random) -> list[tuple[bool, float]]:
    """The answers by one forward pass over the whole conversation."""
    hay = hide(row["text"], count, rng)
    order = rng.sample(range(count), count)
    text, spans = hay.text, []
    for number in order:
        name, code = hay.needles[number]
        text += ("." if spans else "") + question(name) + " "
        spans.append((len(text), code))
        text += code
    tokenizer: Any = task.tokenizer  # one token a character
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logs = task.model(ids).logits[0].log_softmax(-1)
    found = []
    for start, _ in spans:
        places = torch.arange(start, start + 4)
        digits = ids[0, places]
        right = bool((logs[places - 1].argmax(-1) == digits).all())
        found.append((right, float(logs[places - 1, digits].sum())))
    return found


def test_recall_is_that_of_one_pass_over_the_conversation(task: Task) -> None:
    rows, rng = [{"text": TEXT}, {"text": TEXT * 2}], random.Random(7)
    wanted = [whole(task, row, 3, rng) for row in rows]
    found = recall(task, rows, parse_cache("full"), 3, most=2048, seed=7)
    assert found.first == sum(answers[0][0] for answers in wanted) / 2
    assert found.later == sum(right for answers in wanted for right, _ in answers[1:]) / 4
    assert found.later_log_probability is not None
    assert found.later_log_probability == pytest.approx(
        sum(p for answers in wanted for _, p in answers[1:]) / 4, abs=1e-4
    )


def test_a_compressed_cache_is_asked_the_same(task: Task) -> None:
    spec = parse_cache("sentencekv:tokens_read=2000,keep_factor=inf")
    rows = [{"text": TEXT}]
    assert recall(task, rows, spec, 2, most=2048) == recall(task, rows, parse_cache("full"), 2, most=2048)


def test_one_question_has_no_later_ones(task: Task) -> None:
    found = recall(task, [{"text": TEXT}], parse_cache("full"), 1, most=2048)
    assert found.later is None
    assert found.later_log_probability is None


def test_compare_asks_every_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    byte_llama(tmp_path / "base")
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": TEXT}))
    caches = "full,sentencekv:tokens_read=2000,keep_factor=inf,snapkv:tokens_read=40"
    command = ["kv", "compare", str(tmp_path / "base"), "--texts", str(tmp_path / "t.jsonl"), "--cache", caches]
    assert run(app, [*command, "--last", "4", "--questions", "2", "--format", "json"]) == 0
    rows = {row["cache"]: row["recall"] for row in json.loads(capsys.readouterr().out)["rows"]}
    wanted = recall(Task.load(tmp_path / "base"), [{"text": TEXT}], parse_cache("full"), 2, most=8192)
    assert rows["full"] == rows["sentencekv:tokens_read=2000,keep_factor=inf"] == asdict(wanted)
    assert rows["snapkv:tokens_read=40"]["later_log_probability"] != wanted.later_log_probability
    for questions, words in (("2", "later answers"), ("1", "first answer")):
        assert run(app, [*command, "--last", "4", "--questions", questions]) == 0
        assert words in capsys.readouterr().out
    assert run(app, [*command, "--last", "4", "--format", "json"]) == 0
    assert all(row["recall"] is None for row in json.loads(capsys.readouterr().out)["rows"])


def test_a_tokenizer_is_needed_and_digits_in_it(task: Task, llama_pair: Any) -> None:
    with pytest.raises(CacheError, match="no tokenizer"):
        recall(Task(task.model, None, None), [{"text": TEXT}], parse_cache("full"), 1, most=2048)
    letters = Task.load(Path(llama_pair.variant))
    with pytest.raises(CacheError, match="no digits"):
        recall(letters, [{"text": "a b c d"}], parse_cache("full"), 1, most=2048)
