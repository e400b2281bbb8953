"""OjaKV: exact at full rank, rows alone as in a batch, bytes as they lie, and retrieval on the wired model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import KINDS, decoder, padded, prompt
from transformers import DynamicCache
from wired import shifted

from kinfold.errors import CacheError
from kinfold.serve.cache import KVBasis, OjaKVCache, OjaKVConfig, attached, calibrate, parse_cache
from kinfold.serve.cache.lowrank_layer import OjaKVLayer
from models import llama

BUSY = OjaKVConfig(  # every mechanism within a few tokens
    sink_tokens=2,
    recent_tokens=8,
    whole_tokens=6,
    min_update_tokens=0,
    eta_decode=0.3,
    decode_period=8,
    decode_keep=2,
    query_weight=True,
    query_window=8,
)
CONFIGS = {
    "busy": BUSY,
    "reconstructed": BUSY.model_copy(update={"prefill": "reconstructed", "pool": 4, "update": "published"}),
    "bare": OjaKVConfig.preset("static", decode_period=4),
    "share": OjaKVConfig(whole_tokens=0.2, recent_tokens=4, min_update_tokens=20, decode_period=16, trigger=0.5),
    "positional": OjaKVConfig(keep="positional", recent_tokens=5, whole_tokens=3, sink_tokens=1, eta_prefill=0),
}


def basis_for(model: Any, ratio: float = 1.0) -> KVBasis:
    return calibrate(model, [prompt(1, 60, seed=3)], ratio=ratio)


def generated(model: Any, cache: Any, beams: int = 1, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """40 tokens after left-padded prompts: ids, and the logits of every step."""
    batch = padded([prompt(1, n, seed=n)[0] for n in (50, 37, 44)[:rows]])
    out = model.generate(
        **batch,
        past_key_values=cache,
        max_new_tokens=40,
        num_beams=beams,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_full_rank_is_the_full_cache(kind: str, attention: str, beams: int) -> None:
    model = decoder(kind, attention)
    basis = basis_for(model)
    wanted, logits = generated(model, DynamicCache(config=model.config), beams)
    with OjaKVCache(model, basis, BUSY).attached(model) as cache:
        found, ours = generated(model, cache, beams)
    assert torch.equal(found, wanted)
    torch.testing.assert_close(ours, logits, atol=1e-4, rtol=0)
    assert cache.report().counts["bases_of_its_own"] > 5


@pytest.mark.parametrize("name", CONFIGS)
def test_full_rank_with_any_options(name: str) -> None:
    model = decoder("qwen3")
    wanted, logits = generated(model, DynamicCache(config=model.config))
    with OjaKVCache(model, basis_for(model), CONFIGS[name]).attached(model) as cache:
        found, ours = generated(model, cache)
    assert torch.equal(found, wanted)
    torch.testing.assert_close(ours, logits, atol=1e-4, rtol=0)
    assert cache.report().kinds["coordinates"] > 0


def stepwise(model: Any, cache: Any, batch: dict[str, torch.Tensor], later: torch.Tensor) -> torch.Tensor:
    """Logits after the prompt and after each of `later` (rows, n), (rows, n + 1, vocabulary)."""
    mask, steps = batch["attention_mask"], []

    def places() -> torch.Tensor:  # as `generate` counts them: a row's own, without its padding
        return (mask.cumsum(1) - 1).clamp(min=0)

    with torch.inference_mode():
        first = places()[:, -batch["input_ids"].shape[1] :]
        steps.append(model(**batch, position_ids=first, past_key_values=cache).logits[:, -1:])
        for token in later.mT[..., None].unbind():
            mask = torch.cat([mask, torch.ones_like(token)], 1)
            place = places()[:, -1:]
            steps.append(model(token, attention_mask=mask, position_ids=place, past_key_values=cache).logits)
    return torch.cat(steps, 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_padded_row_is_the_row_alone(name: str, attention: str) -> None:
    model, config = decoder("llama", attention), CONFIGS[name].model_copy(update={"trigger": 0.9})
    if isinstance(config.whole_tokens, float):  # a share is of the padded length, the same for all rows
        config = config.model_copy(update={"whole_tokens": 9})
    basis, later = basis_for(model, 0.4), prompt(3, 30, seed=9)
    rows = [prompt(1, n, seed=n)[0] for n in (60, 19, 44)]
    with OjaKVCache(model, basis, config).attached(model) as cache:
        together = stepwise(model, cache, padded(rows), later)
        assert max(cache.report().residual.values()) > 0.05
    for number, row in enumerate(rows):
        with OjaKVCache(model, basis, config).attached(model) as cache:
            alone = stepwise(model, cache, padded([row]), later[number : number + 1])
        torch.testing.assert_close(together[number], alone[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("pieces", [(50, 5, 1, 1), (3, 47, 5, 2), (17, 40)])
def test_a_text_in_pieces_is_the_text_in_one(pieces: tuple[int, ...]) -> None:
    """Second turns and chunked prompts, the first shorter than what stays whole."""
    model = decoder()
    ids = prompt(2, sum(pieces))
    with torch.inference_mode():
        wanted = model(ids).logits
        with OjaKVCache(model, basis_for(model), BUSY).attached(model) as cache:
            found = [model(part, past_key_values=cache).logits for part in ids.split(list(pieces), 1)]
    torch.testing.assert_close(torch.cat(found, 1), wanted, atol=1e-4, rtol=0)


class Watched:
    """Keeps what one layer was given, beside what it gives back."""

    def __init__(self, cache: OjaKVCache) -> None:
        self.layer: Any = cache.layers[1]
        self.keys: list[torch.Tensor] = []
        self.query = torch.empty(0)
        read, update = self.layer.read, self.layer.update

        def updated(keys: torch.Tensor, *rest: Any) -> Any:
            self.keys.append(keys)
            return update(keys, *rest)

        def looked(query: torch.Tensor, key: torch.Tensor, *rest: Any) -> Any:
            self.query, self.key = query, key
            return read(query, key, *rest)

        self.layer.read, self.layer.update = looked, updated


def test_the_error_of_a_score_is_bounded_by_the_residual() -> None:
    model = decoder()
    cache = OjaKVCache(model, basis_for(model, 0.4), BUSY)
    watched = Watched(cache)
    with cache.attached(model):
        stepwise(model, cache, padded([prompt(1, 60, seed=5)[0]]), prompt(1, 20))
    given, back, query = torch.cat(watched.keys, 2), watched.key, watched.query
    layer: OjaKVLayer = watched.layer
    whole = torch.zeros(1, 2, 80, dtype=torch.bool)
    whole[:, :, sum(block.tokens for block in layer.blocks) :] = True
    bound, start = [], 0
    for block in layer.blocks:
        basis, tokens = layer.bases[block.version][0].expand(1, -1, -1, -1), given[:, :, start : start + block.tokens]
        left = tokens.double() - tokens.double() @ basis.double() @ basis.double().mT
        whole[:, :, start : start + block.tokens].scatter_(2, block.at.long(), True)
        bound.append(left.norm(dim=-1))
        start += block.tokens
    length = query.norm(dim=-1)  # (1, 4, 1): two query heads share a KV head
    limits = torch.cat([torch.cat(bound, 2), torch.zeros(1, 2, 80 - start)], 2).repeat_interleave(2, 1) * length / 4
    error = ((query @ (back - given).repeat_interleave(2, 1).mT) / 4).squeeze(2).abs()
    assert (error <= limits + 1e-5).all()
    assert error.max() > 0.01
    assert torch.equal(back[whole], given[whole])
    largest = cache.report().counts["largest_key_residual"]
    stored = torch.cat(bound, 2)[~whole[:, :, :start]].max()
    assert largest >= float(stored) - 1e-5


def owned(value: Any, shared: set[int]) -> dict[int, torch.Tensor]:
    """Every tensor that hangs on an object, but those that are shared."""
    if isinstance(value, torch.Tensor):
        return {} if id(value) in shared else {id(value): value}
    inner = value if isinstance(value, (list, tuple)) else vars(value).values() if hasattr(value, "__dict__") else ()
    return {
        key: tensor for part in inner if not isinstance(part, KVBasis) for key, tensor in owned(part, shared).items()
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_are_those_of_everything_it_holds(name: str) -> None:
    model = decoder("hybrid")
    basis = basis_for(model, 0.5)
    shared = {id(tensor) for pair in (basis.key, basis.value) for tensor in pair.values()}
    with OjaKVCache(model, basis, CONFIGS[name]).attached(model) as cache:
        stepwise(model, cache, padded([prompt(1, 60)[0], prompt(1, 41)[0]]), prompt(2, 20))
    shared |= {id(tensor) for pair in basis._moved.values() for tensor in pair}
    held = [tensor for n in (0, 2) for tensor in owned(cache.layers[n], shared).values()]
    report = cache.report()
    assert report.bytes == sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert report.full_bytes == 2 * 2 * 2 * 2 * 80 * 16 * 4
    assert report.ratio == report.bytes / report.full_bytes
    assert report.shared_bytes == basis.nbytes == 2 * 2 * 2 * 16 * 8 * 4
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    assert sum(storages.values()) <= report.bytes * 1.1  # no view keeps a whole prompt alive
    assert set(report.others) == {1, 3}


def test_no_view_keeps_a_prompt_alive() -> None:
    model = decoder()
    cache = OjaKVCache(model, basis_for(model, 0.5), BUSY.model_copy(update={"eta_prefill": 0.0}))
    with cache.attached(model), torch.inference_mode():
        model(prompt(1, 300), past_key_values=cache)
        layer: Any = cache.layers[0]
        assert layer.keys.untyped_storage().nbytes() == layer.keys.numel() * 4 == 2 * 8 * 16 * 4
        for token in prompt(1, 8).split(1, 1):
            model(token, past_key_values=cache)
        assert layer.keys.untyped_storage().nbytes() == layer.keys.numel() * 4 == 2 * 8 * 16 * 4


@pytest.mark.parametrize("weighted", [True, False])
def test_the_whole_tokens_are_the_best_by_score(weighted: bool) -> None:
    """numpy on what the layer was given: residual norms over their means, times the window's attention."""
    model = decoder()
    basis = basis_for(model, 0.4)
    cache = OjaKVCache(model, basis, BUSY.model_copy(update={"eta_prefill": 0.0, "query_weight": weighted}))
    layer: Any = cache.layers[1]
    given: list[Any] = []
    read = layer.read
    layer.read = lambda *args: (given.extend(args), read(*args))[1]
    with cache.attached(model), torch.inference_mode():
        model(prompt(1, 60), past_key_values=cache)
    query, key, value = (t[0].double().numpy() for t in given[:3])
    for head in range(2):
        score = np.zeros(52)
        for half, bases in ((key, basis.key), (value, basis.value)):
            u = bases[1][head].double().numpy()
            left = np.linalg.norm(half[head, :52] - half[head, :52] @ u @ u.T, axis=1)
            score += left / left.mean()
        if weighted:
            attention = np.zeros(60)
            for one in (2 * head, 2 * head + 1):
                for place in range(52, 60):
                    scores = np.exp(query[one, place] @ key[head, : place + 1].T / 4)
                    attention[: place + 1] += scores / scores.sum()
            score *= attention[:52]
        score[:2] = np.inf
        assert layer.blocks[0].at[0, head].tolist() == sorted(np.argsort(-score)[:8].tolist())


