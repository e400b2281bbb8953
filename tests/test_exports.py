"""What the package promises to export is what it exports."""

from __future__ import annotations

import inspect
import types

import kinfold
from kinfold import errors


def test_all_is_what_the_package_exports() -> None:
    public = {
        name
        for name, value in vars(kinfold).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert sorted(kinfold.__all__) == sorted(public | {"__version__"})
    assert sorted(kinfold.__all__) == kinfold.__all__


def test_every_public_function_tells_what_it_does() -> None:
    for name in kinfold.__all__:
        value = getattr(kinfold, name)
        if callable(value):
            assert inspect.getdoc(value), name


def test_every_error_is_in_the_tree_and_a_kinfold_error() -> None:
    classes = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    words = {word for word in (errors.__doc__ or "").split() if word.endswith("Error")}
    assert words == set(classes)
    assert all(issubclass(kind, errors.KinfoldError) for kind in classes.values())


def test_the_tree_is_drawn_as_the_classes_inherit() -> None:
    parents: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        name = next((word for word in line.split() if word.endswith("Error")), None)
        if name is None or name not in vars(errors):
            continue
        depth = line.index(name)
        parents = [(d, n) for d, n in parents if d < depth]
        base = getattr(errors, name).__bases__[0].__name__
        assert base == (parents[-1][1] if parents else "Exception")
        parents.append((depth, name))
    assert parents


def test_a_missing_extra_says_what_to_install() -> None:
    error = errors.MissingExtraError("jinja2", "report")
    assert "`jinja2`" in str(error)
    assert error.hint == "pip install 'kinfold[report]'"
