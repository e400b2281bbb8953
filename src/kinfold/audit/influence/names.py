"""What a parameter is called: by the base where it has it, else by the model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from kinfold.audit.influence.gradients import is_linear
from kinfold.pack.member import Member
from kinfold.tasks import Answers


def plain(name: str) -> str:
    """Of a parameter of `Answers`, as its model names it."""
    return name.removeprefix("model.")


def base_names(member: Member) -> dict[str, str]:
    """The base's name of each tensor, by the member's own."""
    return {own: name for name, own in member.own.items()}


def linear_modules(model: Answers, of_base: Mapping[str, str] | None = None) -> dict[str, nn.Module]:
    """Linear modules by the names of their weights, see `names_of`."""
    names = names_of(model, of_base or {})
    return {names[id(module.weight)]: module for module in model.modules() if is_linear(module)}


def names_of(model: Answers, of_base: Mapping[str, str]) -> dict[int, str]:
    """By id, of each parameter: the base's name for it, else the model's; of tied ones the embedding's."""
    prefix = getattr(model.model, "base_model_prefix", "") + "."
    spelled: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        spelled.setdefault(id(parameter), []).append(plain(name))
    found = {}
    for identity, own in spelled.items():
        spellings = [s for name in own for s in (name, name.removeprefix(prefix), prefix + name)]
        found[identity] = next((of_base[s] for s in spellings if s in of_base), own[0])
    return found