def test_padding_in_the_tail_is_not_counted() -> None:
    """A row with fewer real tokens than stay whole at the end: its padding is stored, and never as a token."""
    model = decoder()
    with OjaKVCache(model, basis_for(model, 0.4), BUSY).attached(model) as cache:
        stepwise(model, cache, padded([prompt(1, 60)[0], prompt(1, 3)[0]]), prompt(2, 20))
        layer: Any = cache.layers[0]
        whole = sum(block.tokens for block in layer.blocks)
        assert layer.stored.tolist() == [whole, whole - 57]
        first = layer.blocks[1].at[1]  # of the block that holds the row's first tokens: five of padding come before
        assert {5, 6} <= set(first[0].tolist())


def test_rows_that_change_places_keep_their_state() -> None:
    """As beam search does, before a short row's first tokens are stored."""
    model, found = decoder(), []
    basis, later = basis_for(model, 0.4), prompt(2, 30, seed=9)
    rows = [prompt(1, 60)[0], prompt(1, 4)[0]]
    for order in ([0, 1], [1, 0]):
        batch = padded([rows[n] for n in order])
        with OjaKVCache(model, basis, BUSY).attached(model) as cache:
            stepwise(model, cache, batch, later[:, :0])
            if order == [1, 0]:
                cache.reorder_cache(torch.tensor(order))  # type: ignore[arg-type]
            mask = torch.cat([padded(rows)["attention_mask"], torch.ones(2, 1, dtype=torch.int64)], 1)
            found.append(stepwise(model, cache, {"input_ids": later[:, :1], "attention_mask": mask}, later[:, 1:]))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)


