"""A user's mistakes with families: a clear error that says what to do, and nothing half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import Family

import kinfold
from kinfold.errors import (
    BudgetError,
    CheckpointError,
    CodecError,
    FamilyError,
    KinfoldError,
    OutputError,
    PackError,
    WrongBaseError,
)
from kinfold.family.fold import fold
from kinfold.family.unfold import add_member, remove_member, unfold
from models import perturbed, pico, save


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder of its own: whatever an error leaves behind is in it."""
    folder = tmp_path / "bare"
    folder.mkdir()
    return folder


def refused(kind: type[KinfoldError], match: str, folder: Path, members: Any, **options: Any) -> KinfoldError:
    """The error that `fold` gives, after a look at what it left behind."""
    with pytest.raises(kind, match=match) as caught:
        fold(members, folder / "f", **options)
    assert list(folder.iterdir()) == []
    return caught.value


OPTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"method": "ties"}, "no method is called `ties`; there are auto, rmm, jd, truncsvd, packs", "--method auto"),
    ({"preset": "best"}, "no preset is called `best`; there is `paper`", "--preset paper"),
    ({"directions": -1}, "`directions` must be a whole number from 0, got -1", "--directions 2"),
    ({"directions": 1.5}, "`directions` must be a whole number from 0, got 1.5", "--directions 2"),
    ({"directions": True}, "`directions` must be a whole number from 0, got True", "--directions 2"),
    ({"directions": 1, "method": "jd"}, "`directions` belong to `rmm`, not to `jd`", "--method rmm"),
    ({"directions": 1, "method": "packs"}, "`directions` belong to `rmm`, not to `packs`", "--method rmm"),
    ({"preset": "paper", "method": "truncsvd"}, "`directions` belong to `rmm`, not to `truncsvd`", "--method rmm"),
    ({"rank": 0}, "`rank` must be a whole number from 1, or `auto`, got 0", "--rank 16"),
    ({"rank": "most"}, "`rank` must be a whole number from 1, or `auto`, got 'most'", "--rank 16"),
    ({"dtype": "bfloat16"}, "`dtype` is float16 or float32, got 'bfloat16'", "--dtype float16"),
    ({"method": "packs", "low_rank": True}, "members kept as packs are no LoRAs", "--low-rank"),
    ({"directions": 0}, "with 0 directions only the mean of the factors is kept", "--directions 1"),
    ({"directions": 2}, "2 directions of rank 16 for 3 members cost more .* as much as 1.68", "--directions 1"),
    ({"directions": 99}, "99 directions of rank 16 for 3 members", "--method truncsvd"),
    ({"budget": "gain=0.9"}, "`gain=0.9` is no budget of a family", "--budget"),
    ({"budget": "rank:4"}, "`rank:4` is no budget of a family", "--budget"),
]


@pytest.mark.parametrize(("options", "match", "hint"), OPTIONS)
def test_options_that_cannot_be(trees: Family, bare: Path, options: dict[str, Any], match: str, hint: str) -> None:
    error = refused(FamilyError, match, bare, trees.members, base=trees.base, **options)
    assert hint in error.hint


def test_two_members_leave_no_room_for_a_direction(trees: Family, bare: Path) -> None:
    two = dict(list(trees.members.items())[:2])
    error = refused(FamilyError, "as much as 0.889", bare, two, base=trees.base, directions=1)
    assert error.hint == "--method truncsvd"


def test_one_member_has_no_direction_to_share(trees: Family, bare: Path) -> None:
    name, path = next(iter(trees.members.items()))
    for options in ({"preset": "paper"}, {"directions": 1}):
        refused(FamilyError, "one member has nothing to share", bare, {name: path}, base=trees.base, **options)


def test_no_members(trees: Family, bare: Path) -> None:
    assert "A B C" in refused(FamilyError, "at least one member", bare, [], base=trees.base).hint


def test_two_members_of_one_name(trees: Family, bare: Path, tmp_path: Path) -> None:
    twin = save(tmp_path / "elsewhere" / "ash", perturbed(pico(), 9))
    refused(FamilyError, "two members are called `ash`", bare, [trees.members["ash"], twin], base=trees.base)


