"""A pico language model that knows its rows by heart, and one run that made it forget some; built once a session."""

from __future__ import annotations

from typing import Any

import pytest
from worlds import CONFIG, Forgotten, World, contents, make, save_tokenizer

from kinfold.forget import forget
from kinfold.forget import run as running
from kinfold.tasks import tokenizer_of


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def forgotten(world: World, tmp_path_factory: pytest.TempPathFactory) -> Forgotten:
    out = tmp_path_factory.mktemp("forgotten") / "gone.kin.safetensors"
    before = contents(world.base, world.variant)
    rows: dict[str, Any] = {"forget": world.forget, "retain": world.retain, "unseen": world.unseen}
    train, kept = running._train, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "_train", lambda *given: kept.append(train(*given)) or kept[0])
        report = forget(world.base, world.variant, out=out, config=CONFIG, **rows)
    return Forgotten(out, report, before, kept[0])


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("words")
    save_tokenizer(folder, ["[PAD]", "[UNK]", *"abcdefgh"])
    return tokenizer_of(folder)