def test_residual_energy_is_what_is_lost() -> None:
    model = decoder()
    cache = OjaKVCache(model, basis_for(model, 0.4), OjaKVConfig.preset("static", decode_period=0))
    watched = Watched(cache)
    with cache.attached(model), torch.inference_mode():
        model(prompt(1, 60), past_key_values=cache)
        model(prompt(1, 1), past_key_values=cache)
    keys = watched.keys[0].double()
    lost = (watched.key[:, :, :60].double() - keys).square().sum() / keys.square().sum()
    layer: Any = cache.layers[1]
    assert layer.energy[0][0] / layer.energy[0][1] == pytest.approx(float(lost), rel=1e-4)
    shares = [a / b for a, b in layer.energy]
    assert cache.report().residual[1] == pytest.approx(sum(shares) / 2)


def test_blocks_keep_the_basis_they_were_written_with() -> None:
    model = decoder()
    cache = OjaKVCache(model, basis_for(model, 0.4), BUSY)
    layer: Any = cache.layers[1]
    with cache.attached(model), torch.inference_mode():
        model(prompt(1, 60), past_key_values=cache)
        before = [half.clone() for half in layer._reconstructed()]
        first = layer.blocks[0].tokens
        for token in prompt(1, 64, seed=8).split(1, 1):
            model(token, past_key_values=cache)
        after = layer._reconstructed()
    assert len(layer.bases) == 9
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:, :, :first], new[:, :, :first])
    assert not torch.equal(layer.bases[1][0], layer.bases[8][0])


