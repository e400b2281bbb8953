"""`influence` on pico models: by every kind of variant, against numpy on autograd's gradients; and what it refuses."""

from __future__ import annotations

import json
import random
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import kinfold
from adapters import make
from kinfold.audit import influence
from kinfold.audit.influence import collect, store
from kinfold.audit.influence.report import write_lines, write_report
from kinfold.errors import AdapterError, AuditError, CalibrationError, GradientStoreError, MissingExtraError
from models import Pair, llama, raw, save

ROWS = [{"input_ids": random.Random(n).choices(range(1, 99), k=3 + n % 4)} for n in range(12)]
PROBE = [{"input_ids": [5, 6, 7]}, {"input_ids": [9, 8, 7, 6]}]
LABELLED: list[dict[str, Any]] = [row | {"label": n % 3, "wrong": n % 5 == 0} for n, row in enumerate(ROWS)]


def reference(
    directory: Path, names: list[str], rows: list[dict[str, Any]], reduction: str = "mean"
) -> list[np.ndarray]:
    """Gradients of a causal LM's row losses by each of the weights, (rows, values) float64 each."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).double().eval()
    weights = [model.get_parameter(name) for name in names]
    found: list[list[np.ndarray]] = [[] for _ in names]
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        loss = F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction=reduction)
        for part, gradient in zip(found, torch.autograd.grad(loss, weights), strict=True):
            part.append(gradient.reshape(-1).numpy())
    return [np.stack(part) for part in found]


def scores_of(train: list[np.ndarray], probe: list[np.ndarray], damping: float = 0.3) -> np.ndarray:
    total = np.zeros((len(train[0]), len(probe[0])))
    for g, p in zip(train, probe, strict=True):
        kernel = g @ g.T / len(g)
        term = damping * np.trace(kernel) / min(g.shape)
        total += np.linalg.solve(kernel + term * np.eye(len(g)), g @ p.T)
    return total


@pytest.fixture(scope="module")
def pack(llama_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "x.kin.safetensors"
    kinfold.pack(llama_pair.base, llama_pair.variant, out, codec="exact", budget="exact")
    return out


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_scores_are_those_of_whole_gradients(llama_pair: Pair, reduction: Any) -> None:
    names = ["model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"]
    report = influence(
        llama_pair.variant, base=llama_pair.base, train=ROWS, probe=PROBE, keep=1 << 30, modules=names, full=True,
        top=3, reduction=reduction,
    )  # fmt: skip
    train, probe = (reference(llama_pair.variant, names, rows, reduction) for rows in (ROWS, PROBE))
    expected = scores_of(train, probe)
    assert report.scores is not None
    assert np.abs(report.scores - expected).max() < 2e-3 * np.abs(expected).max()
    np.testing.assert_allclose(report.norms, np.linalg.norm(np.concatenate(train, 1), axis=1), rtol=1e-3)
    mean, first, second = report.probes
    assert [row.row for row in first.top] == np.argsort(-expected[:, 0])[:3].tolist()
    assert [row.row for row in second.bottom] == np.argsort(expected[:, 1])[:3].tolist()
    assert [row.row for row in mean.top] == np.argsort(-expected.mean(1))[:3].tolist()
    assert mean.top[0].score == pytest.approx(expected.mean(1).max(), rel=1e-2)
    own = np.diag(scores_of(train, train))
    np.testing.assert_allclose(report.self_scores, own, rtol=5e-3)
    assert [row.row for row in report.self_top] == np.argsort(-own)[:3].tolist()


def test_gradients_on_the_way_from_the_base(llama_pair: Pair, pack: Path, tmp_path: Path) -> None:
    base, variant = (load_file(directory / "model.safetensors") for directory in llama_pair)
    between = {name: 0.75 * base[name].double() + 0.25 * variant[name].double() for name in base}
    save(tmp_path / "between", {name: tensor.to(base[name].dtype) for name, tensor in between.items()})
    shutil.copy(llama_pair.base / "config.json", tmp_path / "between")
    names = ["model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"]
    expected = scores_of(*(reference(tmp_path / "between", names, rows) for rows in (ROWS, PROBE)))
    for path in (llama_pair.variant, pack):
        report = influence(
            path, base=llama_pair.base, train=ROWS, probe=PROBE, keep=1 << 30, modules=names, full=True, at=0.25
        )
        assert report.scores is not None
        assert np.abs(report.scores - expected).max() < 2e-3 * np.abs(expected).max()
        assert report.at == 0.25
        assert any("0.25 of the way" in note for note in report.notes)


def test_of_a_prompt_with_a_completion_the_completion_counts(llama_pair: Pair) -> None:
    """The pico tokenizer makes a word of a letter: `a` is 1."""
    rows = [{"prompt": "a b c", "completion": "d e"}, {"question": "f g", "answer": "h"}, {"text": "a b c d e"}]
    report = influence(llama_pair.variant, base=llama_pair.base, train=rows, probe=rows[:1], keep=100, top=3)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama_pair.variant).double().eval()
    for ids, first, found in zip(([1, 2, 3, 4, 5], [6, 7, 8], [1, 2, 3, 4, 5]), (3, 2, 1), report.losses, strict=True):
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = -np.mean([float(logs[place - 1, ids[place]]) for place in range(first, len(ids))])
        assert found == pytest.approx(expected, rel=1e-4)
    assert {row.text for row in report.probes[0].top} == {"a b c d e", "f g h"}
    assert report.probes[0].firsts["bm25"] in (0, 2)


def test_heads_are_drawn_back_too_and_what_is_not_loaded_does_not_matter(bert_pair: Pair, tmp_path: Path) -> None:
    config = json.loads((bert_pair.base / "config.json").read_text())
    sides = {}
    for seed, (side, directory) in enumerate(zip(("base", "variant"), bert_pair, strict=True)):
        generator = torch.Generator().manual_seed(seed)
        more = {"head.weight": (3, 32), "head.bias": (3,), "spare.weight": (80, 90)}
        drawn = {name: torch.randn(shape, generator=generator) for name, shape in more.items()}
        sides[side] = load_file(directory / "model.safetensors") | drawn
    sides["between"] = {name: 0.75 * tensor + 0.25 * sides["variant"][name] for name, tensor in sides["base"].items()}
    for side, tensors in sides.items():
        save(tmp_path / side, tensors, config)
    found = influence(tmp_path / "variant", base=tmp_path / "base", train=LABELLED, at=0.25)
    expected = influence(tmp_path / "between", base=tmp_path / "base", train=LABELLED)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-4)
    np.testing.assert_allclose(found.norms, expected.norms, rtol=1e-3)


@pytest.mark.parametrize("kind", ["mixtral", "gamma"])
def test_weights_that_transformers_renames_are_drawn_back_too(tmp_path: Path, bert_pair: Pair, kind: str) -> None:
    """At 0 all losses are the base's, also where a checkpoint's names are not the model's."""
    rows = LABELLED
    if kind == "mixtral":
        from transformers import MixtralConfig, MixtralForCausalLM

        config = MixtralConfig(
            vocab_size=99, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=2, max_position_embeddings=32,
        )  # fmt: skip
        for seed, side in enumerate(("base", "variant")):
            torch.manual_seed(seed)
            MixtralForCausalLM(config).save_pretrained(tmp_path / side)
    else:
        for side, directory in zip(("base", "variant"), bert_pair, strict=True):
            old = {
                name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
                for name, tensor in load_file(directory / "model.safetensors").items()
            }
            if side == "variant":
                old = {name: tensor + ("LayerNorm" in name) for name, tensor in old.items()}
            head = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
            own = {"head.weight": head, "head.bias": torch.zeros(3)} if side == "variant" else {}
            save(tmp_path / side, old | own, json.loads((directory / "config.json").read_text()))
    there = influence(tmp_path / "variant", base=tmp_path / "base", train=rows, keep=200, at=0)
    before = influence(tmp_path / "variant", base=tmp_path / "base", train=rows, keep=200)
    if kind == "gamma":  # the head is new, so it stays
        assert any("is the variant's there too: head" in note for note in there.notes)
        head = load_file(tmp_path / "variant" / "model.safetensors")
        base = load_file(tmp_path / "base" / "model.safetensors")
        (tmp_path / "base" / "model.safetensors").unlink()
        both = base | {name: head[name] for name in ("head.weight", "head.bias")}
        save_file(both, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    expected = influence(tmp_path / "base", train=rows, keep=200)
    np.testing.assert_allclose(there.losses, expected.losses, rtol=1e-5)
    assert np.abs(before.losses - expected.losses).max() > 1e-3


def test_an_adapters_delta_is_scaled(tmp_path: Path, llama_pair: Pair) -> None:
    folder = tmp_path / "adapter"
    make(llama(), folder, target_modules=["q_proj", "down_proj"], r=2)
    half = influence(folder, base=llama_pair.base, train=ROWS, probe=PROBE, full=True, at=0.5)
    weights = load_file(folder / "adapter_model.safetensors")
    assert any("lora_B" in name and tensor.any() for name, tensor in weights.items())
    halved = {name: tensor * (0.5 if "lora_B" in name else 1) for name, tensor in weights.items()}
    save_file(halved, folder / "adapter_model.safetensors", {"format": "pt"})
    expected = influence(folder, base=llama_pair.base, train=ROWS, probe=PROBE, full=True)
    assert half.scores is not None
    assert expected.scores is not None
    np.testing.assert_allclose(half.scores, expected.scores, rtol=1e-4, atol=1e-6 * np.abs(expected.scores).max())


def test_only_what_differs_is_looked_at(llama_pair: Pair, tmp_path: Path) -> None:
    tensors = {name: torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape).clone()
               for name, (_, shape, data) in raw(llama_pair.base).items()}  # fmt: skip
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] += 0.5
    tensors["model.norm.weight"][0] += 0.5
    save(tmp_path / "one", tensors, json.loads((llama_pair.base / "config.json").read_text()))
    report = influence(tmp_path / "one", base=llama_pair.base, train=ROWS, probe=PROBE, keep=64)
    assert report.modules == 1
    assert report.size == 144 * 32
    assert report.left_out == ("model.norm.weight",)
    assert report.left_share == pytest.approx(0.5)
    with pytest.raises(AuditError, match="nothing to look at"):
        influence(llama_pair.base, base=llama_pair.base, train=ROWS, probe=PROBE)


