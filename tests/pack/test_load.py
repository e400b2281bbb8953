"""`load`: the model in memory answers as the restored directory's does, and as the variant where bits are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import kinfold

IDS = torch.tensor([[3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46]])


def answer(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result = model(input_ids=IDS)
    return result.last_hidden_state if "last_hidden_state" in result else result.logits


KINDS = {"llama_pair": "LlamaForCausalLM", "bert_pair": "BertModel", "classifier_pair": "BertForSequenceClassification"}


@pytest.mark.parametrize("codec", ["exact", "osd", "fold"])
@pytest.mark.parametrize("fixture", KINDS)
def test_logits_are_those_of_the_restored_directory(
    tmp_path: Path, request: pytest.FixtureRequest, fixture: str, codec: str
) -> None:
    pair = request.getfixturevalue(fixture)
    out = tmp_path / "v.kin.safetensors"
    kinfold.pack(*pair, out, codec=codec, budget=None if codec == "exact" else "1/2")
    kinfold.restore(out, pair.base, tmp_path / "restored")
    kind = getattr(transformers, KINDS[fixture])
    loaded = kinfold.load(out, pair.base)
    assert type(loaded) is kind
    assert not loaded.training
    restored, own = (kind.from_pretrained(folder).eval() for folder in (tmp_path / "restored", pair.variant))
    assert torch.equal(answer(loaded), answer(restored))
    assert torch.equal(answer(loaded), answer(own)) == (codec == "exact")
    bare = kind.from_pretrained(pair.base).eval() if fixture != "classifier_pair" else None
    if codec != "exact" and bare is not None:  # a lossy variant is nearer to the variant than the base is
        near, far = ((answer(own) - answer(model)).norm() for model in (loaded, bare))
        assert near < 0.7 * far


def test_tied_embeddings_stay_tied(tmp_path: Path, llama_pair: Any) -> None:
    kinfold.pack(*llama_pair, tmp_path / "v", codec="exact")
    model = kinfold.load(tmp_path / "v", llama_pair.base)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_dtype_is_the_variants_unless_asked(tmp_path: Path, llama_pair: Any) -> None:
    kinfold.pack(*llama_pair, tmp_path / "v", codec="exact")
    assert kinfold.load(tmp_path / "v", llama_pair.base).dtype == torch.float32
    half = kinfold.load(tmp_path / "v", llama_pair.base, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert list(tmp_path.iterdir()) == [tmp_path / "v"]


def test_a_grown_vocabulary_loads(tmp_path: Path, llama_pair: Any) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(llama_pair.base)
    torch.manual_seed(3)
    model.resize_token_embeddings(105, mean_resizing=False)
    model.save_pretrained(tmp_path / "grown")
    kinfold.pack(llama_pair.base, tmp_path / "grown", tmp_path / "v", codec="exact")
    loaded = kinfold.load(tmp_path / "v", llama_pair.base)
    assert loaded.config.vocab_size == 105
    assert torch.equal(answer(loaded), answer(model.eval()))


def test_a_restored_directory_has_the_tokenizer(tmp_path: Path, llama_pair: Any) -> None:
    kinfold.pack(*llama_pair, tmp_path / "v", codec="exact")
    kinfold.restore(tmp_path / "v", llama_pair.base, tmp_path / "restored")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "restored")
    assert tokenizer("a b z")["input_ids"] == [1, 2, 26]