def test_reset_is_a_fresh_cache() -> None:
    model = decoder()
    basis, batch, later = basis_for(model, 0.4), padded([prompt(1, 60)[0], prompt(1, 33)[0]]), prompt(2, 20)
    with OjaKVCache(model, basis, BUSY).attached(model) as cache:
        stepwise(model, cache, padded([prompt(1, 44, seed=6)[0]]), prompt(1, 20))
        cache.reset()
        again = stepwise(model, cache, batch, later)
    with OjaKVCache(model, basis, BUSY).attached(model) as cache:
        fresh = stepwise(model, cache, batch, later)
    assert torch.equal(again, fresh)


def test_sinks_of_a_short_prompt_stay_whole() -> None:
    """A prompt shorter than what stays whole is stored with the generated tokens, sinks first."""
    model = decoder()
    cache = OjaKVCache(model, basis_for(model, 0.4), BUSY)
    with cache.attached(model):
        stepwise(model, cache, padded([prompt(1, 5)[0]]), prompt(1, 2))
        assert "nothing is compressed" in cache.report().notes[0]
        cache.reset()
        stepwise(model, cache, padded([prompt(1, 5)[0]]), prompt(1, 30))
    for layer in cache.layers:
        assert (layer.blocks[0].at[..., :2] == torch.tensor([0, 1])).all()  # type: ignore[attr-defined]
        assert layer.blocks[1].at.shape[2] == 2  # type: ignore[attr-defined]
    assert not any("nothing" in note for note in cache.report().notes)