def test_without_a_base_all_linear_modules_are(llama_pair: Pair) -> None:
    report = influence(llama_pair.variant, train=ROWS, keep=200)
    assert report.modules == 15
    assert report.probes == ()
    assert any("tied" in note for note in report.notes)
    with_base = influence(llama_pair.variant, base=llama_pair.base, train=ROWS, keep=200)
    assert with_base.self_scores.tolist() == report.self_scores.tolist()  # the same names, so the same masks


def test_a_pack_is_scored_as_its_variant(llama_pair: Pair, pack: Path, tmp_path: Path) -> None:
    kept = tmp_path / "g.grads"
    there = influence(llama_pair.variant, base=llama_pair.base, train=ROWS, probe=PROBE, keep=200, full=True)
    found = influence(pack, base=llama_pair.base, train=ROWS, probe=PROBE, keep=200, full=True, gradients=kept)
    assert np.array_equal(there.scores, found.scores)
    with pytest.raises(GradientStoreError, match="made with variant"):  # a pack is known by its file
        influence(llama_pair.variant, base=llama_pair.base, train=ROWS, gradients=kept, keep=200)
    with pytest.raises(AuditError, match="its base is needed"):
        influence(pack, train=ROWS)


def test_adapters_under_any_name(tmp_path: Path, llama_pair: Pair) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama_pair.base)
    settings: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "down_proj"]}
    adapted = make(model, tmp_path / "one", seed=3, **settings)
    adapted.add_adapter("mine", adapted.peft_config["default"])
    for name, parameter in adapted.named_parameters():
        if ".mine." in name:
            with torch.no_grad():
                parameter.copy_(adapted.get_parameter(name.replace(".mine.", ".default.")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save_pretrained(tmp_path / "two", selected_adapters=["mine"])
    both = [
        influence(path, base=llama_pair.base, train=ROWS, probe=PROBE, keep=100, full=True)
        for path in (tmp_path / "one", tmp_path / "two" / "mine")
    ]
    assert both[0].modules == 8
    assert np.array_equal(both[0].scores, both[1].scores)
    assert any("own factors" in note for note in both[0].notes)
    with pytest.raises(AuditError, match="its base is needed"):
        influence(tmp_path / "one", train=ROWS)


def test_adapters_that_cannot_be_audited(tmp_path: Path, llama_pair: Pair, monkeypatch: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama_pair.base)
    make(model, tmp_path / "words", r=2, target_modules=["embed_tokens"])
    with pytest.raises(AuditError, match="no linear module of the base is adapted"):
        influence(tmp_path / "words", base=llama_pair.base, train=ROWS, keep=100)
    make(model, tmp_path / "one", r=2, target_modules=["q_proj"])

    def fails(*_: Any) -> Any:
        raise ValueError("of another kind")

    monkeypatch.setattr("peft.PeftModel.from_pretrained", fails)
    with pytest.raises(AdapterError, match=r"PEFT cannot put .*: of another kind"):
        influence(tmp_path / "one", base=llama_pair.base, train=ROWS)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match="`peft`"):
        influence(tmp_path / "one", base=llama_pair.base, train=ROWS)


def test_classifiers_and_wrong_labels(classifier_pair: Pair) -> None:
    report = influence(
        classifier_pair.variant,
        base=classifier_pair.base,
        train=LABELLED,
        probe=LABELLED[:1],
        keep=500,
        damping="sweep",
    )
    assert report.task == "sequence-classification"
    assert set(report.auc) == {"self", "loss", "norm", "minus mean score"}
    assert report.damping in [damping for damping, _ in report.swept]
    assert dict(report.swept)[report.damping] == max(auc for _, auc in report.swept)
    assert report.auc["self"] == pytest.approx(dict(report.swept)[report.damping])
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(classifier_pair.variant).eval()
    for row, loss in zip(LABELLED, report.losses, strict=True):
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits
        assert loss == pytest.approx(F.cross_entropy(logits, torch.tensor([row["label"]])).item(), rel=1e-4)


def test_a_head_beside_the_encoder(bert_pair: Pair, tmp_path: Path) -> None:
    tensors = {name: torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape).clone()
               for name, (_, shape, data) in raw(bert_pair.variant).items()}  # fmt: skip
    head = {"head.weight": torch.randn(3, 32), "head.bias": torch.zeros(3)}
    save(tmp_path / "x", tensors | head, json.loads((bert_pair.variant / "config.json").read_text()))
    report = influence(tmp_path / "x", base=bert_pair.base, train=LABELLED, probe=LABELLED[:2], keep=500)
    assert report.task == "pooled-head"
    assert "head.bias" in report.left_out
    assert "head.weight" not in report.left_out
    names = ["head"]
    alone = influence(tmp_path / "x", base=bert_pair.base, train=LABELLED, modules=names, keep=1 << 20)
    assert (alone.modules, alone.size) == (1, 96)


