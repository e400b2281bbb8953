"""Recipes in mergekit's shape: what they become, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from merge_family import Family

import kinfold
from kinfold.errors import MergeError
from kinfold.family.merge import read_recipe
from models import raw


def write(folder: Path, family: Family, method: str, **changes: Any) -> Path:
    models = [
        {"model": str(path), "parameters": {"weight": w}} for path, w in zip(family.variants, (1, 0.5, 2), strict=True)
    ]
    content = {"merge_method": method, "base_model": str(family.base), "models": models} | changes
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return file


def test_a_recipe_is_the_call_it_says(family: Family, tmp_path: Path) -> None:
    file = write(
        tmp_path, family, "ties", parameters={"density": 0.3, "lambda": 0.7, "int8_mask": True}, dtype="float16"
    )
    report = kinfold.merge_recipe(file, tmp_path / "one")
    options: dict[str, Any] = {"density": 0.3, "scale": 0.7, "scope": "tensor"}
    kinfold.merge(family.base, family.variants, tmp_path / "two", weights=[1, 0.5, 2], dtype="float16", **options)
    assert raw(tmp_path / "one") == raw(tmp_path / "two")
    assert report.options == options | {"normalize": True}


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("linear", {}),
        ("task_arithmetic", {"scale": 1.0}),
        ("ties", {"density": 1.0, "scope": "tensor"}),
        ("dare_linear", {"density": 1.0, "scale": 1.0}),
        ("dare_ties", {"density": 1.0, "normalize": False}),
        ("della", {"density": 1.0, "epsilon": 0.3}),
        ("knots", {}),
    ],
)
def test_what_is_not_said_is_as_in_mergekit(
    family: Family, tmp_path: Path, method: str, wanted: dict[str, Any]
) -> None:
    recipe = read_recipe(write(tmp_path, family, method))
    assert (recipe.method, recipe.inner, recipe.options) == (method, None, wanted)
    assert recipe.weights == [1, 0.5, 2]
    assert list(recipe.variants) == ["a", "b", "c"]


def test_what_differs_by_model_becomes_a_list(family: Family, tmp_path: Path) -> None:
    models = [
        {"model": str(family.base)},  # listed without parameters, as many recipes do
        {"model": str(family.variants[0]), "parameters": {"density": 0.1, "weight": 0.5}},
        {"model": str(family.variants[1])},
        {"model": str(family.variants[0]), "parameters": {"density": 0.4}},
    ]
    recipe = read_recipe(write(tmp_path, family, "ties", models=models))
    assert recipe.options["density"] == [0.1, 1.0, 0.4]
    assert recipe.weights == [0.5, 1.0, 1.0]
    assert recipe.variants == {
        "a": str(family.variants[0]),
        "b": str(family.variants[1]),
        "a-2": str(family.variants[0]),
    }


def test_shared_weights_epsilon_and_inner_rules(family: Family, tmp_path: Path) -> None:
    models = [{"model": str(path)} for path in family.variants]
    parameters = {"weight": 0.5, "epsilon": 0.1, "density": 0.6, "rescale": True}
    recipe = read_recipe(write(tmp_path, family, "della_linear", models=models, parameters=parameters))
    assert (recipe.method, recipe.inner, recipe.weights) == ("della", "task_arithmetic", [0.5] * 3)
    assert recipe.options == {"density": 0.6, "epsilon": 0.2, "scale": 1.0}
    own = [{**model, "parameters": {"epsilon": 0.1 * n}} for n, model in enumerate(models, 1)]
    assert read_recipe(write(tmp_path, family, "della", models=own)).options["epsilon"] == pytest.approx(
        [0.2, 0.4, 0.6]
    )
    assert (
        read_recipe(write(tmp_path, family, "knots", parameters={"inner": "task_arithmetic"})).inner
        == "task_arithmetic"
    )


def test_slerp_starts_at_the_base_model(family: Family, tmp_path: Path) -> None:
    a, b = map(str, family.variants[:2])
    file = write(tmp_path, family, "slerp", base_model=b, models=[{"model": a}, {"model": b}], parameters={"t": 0.0})
    assert list(read_recipe(file).variants.values()) == [b, a]
    kinfold.merge_recipe(file, tmp_path / "out")
    assert raw(tmp_path / "out") == raw(Path(b))
    with pytest.raises(MergeError, match="base_model is one of them"):
        read_recipe(write(tmp_path, family, "slerp"))


def test_linear_needs_no_base(family: Family, tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, family, "linear", base_model=None, out_dtype="bfloat16", dtype="float32"))
    assert recipe.base == str(family.variants[0])
    assert recipe.dtype == "bfloat16"


def test_paths_may_be_relative_to_the_recipe(family: Family) -> None:
    file = family.base.parent / "near.yaml"
    file.write_text("merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\n")
    recipe = read_recipe(file)
    assert list(recipe.variants.values()) == [str(family.base.parent / name) for name in "ab"]
    assert recipe.weights is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slices": []}, "the key `slices` in the recipe is not supported"),
        ({"tokenizer_source": "union"}, "the key `tokenizer_source`"),
        ({"chat_template": "auto"}, "the key `chat_template`"),
        ({"parameters": {"density": [0.1, 0.9]}}, "the key `density` in parameters is a gradient or a filter"),
        ({"parameters": {"t": {"filter": "mlp"}}}, "the key `t` in parameters"),
        ({"parameters": [1]}, "parameters is list"),
        ({"base_model": None}, "needs base_model"),
        ({"base_model": "org/model"}, "base_model: `org/model` is no local path"),
        ({"models": []}, "needs merge_method: NAME and models"),
        ({"merge_method": None}, "needs merge_method: NAME and models"),
        ({"models": ["a"]}, "an entry of models is str"),
        ({"models": [{"model": {"path": "a"}}]}, "the path of a model directory or a pack is wanted"),
        ({"models": [{"model": "a", "layer_range": [0, 2]}]}, "the key `layer_range` in an entry of models"),
    ],
)
def test_what_is_not_supported_is_named(family: Family, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(MergeError, match=said):
        read_recipe(write(tmp_path, family, "ties", **changes))


def test_recipes_that_name_no_variant_or_half_an_option(family: Family, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="lists no model besides the base"):
        read_recipe(write(tmp_path, family, "ties", models=[{"model": str(family.base)}]))
    models: list[dict[str, Any]] = [{"model": str(family.variants[0])}]
    with pytest.raises(MergeError, match="weights are numbers"):
        read_recipe(write(tmp_path, family, "ties", models=models, parameters={"weight": True}))
    models = [{"model": str(family.variants[0]), "parameters": {"rank": 4}}, {"model": str(family.variants[1])}]
    with pytest.raises(MergeError, match="`rank` is given for some models only"):
        read_recipe(write(tmp_path, family, "core_space", models=models))


def test_switches_that_would_change_the_method(family: Family, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="rescale: false is not supported"):
        read_recipe(write(tmp_path, family, "dare_ties", parameters={"rescale": False}))
    with pytest.raises(MergeError, match="normalize: false is not supported by linear"):
        read_recipe(write(tmp_path, family, "linear", parameters={"normalize": False}))
    assert read_recipe(write(tmp_path, family, "linear", parameters={"normalize": True})).options == {}


def test_unknown_methods_and_options_fail_as_in_a_call(family: Family, tmp_path: Path) -> None:
    for method, parameters, said in (
        ("breadcrumbs", {}, "no merge method is called `breadcrumbs`"),
        ("ties", {"gamma": 0.1}, "`ties` does not take gamma=0.1"),
    ):
        file = write(tmp_path, family, method, parameters=parameters)
        with pytest.raises(MergeError, match=said):
            kinfold.merge_recipe(file, tmp_path / "out")


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="cannot be read as a recipe"):
        read_recipe(tmp_path / "none.yaml")
    for text, said in (("a: [1", "cannot be read as a recipe"), ("- 1", "the recipe is list")):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(MergeError, match=said):
            read_recipe(tmp_path / "bad.yaml")