@pytest.mark.parametrize("name", ["a#b", "a/b", "a\\b", "x" * 256, "nul\0"])
def test_names_that_no_member_can_have(trees: Family, bare: Path, name: str) -> None:
    refused(FamilyError, "a member cannot be called", bare, {name: trees.members["ash"]}, base=trees.base)


@pytest.mark.parametrize("codec", ["fold", "dare"])
@pytest.mark.parametrize("method", ["rmm", "jd", "truncsvd"])
def test_packs_of_noise_have_no_low_rank(trees: Family, bare: Path, tmp_path: Path, codec: str, method: str) -> None:
    kinfold.pack(trees.base, trees.members["ash"], tmp_path / "noisy", codec=codec, budget="1/8")
    given = [tmp_path / "noisy", trees.members["birch"]]
    error = refused(FamilyError, f"`noisy` is a `{codec}` pack", bare, given, base=trees.base, method=method)
    assert "--method packs" in error.hint


@pytest.mark.parametrize(("method", "kind"), [("rmm", FamilyError), ("packs", CodecError)])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_member_that_is_not_finite(
    trees: Family, bare: Path, tmp_path: Path, method: str, kind: type[KinfoldError], value: str
) -> None:
    tensors = perturbed(pico(), 5)
    tensors["layer.1.weight"][2, 3] = float(value)
    given = [trees.members["ash"], save(tmp_path / "poor", tensors)]
    error = refused(kind, "NaN or infinity", bare, given, base=trees.base, method=method)
    assert "`poor`" in str(error)
    assert "`layer.1.weight`" in str(error)
    assert "leave it out" in error.hint