def test_kept_gradients_are_not_computed_again(llama_pair: Pair, tmp_path: Path, monkeypatch: Any) -> None:
    kept, options = tmp_path / "g.grads", {"base": llama_pair.base, "keep": 200}
    first = influence(llama_pair.variant, train=ROWS[:8], gradients=kept, **options)
    whole = influence(llama_pair.variant, train=ROWS, gradients=kept, **options)
    fresh = influence(llama_pair.variant, train=ROWS, **options)
    np.testing.assert_allclose(whole.self_scores, fresh.self_scores, rtol=1e-3)
    monkeypatch.setattr(collect, "row_gradients", None)  # would fail if called
    again = influence(llama_pair.variant, train=ROWS[:8], gradients=kept, **options)
    np.testing.assert_allclose(again.self_scores, first.self_scores, rtol=1e-9)


def test_order_and_copies_of_rows(llama_pair: Pair) -> None:
    options: dict[str, Any] = {"base": llama_pair.base, "keep": 200, "probe": PROBE, "full": True, "top": 20}
    once = influence(llama_pair.variant, train=ROWS, **options)
    turned = influence(llama_pair.variant, train=ROWS[::-1], **options)
    assert once.scores is not None
    assert turned.scores is not None
    np.testing.assert_allclose(turned.scores[::-1], once.scores, atol=1e-3 * np.abs(once.scores).max())
    twice = influence(llama_pair.variant, train=ROWS + ROWS, **options)
    assert twice.scores is not None
    assert {row.copies for row in twice.probes[0].top} == {2}
    assert len(twice.probes[0].top) == 12
    assert np.array_equal(twice.scores[:12], twice.scores[12:])
    np.testing.assert_allclose(twice.self_scores[:12], once.self_scores, rtol=0.5)