def test_a_long_prompt_turns_the_basis_and_a_short_one_does_not() -> None:
    model = decoder()
    basis, config = basis_for(model, 0.4), BUSY.model_copy(update={"min_update_tokens": 40, "eta_decode": 0.0})
    batch = padded([prompt(1, 60)[0], prompt(1, 33)[0]])
    with OjaKVCache(model, basis, config).attached(model) as cache:
        stepwise(model, cache, batch, prompt(2, 20))
        keys = cache.layers[0].bases[0][0]  # type: ignore[attr-defined]
        assert not torch.equal(keys[0], basis.key[0])
        assert torch.equal(keys[1], basis.key[0])
        cache.reset()
        stepwise(model, cache, padded([prompt(1, 33)[0]]), prompt(1, 20))
        assert "bases" not in cache.report().kinds


@pytest.mark.parametrize(("trigger", "versions"), [(None, 3), (0.0, 3), (1e9, 1)])
def test_the_trigger(trigger: float | None, versions: int) -> None:
    model = decoder()
    config = BUSY.model_copy(update={"trigger": trigger, "eta_prefill": 0.0, "decode_period": 10})
    with OjaKVCache(model, basis_for(model, 0.4), config).attached(model) as cache:
        stepwise(model, cache, padded([prompt(1, 30)[0]]), prompt(1, 20))
    assert len(cache.layers[0].bases) == versions  # type: ignore[attr-defined]


def test_bases_that_cost_more_than_they_save_are_told() -> None:
    model = decoder()
    notes = []
    for eta in (0.05, 0.0):
        config = OjaKVConfig(decode_period=8, recent_tokens=8, decode_keep=0, eta_decode=eta)
        with OjaKVCache(model, basis_for(model, 0.8), config).attached(model) as cache:
            stepwise(model, cache, padded([prompt(1, 20)[0]]), prompt(1, 60))
        notes.append(
            (cache.report().ratio_16bit > 1, [note for note in cache.report().notes if "eta_decode=0" in note])
        )
    assert notes[0][0]
    assert len(notes[0][1]) == 1
    assert notes[1] == (False, [])


def test_16_bits() -> None:
    """Storage in bfloat16, directions in float32: at full rank the error is that of the storage."""
    model = decoder().to(torch.bfloat16)
    basis = basis_for(model)
    cache = OjaKVCache(model, basis, OjaKVConfig.preset("static", decode_period=0))
    watched = Watched(cache)
    with cache.attached(model), torch.inference_mode():
        model(prompt(1, 60), past_key_values=cache)
        model(prompt(1, 1), past_key_values=cache)
    given = watched.keys[0].double()
    assert float((watched.key[:, :, :60].double() - given).norm() / given.norm()) < 0.005
    report = cache.report()
    assert report.kinds["coordinates"] == 2 * 2 * 2 * 60 * 16 * 2
    assert report.ratio_16bit == report.ratio
    wide = OjaKVCache(decoder(), basis, OjaKVConfig.preset("static", decode_period=0))
    assert wide.report().ratio_16bit == 1.0


def test_ratio_at_16_bits_is_that_of_a_16_bit_model() -> None:
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = decoder().to(dtype)
        with OjaKVCache(model, basis_for(model, 0.5), BUSY).attached(model) as cache:
            stepwise(model, cache, padded([prompt(1, 60)[0], prompt(1, 41)[0]]), prompt(2, 20))
        found.append(cache.report())
    assert found[0].ratio_16bit == found[1].ratio_16bit == found[1].ratio
    assert found[0].ratio < found[0].ratio_16bit