def test_a_pack_whose_factors_are_not_finite(
    trees: Family, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kinfold.pack.members import PackMember

    kinfold.pack(trees.base, trees.members["ash"], tmp_path / "v", codec="truncsvd", budget="1/8")
    own: Any = PackMember.factors
    monkeypatch.setattr(PackMember, "factors", lambda member, name: tuple(f / 0 for f in own(member, name)))
    refused(FamilyError, "of `v` holds NaN or infinity", bare, [tmp_path / "v"], base=trees.base, method="jd")


def test_members_of_another_base(trees: Family, bare: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other", pico(seed=5))
    kinfold.pack(other, save(tmp_path / "variant", perturbed(pico(seed=5))), tmp_path / "stray", codec="exact")
    error = refused(
        WrongBaseError, "was made from `other` with fingerprint", bare, [tmp_path / "stray"], base=trees.base
    )
    assert "one base" in error.hint
    foreign = save(tmp_path / "foreign", pico(shapes={f"h.{n}.w": (32, 32) for n in range(4)}))
    refused(CheckpointError, "is no fine-tune of", bare, [foreign], base=trees.base)


def test_what_is_not_there(trees: Family, bare: Path) -> None:
    refused(CheckpointError, "there is no `.*nowhere`; a member is", bare, [bare / "nowhere"], base=trees.base)
    refused(CheckpointError, "does not exist", bare, trees.members, base=bare / "nowhere")


@pytest.mark.parametrize("method", ["rmm", "jd", "truncsvd", "packs"])
def test_a_budget_too_small_names_one_that_will_do(trees: Family, bare: Path, method: str) -> None:
    error = refused(BudgetError, "1000 bytes", bare, trees.members, base=trees.base, method=method, budget=1000)
    assert isinstance(error, BudgetError)
    assert error.least_bytes > 1000
    budget = int(error.least_bytes * (1.05 if method == "packs" else 1))
    report = fold(trees.members, bare / "f", base=trees.base, method=method, budget=budget)  # pyright: ignore
    assert report.file_bytes <= budget
    assert error.hint.startswith("--budget ")


def test_a_budget_that_is_none(trees: Family, bare: Path) -> None:
    refused(BudgetError, "`much` is no budget", bare, trees.members, base=trees.base, budget="much")


def test_an_output_that_is_there(trees: Family, tmp_path: Path) -> None:
    file, out = trees.files["packs"], tmp_path / "there"
    out.write_text("mine")
    attempts = [
        lambda: fold(trees.members, out, base=trees.base),
        lambda: unfold(file, "ash", out, base=trees.base),
        lambda: unfold(file, "ash", out, base=trees.base, to="pack"),
        lambda: add_member(file, file, out),
        lambda: remove_member(file, "ash", out),
    ]
    for attempt in attempts:
        with pytest.raises(OutputError, match="exists"):
            attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert out.read_text() == "mine"


def test_an_unknown_member_and_the_nearest_names_first(trees: Family, bare: Path) -> None:
    file = trees.files["packs"]
    for attempt in (
        lambda: unfold(file, "brich", bare / "o", base=trees.base),
        lambda: remove_member(file, "brich", bare / "o"),
    ):
        with pytest.raises(FamilyError, match="has no member `brich`; it has birch, ") as caught:
            attempt()
        assert caught.value.hint == f"kinfold unfold {file} birch --base BASE -o OUT"
    assert list(bare.iterdir()) == []


def test_of_many_members_twenty_are_named(trees: Family, tmp_path: Path) -> None:
    many = {f"m{number:02}": trees.base for number in range(23)}
    fold(many, tmp_path / "f", base=trees.base, budget="100kB")
    with pytest.raises(FamilyError, match=r"it has m17, m07, .* and 3 more$"):
        unfold(tmp_path / "f", "m7", tmp_path / "o", base=trees.base)


def test_what_a_member_does_not_unfold_to(trees: Family, bare: Path) -> None:
    to: Any = "peft"
    with pytest.raises(FamilyError, match="unfolds to `model` or `pack`, not to `peft`") as caught:
        unfold(trees.files["packs"], "ash", bare / "o", base=trees.base, to=to)
    assert "kinfold export" in caught.value.hint
    assert list(bare.iterdir()) == []


def test_unfolding_onto_another_base(trees: Family, bare: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other", pico(seed=5))
    for to in ("model", "pack"):
        kind: Any = to
        with pytest.raises(WrongBaseError, match="is not the base of"):
            unfold(trees.files["rmm"], "ash", bare / "o", base=other, to=kind)
        assert list(bare.iterdir()) == []
        assert unfold(trees.files["rmm"], "ash", bare / "o", base=other, to=kind, force=True, overwrite=True).forced
        for path in bare.rglob("*"):
            path.unlink() if path.is_file() else None
        if (bare / "o").is_dir():
            (bare / "o").rmdir()
    poorer = {name: tensor for name, tensor in pico().items() if name != "layer.0.weight"}
    with pytest.raises(PackError, match="of the base is absent"):
        unfold(trees.files["rmm"], "ash", bare / "o", base=save(tmp_path / "poorer", poorer), force=True)


def test_members_that_cannot_be_put_in_or_taken_out(trees: Family, bare: Path, tmp_path: Path) -> None:
    file, pack = trees.files["rmm"], tmp_path / "ash.kin.safetensors"
    kinfold.pack(trees.base, trees.members["ash"], pack, codec="exact")
    with pytest.raises(FamilyError, match="has a member `ash` already") as caught:
        add_member(file, pack, bare / "o")
    assert "--name" in caught.value.hint
    with pytest.raises(FamilyError, match="a member cannot be called 'a#b'"):
        add_member(file, pack, bare / "o", name="a#b")
    other = save(tmp_path / "other", pico(seed=5))
    kinfold.pack(other, save(tmp_path / "variant", perturbed(pico(seed=5))), tmp_path / "stray", codec="exact")
    with pytest.raises(
        FamilyError, match=r"was made from `other` [0-9a-f]{16}\.\.\., the family from `base`"
    ) as caught:
        add_member(file, tmp_path / "stray", bare / "o")
    assert "one base" in caught.value.hint
    fold({"only": trees.members["ash"]}, tmp_path / "single", base=trees.base)
    with pytest.raises(FamilyError, match="`only` is the last member") as caught:
        remove_member(tmp_path / "single", "only", bare / "o")
    assert caught.value.hint == f"rm {tmp_path / 'single'}"
    for attempt in (lambda: add_member(pack, pack, bare / "o"), lambda: remove_member(pack, "ash", bare / "o")):
        with pytest.raises(PackError, match=r"no family|a family is wanted") as refusal:
            attempt()
        assert refusal.value.hint == f"kinfold inspect {pack}"
    assert list(bare.iterdir()) == []