def test_resumed_stores_have_the_same_bytes(llama_pair: Pair, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(store, "SHARD_BYTES", 5 * (2 * 200 + 40))  # five rows
    options: dict[str, Any] = {"base": llama_pair.base, "keep": 200, "train": ROWS}
    influence(llama_pair.variant, gradients=tmp_path / "a.grads", **options)
    real, calls = collect.row_gradients, []

    def dies(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(collect, "row_gradients", dies)
    with pytest.raises(KeyboardInterrupt):
        influence(llama_pair.variant, gradients=tmp_path / "b.grads", **options)
    monkeypatch.setattr(collect, "row_gradients", real)
    assert 0 < store.GradientStore.open(tmp_path / "b.grads").rows < 12
    influence(llama_pair.variant, gradients=tmp_path / "b.grads", **options)
    a, b = ({file.name: file.read_bytes() for file in (tmp_path / n).iterdir()} for n in ("a.grads", "b.grads"))
    assert a == b


def test_a_report_in_html_and_in_lines(llama_pair: Pair, tmp_path: Path) -> None:
    rows = [{"text": "a b <i>c</i> d"}, {"text": "e f g h i"}, {"text": "a b c"}]
    report = influence(llama_pair.variant, train=rows, probe=rows[2:], keep=200, top=2)
    write_report(tmp_path / "r.html", report)
    page = (tmp_path / "r.html").read_text()
    assert "a b &lt;i&gt;c&lt;/i&gt; d" in page
    assert "no proof" in page
    write_lines(tmp_path / "l.jsonl", report)
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert len(lines) == 2 + 2 + 2
    assert lines[0]["text"] == rows[report.probes[0].top[0].row]["text"]
    assert [line["probe"] for line in lines] == [0, 0, 0, 0, "self", "self"]
    assert report.probes[0].firsts["bm25"] in (0, 2)
    assert report.worst(1) == [int(np.argmin(report.mean_scores))]


def test_a_row_without_a_gradient_scores_zero(bert_pair: Pair, tmp_path: Path) -> None:
    """One class only: the loss is 0 whatever the weights are."""
    tensors = {name: torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape).clone()
               for name, (_, shape, data) in raw(bert_pair.variant).items()}  # fmt: skip
    head = {"head.weight": torch.ones(1, 32), "head.bias": torch.zeros(1)}
    save(tmp_path / "x", tensors | head, json.loads((bert_pair.variant / "config.json").read_text()))
    rows = [row | {"label": 0} for row in ROWS]
    report = influence(tmp_path / "x", base=bert_pair.base, train=rows, probe=rows[:1], keep=500)
    assert set(report.self_scores.tolist()) == {0.0}
    assert any("12 rows have a gradient of zero" in note for note in report.notes)


def test_a_broken_variant_names_the_rows(llama_pair: Pair, tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[0] = torch.nan
    model.save_pretrained(tmp_path / "x")
    with pytest.raises(AuditError, match="are not finite"):
        influence(tmp_path / "x", train=ROWS, keep=200)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"train": []}, "no training rows"),
        ({"train": [{"label": 1}]}, "row 0 of the training rows has neither"),
        ({"probe": [{"text": "a"}, 3]}, "row 1 of the probe rows has neither"),
        ({"train": ROWS[:1]}, "needs 2 or more"),
        (
            {"train": [*ROWS, {"input_ids": [4]}]},
            "row 12 of the training rows has nothing to predict among its first 1 tokens",
        ),
        ({"probe": [{"input_ids": [4]}]}, "row 0 of the probe rows has nothing to predict"),
        ({"train": [*ROWS, {"prompt": "a", "completion": ""}]}, "row 12 .* has nothing to predict"),
        ({"train": [*ROWS, {"prompt": "a b " * 40, "completion": "c"}]}, "row 12 .* its first 64 tokens"),
        ({"train": [*ROWS, {"prompt": "a b c", "completion": "d"}], "max_tokens": 3}, "row 12 .* its first 3 tokens"),
        ({"max_tokens": 0}, "max_tokens 0"),
        ({"train": [*ROWS, {"prompt": "a"}]}, "row 12 of the training rows has neither"),
        ({"damping": 0}, "above 0"),
        ({"damping": "sweep"}, "which rows are wrong"),
        ({"keep": 20}, "at least 60"),
        ({"mask": "none"}, "entry or neuron"),
        ({"reduction": "max"}, "mean or sum"),
        ({"top": 0}, "1 or more"),
        ({"at": 1.5}, "at is 1.5; 0, the base, to 1"),
        ({"at": float("nan")}, "at is nan"),
        ({"at": 0.25}, "so the base is needed"),
        ({"task": "x"}, "task is 'x'"),
        ({"task": "pooled-head"}, "the variant is of 'causal-lm'"),
        ({"modules": ["nope"]}, "no linear module `nope.weight`"),
        ({"memory_limit": 10}, "10 are allowed by the memory limit"),
    ],
)
def test_what_is_refused(llama_pair: Pair, given: dict[str, Any], words: str) -> None:
    with pytest.raises(AuditError, match=words):
        influence(llama_pair.variant, **({"train": ROWS, "probe": PROBE, "keep": 200} | given))


@pytest.mark.parametrize("label", [None, 3, -1, "1", True])
def test_labels_that_the_head_lacks(classifier_pair: Pair, label: Any) -> None:
    with pytest.raises(AuditError, match="row 2 of the training rows has label"):
        influence(classifier_pair.variant, train=[*LABELLED[:2], ROWS[0] | {"label": label}])


def test_an_encoder_has_no_loss(bert_pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="no loss of a row is known for BertModel"):
        influence(bert_pair.variant, train=ROWS)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(CalibrationError, match="has no rows"):
        influence(bert_pair.variant, train=tmp_path / "empty.jsonl")


def test_settings_of_another_store(llama_pair: Pair, tmp_path: Path) -> None:
    options: dict[str, Any] = {"train": ROWS, "gradients": tmp_path / "g.grads", "keep": 200}
    influence(llama_pair.variant, **options)
    for change in ({"seed": 1}, {"reduction": "sum"}, {"mask": "neuron"}, {"masks": 2}, {"keep": 300}):
        with pytest.raises(GradientStoreError, match="made with"):
            influence(llama_pair.variant, **options | change)


def test_the_function_shadows_its_package() -> None:
    from kinfold.audit.influence.mask import indices

    assert callable(influence)
    assert callable(indices)