def test_the_right_answer_survives_a_shift_of_domain(wired: Any, wired_basis: KVBasis) -> None:
    """Whole tokens by residual help, Oja on top of them helps more: rank 8 of 64 for keys, values whole."""

    prompts = list(shifted(150))
    ids, answers = torch.cat([ids for ids, _ in prompts]), torch.tensor([answer for _, answer in prompts])

    def recall(config: OjaKVConfig | None) -> float:
        basis = wired_basis.cut(8 / 64, 1.0)
        cache: Any = DynamicCache(config=wired.config) if config is None else OjaKVCache(wired, basis, config)
        with attached(cache, wired), torch.inference_mode():
            wired(ids[:, :-2], past_key_values=cache)  # the question comes after the compression
            found = wired(ids[:, -2:], past_key_values=cache).logits[:, -1].argmax(-1)
        return float((found == answers).float().mean())

    part = {"min_update_tokens": 0, "recent_tokens": 8, "whole_tokens": 24}
    static = recall(OjaKVConfig.preset("static"))
    by_residual = recall(OjaKVConfig(**part, eta_prefill=0))
    assert static < 0.5
    assert by_residual > static + 0.2
    assert recall(OjaKVConfig(**part)) > by_residual + 0.08
    assert recall(None) == 1.0


def test_a_basis_of_another_shape_is_refused() -> None:
    model = decoder()
    basis = basis_for(llama(head_dim=16, num_hidden_layers=3))
    with pytest.raises(CacheError, match=r"3 layers \(0 to 2\) of 2 KV heads of 16, the model has 2 layers") as refused:
        OjaKVCache(model, basis)
    assert "kinfold kv calibrate" in refused.value.hint


def test_heads_that_the_config_does_not_tell_are_checked_too() -> None:
    model = decoder()
    basis = basis_for(model)
    wrong = KVBasis({n: half[:, :8, :8] for n, half in basis.key.items()}, basis.value, {}, {})
    cache = OjaKVCache(model, basis)
    for layer in cache.layers:
        layer.basis = wrong  # type: ignore[attr-defined]
    with cache.attached(model), pytest.raises(CacheError, match="basis of layer 0"):
        model(prompt(1, 50), past_key_values=cache)


def test_the_basis_of_another_base_is_named_once(tmp_path: Path) -> None:
    model = decoder()
    model.save_pretrained(tmp_path / "m")
    loaded = type(model).from_pretrained(tmp_path / "m")
    basis = basis_for(loaded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OjaKVCache(loaded, basis)
        OjaKVCache(model, basis)  # of no directory: nothing is known
    decoder(seed=1).save_pretrained(tmp_path / "n")
    with pytest.warns(UserWarning, match="kinfold kv drift"):
        OjaKVCache(type(model).from_pretrained(tmp_path / "n"), basis)


def test_as_text(tmp_path: Path) -> None:
    model = decoder()
    basis_for(model).save(tmp_path / "b")
    made = parse_cache(
        f"ojakv:basis={tmp_path / 'b'},ratio=.5,value_ratio=.75,preset=hybrid,whole_tokens=.1,trigger=none"
    )
    cache = made.make(model, None)
    assert isinstance(cache, OjaKVCache)
    assert cache.config == OjaKVConfig.preset("hybrid", whole_tokens=0.1)
    assert (cache.basis.key[0].shape[2], cache.basis.value[0].shape[2]) == (8, 12)
    for text, reason in (
        ("ojakv", "needs a basis"),
        (f"ojakv:basis={tmp_path / 'b'},ratio=x", "no number"),
        (f"ojakv:basis={tmp_path / 'b'},preset=x", "no preset"),
        (f"ojakv:basis={tmp_path / 'b'},rank=3", "no option `rank`; it has basis, preset"),
        (f"ojakv:basis={tmp_path / 'b'},recent_tokens=-3", "`recent_tokens` of the cache `ojakv`"),
    ):
        with pytest.raises(CacheError, match=reason):
            parse_cache(text)
