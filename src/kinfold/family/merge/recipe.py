"""Recipes: a merge written in YAML, in mergekit's shape where the method exists in both.

Without an option a recipe means what it means to mergekit: density 1, scale (`lambda`) 1, trimming by tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kinfold.errors import MergeError
from kinfold.family.merge.report import MergeReport
from kinfold.family.merge.run import merge
from kinfold.family.watch import Watch
from kinfold.pack.member import stem

_KEYS = ("merge_method", "base_model", "models", "parameters", "dtype", "out_dtype")
_MODEL_KEYS = ("model", "parameters")
_RENAMED = {"lambda": "scale"}

# what mergekit 0.1.5 does where a recipe says nothing, in our words
_DEFAULTS: dict[str, dict[str, Any]] = {
    "task_arithmetic": {"scale": 1.0},
    "ties": {"density": 1.0, "scope": "tensor"},
    "dare_linear": {"density": 1.0, "scale": 1.0},
    "dare_ties": {"density": 1.0, "normalize": False},
    "della": {"density": 1.0, "epsilon": 0.15},
    "della_linear": {"density": 1.0, "epsilon": 0.15, "scale": 1.0},
}
_INNER = {"della_linear": ("della", "task_arithmetic")}


@dataclass(frozen=True)
class Recipe:
    """The arguments of `merge` that a recipe stands for."""

    base: str
    variants: dict[str, str]
    method: str
    inner: str | None
    weights: list[float] | None
    dtype: str | None
    options: dict[str, Any] = field(default_factory=dict)


def merge_recipe(
    file: str | Path,
    out: str | Path,
    *,
    heads: str = "error",
    dominance: Watch = "warn",
    seed: int = 0,
    overwrite: bool = False,
) -> MergeReport:
    """`merge` with base, variants, method and options from a YAML file in mergekit's shape.

    Args:
        file: the recipe; paths in it are relative to the current folder, or to the recipe's own.
        out: the model directory to write.
        heads, dominance, seed, overwrite: as of `merge`.

    Raises:
        MergeError: the recipe asks for something that is not there; the key is named. Else as `merge`.
    """
    recipe = read_recipe(file)
    return merge(
        recipe.base,
        recipe.variants,
        out,
        method=recipe.method,
        weights=recipe.weights,
        inner=recipe.inner,
        heads=heads,
        dominance=dominance,
        seed=seed,
        overwrite=overwrite,
        dtype=recipe.dtype,
        **recipe.options,
    )


def read_recipe(file: str | Path) -> Recipe:
    """Parse a recipe and translate its parameters.

    Raises:
        MergeError: no YAML, a key or a value that is not supported, or a model that is no local path.
    """
    file = Path(file)
    content = _mapping(_parse(file), "the recipe", _KEYS)
    name = content.get("merge_method")
    if not isinstance(name, str) or not isinstance(content.get("models"), list) or not content["models"]:
        raise MergeError(f"`{file}` needs merge_method: NAME and models: a list of {{model, parameters}}")
    models = [_model(entry, file) for entry in content["models"]]
    base = _path(content["base_model"], "base_model", file) if "base_model" in content else None
    if name == "slerp":
        models = _from_base(models, base)
    elif name != "linear":
        models = [model for model in models if model[0] != base]  # listed or not, it has no delta
    if base is None and name != "linear":
        raise MergeError(f"the method `{name}` needs base_model: PATH in `{file}`")
    if not models:
        raise MergeError(f"`{file}` lists no model besides the base")
    shared = _scalars(content.get("parameters"), "parameters")
    options, weights = _options(name, shared, [parameters for _, parameters in models])
    method, inner = _INNER.get(name, (name, shared.get("inner")))
    dtype = content.get("out_dtype") or content.get("dtype")
    return Recipe(base or models[0][0], _named(models), method, inner, weights, dtype, options)


def _parse(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as cause:
        raise MergeError(f"`{file}` cannot be read as a recipe: {' '.join(str(cause).split())}") from cause


def _mapping(value: Any, where: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MergeError(f"{where} is {type(value).__name__}, a mapping with {', '.join(allowed)} is wanted")
    for key in value:
        if key not in allowed:
            raise MergeError(
                f"the key `{key}` in {where} is not supported; supported are {', '.join(allowed)}",
                hint="run recipes that need it with mergekit itself",
            )
    return value


def _model(entry: Any, file: Path) -> tuple[str, dict[str, Any]]:
    entry = _mapping(entry, "an entry of models", _MODEL_KEYS)
    return _path(entry.get("model"), "model", file), _scalars(entry.get("parameters"), "parameters of a model")


def _path(value: Any, key: str, file: Path) -> str:
    if not isinstance(value, str) or not value:
        raise MergeError(f"{key} is {value!r}, the path of a model directory or a pack is wanted")
    for path in (Path(value), file.parent / value):
        if path.exists():
            return str(path)
    raise MergeError(
        f"{key}: `{value}` is no local path",
        hint=f"hf download {value} --local-dir {Path(value).name}, and name that folder in the recipe",
    )


def _scalars(value: Any, where: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise MergeError(f"{where} is {type(value).__name__}, a mapping of names to values is wanted")
    for key, given in (value or {}).items():
        if isinstance(given, (list, dict)):
            raise MergeError(
                f"the key `{key}` in {where} is a gradient or a filter, which is not supported; give one value",
                hint="run recipes that need it with mergekit itself",
            )
    return dict(value or {})


def _from_base(models: list[tuple[str, dict[str, Any]]], base: str | None) -> list[tuple[str, dict[str, Any]]]:
    """The order in which t = 0 is the base model, as in mergekit."""
    if base is not None and base not in [path for path, _ in models]:
        raise MergeError("a recipe for slerp lists two models, and base_model is one of them")
    return sorted(models, key=lambda model: model[0] != base)


def _options(name: str, shared: dict[str, Any], own: list[dict[str, Any]]) -> tuple[dict[str, Any], list[float] | None]:
    """Options in our words, and weights; what differs by model becomes a list."""
    given = {key: value for key, value in shared.items() if key != "inner"}
    for key in sorted({key for parameters in own for key in parameters}):
        fallback = shared.get(key, _DEFAULTS.get(name, {}).get(key, 1.0 if key == "weight" else None))
        values = [parameters.get(key, fallback) for parameters in own]
        if None in values:
            raise MergeError(f"`{key}` is given for some models only; give it for each, or once under parameters")
        given[key] = values if len(set(values)) > 1 or key == "weight" else values[0]
    weights = given.pop("weight", None)
    if weights is not None and not isinstance(weights, list):
        weights = [weights] * len(own)
    if any(isinstance(weight, bool) or not isinstance(weight, (int, float)) for weight in weights or ()):
        raise MergeError(f"weights are numbers, the recipe has {weights}")
    return _translated(name, given), weights


def _translated(name: str, given: dict[str, Any]) -> dict[str, Any]:
    given.pop("int8_mask", None)  # how mergekit holds its masks; no value depends on it
    if name in ("dare_linear", "dare_ties", "della", "della_linear") and given.pop("rescale", True) is not True:
        raise MergeError("rescale: false is not supported: without it the mean of what is kept is not the delta")
    if name == "linear" and given.pop("normalize", True) is not True:
        raise MergeError("normalize: false is not supported by linear", hint="give weights that sum to 1")
    options = _DEFAULTS.get(name, {}) | {_RENAMED.get(key, key): value for key, value in given.items()}
    if "epsilon" in options:  # mergekit's is the half width
        half = options["epsilon"]
        options["epsilon"] = [2 * one for one in half] if isinstance(half, list) else 2 * half
    return options


def _named(models: list[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """Paths by their stems, numbered where a stem occurs again."""
    found: dict[str, str] = {}
    for path, _ in models:
        name = stem(Path(path))
        number = 2
        while name in found:
            name, number = f"{stem(Path(path))}-{number}", number + 1
        found[name] = path
    return found
