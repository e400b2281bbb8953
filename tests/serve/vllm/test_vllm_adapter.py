"""Which variants go as LoRA; PEFT on what was written answers as transformers on the restored directory."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM
from vllm_shelf import Shelf, drifted

from adapters import WEIGHTS, load, logits
from kinfold.family.peft_io import open_variant
from kinfold.pack.member import Base, Member
from kinfold.serve.vllm.adapter import Lora, RefusedError, check_names, flag_for, own_rank, write
from kinfold.serve.vllm.settings import Settings
from models import llama

SETTINGS = Settings("unused")


def opened(shelf: Shelf, name: str, member: str | None = None) -> Member:
    return open_variant(shelf.sources / name, Base.open(shelf.base), member)


def answers(directory: Path) -> torch.Tensor:
    return logits(LlamaForCausalLM.from_pretrained(directory))


def served(shelf: Shelf, folder: Path) -> torch.Tensor:
    return logits(load(LlamaForCausalLM.from_pretrained(shelf.base), folder))


@pytest.mark.parametrize(
    ("name", "member", "source"),
    [
        ("red.kin.safetensors", None, "red"),
        ("blue-adapter", None, "blue"),
        ("duo.kin.safetensors", "amber", "amber-unfolded"),
        ("red", None, "red"),
    ],
)
def test_low_rank_variants_go_whole(tmp_path: Path, shelf: Shelf, name: str, member: str | None, source: str) -> None:
    lora = write(opened(shelf, name, member), "it", tmp_path / "out", replace(SETTINGS, max_rank=32))
    torch.testing.assert_close(served(shelf, tmp_path / "out"), answers(shelf.sources / source), atol=2e-3, rtol=0)
    assert not torch.allclose(answers(shelf.base), answers(shelf.sources / source), atol=0.05)
    assert lora.lost < 1e-3
    assert not lora.left_out
    assert lora == Lora.read(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(shelf.base)
    assert config["r"] == lora.rank <= 32


def test_noise_is_no_lora(tmp_path: Path, shelf: Shelf) -> None:
    with pytest.raises(RefusedError, match="`it` is a `fold` pack") as refused:
        write(opened(shelf, "dense.kin.safetensors"), "it", tmp_path / "out", SETTINGS)
    assert "kinfold restore" in refused.value.hint
    assert isinstance(refused.value, ValueError)  # vLLM answers 400 with its words


def test_full_fine_tune_is_named_with_what_is_lost(tmp_path: Path, shelf: Shelf) -> None:
    settings = replace(SETTINGS, max_rank=1)
    with pytest.raises(
        RefusedError, match=r"of its delta's norm as a LoRA of rank 1, where 1\.0% may be lost"
    ) as refused:
        write(opened(shelf, "full.kin.safetensors"), "it", tmp_path / "out", settings)
    assert "layernorm.weight` and 3 more" in str(refused.value)
    assert "KINFOLD_VLLM_PARTIAL=1" in refused.value.hint


def test_share_of_the_norm_is_the_norms_share(tmp_path: Path, shelf: Shelf) -> None:
    base, own = (load_file(shelf.sources / name / "model.safetensors") for name in ("base", "full"))
    squares = {name: float((own[name].double() - base[name].double()).square().sum()) for name in base}
    norms = sum(square for name, square in squares.items() if "norm" in name)
    lora = write(opened(shelf, "full.kin.safetensors"), "it", tmp_path / "out", replace(SETTINGS, partial=True))
    assert f"({(norms / sum(squares.values())) ** 0.5:.2%} of the norm)" in " ".join(lora.left_out)
    assert f"{lora.lost:.2%} of its delta's norm is lost" in lora.sentence


def test_part_is_served_where_that_was_asked_for(tmp_path: Path, shelf: Shelf) -> None:
    lora = write(opened(shelf, "dense.kin.safetensors"), "it", tmp_path / "out", replace(SETTINGS, partial=True))
    assert lora.lost > 0.01


def test_factors_above_the_servers_rank_name_the_flag(tmp_path: Path, shelf: Shelf) -> None:
    variant = opened(shelf, "red.kin.safetensors")
    assert own_rank(variant) > 1
    with pytest.raises(RefusedError, match="rank 1 misses") as refused:
        write(variant, "it", tmp_path / "out", replace(SETTINGS, max_rank=1))
    assert "--max-lora-rank 8" in refused.value.hint
    assert "KINFOLD_VLLM_MAX_LORA_RANK=8" in refused.value.hint


def test_the_base_is_no_variant(tmp_path: Path, shelf: Shelf) -> None:
    with pytest.raises(RefusedError, match="equal to the base"):
        write(opened(shelf, "base"), "it", tmp_path / "out", SETTINGS)


def test_norms_alone_are_nothing_that_a_lora_carries(tmp_path: Path, shelf: Shelf) -> None:
    model: Any = LlamaForCausalLM.from_pretrained(shelf.base)
    with torch.no_grad():
        model.model.norm.weight += 0.5
    model.save_pretrained(tmp_path / "normed")
    with pytest.raises(RefusedError, match="cannot go as LoRA"):
        write(open_variant(tmp_path / "normed", Base.open(shelf.base)), "it", tmp_path / "out", SETTINGS)


def test_resized_vocabulary_is_refused(tmp_path: Path, shelf: Shelf) -> None:
    model: Any = drifted(LlamaForCausalLM.from_pretrained(shelf.base), 7)
    model.resize_token_embeddings(101)
    model.save_pretrained(tmp_path / "longer")
    settings = replace(SETTINGS, tolerance=1.0)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shelf.base / file, tmp_path / "longer" / file)
    with pytest.raises(RefusedError, match="vocab_size differ"):
        write(open_variant(tmp_path / "longer", Base.open(shelf.base)), "it", tmp_path / "out", settings)
    config = json.loads((tmp_path / "longer" / "config.json").read_text())
    (tmp_path / "longer" / "config.json").write_text(json.dumps(config | {"vocab_size": 99}))
    with pytest.raises(RefusedError, match=r"would lose tensors that the base lacks.*new"):
        write(open_variant(tmp_path / "longer", Base.open(shelf.base)), "it", tmp_path / "out", settings)


def test_config_that_computes_otherwise_is_refused(tmp_path: Path, shelf: Shelf) -> None:
    shutil.copytree(shelf.sources / "red", tmp_path / "red")
    config = json.loads((tmp_path / "red" / "config.json").read_text())
    (tmp_path / "red" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    with pytest.raises(RefusedError, match=r"config of its own.*rms_norm_eps"):
        write(open_variant(tmp_path / "red", Base.open(shelf.base)), "it", tmp_path / "out", SETTINGS)
    partial = replace(SETTINGS, partial=True)
    lora = write(open_variant(tmp_path / "red", Base.open(shelf.base)), "it", tmp_path / "out", partial)
    assert lora.notes == ["its config has other rms_norm_eps; vLLM computes by the base's"]


def test_texts_of_its_own_are_told(tmp_path: Path, shelf: Shelf) -> None:
    shutil.copytree(shelf.sources / "red", tmp_path / "red")
    (tmp_path / "red" / "chat_template.jinja").write_text("{{ messages }}")
    lora = write(open_variant(tmp_path / "red", Base.open(shelf.base)), "it", tmp_path / "out", SETTINGS)
    assert lora.notes == ["its own chat_template.jinja is not used; vLLM has the base's for all"]


@pytest.mark.parametrize("prefix", ["base_model.model.language_model.", "base_model.model.model.model."])
def test_names_that_the_base_does_not_have_are_refused(tmp_path: Path, shelf: Shelf, prefix: str) -> None:
    write(opened(shelf, "red.kin.safetensors"), "it", tmp_path / "out", SETTINGS)
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    save_file(
        {prefix + key.removeprefix("base_model.model."): t for key, t in tensors.items()}, tmp_path / "out" / WEIGHTS
    )
    base = Base.open(shelf.base).checkpoint
    with pytest.raises(RefusedError, match=r"adapts 14 modules that .* does not have"):
        check_names(tmp_path / "out", base, "it", 16)


def test_ranks_and_damage_are_checked_in_what_was_written(tmp_path: Path, shelf: Shelf) -> None:
    lora = write(opened(shelf, "red.kin.safetensors"), "it", tmp_path / "out", SETTINGS)
    base = Base.open(shelf.base).checkpoint
    with pytest.raises(RefusedError, match=f"has rank {lora.rank}, and this server takes 1"):
        check_names(tmp_path / "out", base, "it", 1)
    (tmp_path / "out" / WEIGHTS).unlink()
    with pytest.raises(RefusedError, match="`it`"):
        check_names(tmp_path / "out", base, "it", 16)


def test_base_saved_under_other_names_is_refused(tmp_path: Path) -> None:
    """A bare LlamaModel: the class that its config names spells its modules otherwise than the checkpoint."""
    model = llama(tie_word_embeddings=False)
    variant = drifted(model, 1)
    for name, one in (("base", model), ("variant", variant)):
        one.save_pretrained(tmp_path / name)
        tensors = load_file(tmp_path / name / "model.safetensors")
        bare = {key.removeprefix("model."): t for key, t in tensors.items()}
        save_file(bare, tmp_path / name / "model.safetensors", {"format": "pt"})
    with pytest.raises(RefusedError, match="does not have by these names"):
        write(open_variant(tmp_path / "variant", Base.open(tmp_path / "base")), "it", tmp_path / "out", SETTINGS)


@pytest.mark.parametrize(("rank", "flag"), [(1, 1), (2, 8), (16, 16), (257, 320), (513, None)])
def test_flag_is_the_least_that_fits(rank: int, flag: int | None) -> None:
    assert flag_for(rank) == flag
