"""`kinfold store` and `kinfold pack` into a store: what they print, in both forms, and their exit codes."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

import kinfold
from kinfold.cli import app, main
from kinfold.cli import store as commands
from kinfold.cli.output import run
from kinfold.store import Store
from models import perturbed, pico, raw, save


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, and three fine-tunes in `variants`."""
    folder = tmp_path_factory.mktemp("fleet")
    save(folder / "base", pico())
    for seed, name in enumerate(("movie", "news", "tweets"), 1):
        save(folder / "variants" / name, perturbed(pico(), seed))
    return folder


@pytest.fixture
def there(fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with links to them, in which the commands run."""
    (tmp_path / "base").symlink_to(fleet / "base")
    (tmp_path / "variants").mkdir()
    for path in (fleet / "variants").iterdir():
        (tmp_path / "variants" / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KINFOLD_STORE", raising=False)
    return tmp_path


@pytest.fixture
def filled(there: Path) -> Store:
    """`kinfold-store` with the base, movie in two versions and news."""
    store = Store.init("kinfold-store")
    store.add("base")
    for name, codec in (("movie", "exact"), ("news", "exact"), ("movie", "truncsvd")):
        kinfold.pack("base", f"variants/{name}", "p.kin.safetensors", codec=codec, budget=BUDGETS[codec])
        store.add("p.kin.safetensors", name=name, note=f"by {codec}")
        Path("p.kin.safetensors").unlink()
    return store


BUDGETS = {"exact": None, "truncsvd": "1/2"}


def said(capsys: pytest.CaptureFixture[str], *command: str, code: int = 0) -> tuple[str, str]:
    assert run(app, list(command)) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def as_json(capsys: pytest.CaptureFixture[str], *command: str, code: int = 0) -> Any:
    return json.loads(said(capsys, *command, "--format", "json", code=code)[0])


def words(text: str, *wanted: str) -> None:
    for word in wanted:
        assert word in text, word


def test_the_whole_road(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """init, add, pack --all, ls: each hint but its placeholder leads on."""
    out, err = said(capsys, "store", "init")
    words(out, str(there / "kinfold-store"))
    words(err, "kinfold store add BASE --store ./kinfold-store")
    out, err = said(capsys, "store", "add", "base")
    words(out, "base, version 1, a model", "all of it new")
    words(err, "kinfold pack --all VARIANTS --base base --store ./kinfold-store")
    out, err = said(capsys, "pack", "--all", "variants", "--base", "base", "--codec", "exact", "--workers", "1")
    words(out, "movie", "packed", "3 packed")
    words(err, "movie: packed", "news: packed", f"next: kinfold store ls --store {there / 'kinfold-store'}")
    out, err = said(capsys, *shlex.split(err.split("next: kinfold")[1]))
    lines = [line.split()[:4] for line in out.splitlines()[:5]]
    assert lines[0] == ["name", "kind", "codec", "base"]
    assert lines[1][:3] == ["base", "model", "exact"]
    assert [line[0] + line[1] for line in lines[2:]] == ["├─movie", "├─news", "└─tweets"]
    assert run(app, shlex.split(err.split("next: kinfold")[1])) == 0
    capsys.readouterr()
    report = as_json(capsys, "pack", "--all", "variants", "--base", "base", "--codec", "exact", "--workers", "1")
    there_already = dict.fromkeys(("movie", "news", "tweets"), ("present", 1))
    assert {row["name"]: (row["status"], row["version"]) for row in report["variants"]} == there_already


def test_one_broken_among_three(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store.init("kinfold-store")
    (there / "variants" / "news").unlink()
    save(there / "variants" / "news", pico())
    os.truncate("variants/news/model.safetensors", 300)
    command = ["pack", "--all", "variants", "--base", "base", "--codec", "exact", "--workers", "1"]
    out, err = said(capsys, *command, code=1)
    words(out, "2 packed, 1 failed", "failed")
    words(err, "news: failed", "error: news: `", "hint:  ")
    assert err.index("movie: packed") < err.index("error: news")  # failures come last
    assert "next:" not in err
    report = as_json(capsys, *command, code=1)
    failed = [row for row in report["variants"] if row["status"] == "failed"]
    assert [row["name"] for row in failed] == ["news"]
    assert f"error: news: {failed[0]['error']}" in err
    assert failed[0]["hint"] in err


def test_pack_one_into_a_store(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store.init("s")
    one = ["pack", "base", "variants/movie", "--store", "s", "--codec", "exact"]
    out, err = said(capsys, *one)
    words(out, "movie, version 1, a pack of base", "all of it new")
    assert "pack   /" not in out  # the file is gone
    words(err, "kinfold store info movie --store s")
    out, err = said(capsys, *one, "--name", "film", "-o", "kept.kin.safetensors")
    words(out, "kept.kin.safetensors", "0 B of it new")
    assert kinfold.verify("kept.kin.safetensors").sound
    report = as_json(capsys, *one)
    assert report["added"]["unchanged"]
    assert report["added"]["bytes"] == report["pack"]["file_bytes"]
    assert {entry.name for entry in store.ls()} == {"film", "movie"}


@pytest.mark.parametrize(
    ("command", "form"),
    [
        ("pack --all variants base variants/movie", "kinfold pack --all DIR --store URL [--base BASE]"),
        ("pack --all variants -o x", "no --output; kinfold pack --all DIR"),
        ("pack --all variants --name x", "no --name; kinfold pack --all DIR"),
        ("pack --all variants --dry-run", "no --dry-run; kinfold pack --all DIR"),
        ("pack --all variants --workers 2 --ray auto", "give one of them; kinfold pack --all DIR"),
        ("pack base variants/movie", "kinfold pack BASE VARIANT --store URL [--name NAME]"),
        ("pack base variants/movie -o x --workers 2", "--workers is for --all"),
        ("pack base variants/movie -o x --name y", "--name is for a --store"),
        ("pack base variants/movie --store s --dry-run", "leave --store out; kinfold pack BASE VARIANT -o PACK"),
        ("pack base --store s", "kinfold pack BASE VARIANT -o PACK, or kinfold pack --all DIR"),
        ("pack", "kinfold pack BASE VARIANT -o PACK, or kinfold pack --all DIR"),
        ("store rm", "kinfold store rm NAME..."),
    ],
)
def test_wrong_usage_names_the_right_form(
    command: str, form: str, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = said(capsys, *command.split(), code=2)
    assert out == ""
    words(err, "error:", form, "--help")


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("pack --all empty --base base", "is a model directory"),
        ("pack --all variants", "no base is given"),
        ("pack --all variants --base nobody", "neither a model directory nor a model in the store"),
        ("pack --all variants --base base --workers 0", "at least 1"),
        ("pack base variants/movie --store kinfold-store --name ../up", "is no name"),
        ("pack base variants/movie --store nowhere", "no store at"),
        ("store ls --store nowhere", "kinfold store init --store"),
        ("store init", "there is a store"),
        ("store add nowhere", "nowhere"),
        ("store add base --name a/b", "is no name"),
        ("store log moive", "kinfold store ls --store"),
        ("store info movie", "has no `movie`"),
        ("store rm movie", "has no `movie`"),
        ("store rm movie@1", "is one version"),
        ("store push nowhere", "no store at"),
        ("store pull nowhere", "no store at"),
    ],
)
def test_mistakes_get_words_and_code_1(
    command: str, problem: str, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Store.init("kinfold-store")
    (there / "empty").mkdir()
    out, err = said(capsys, *command.split(), code=1)
    assert out == ""
    assert err.startswith("error:")
    words(err, problem)
    assert "Traceback" not in err


def test_where_the_store_is(there: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kinfold-store", "mine", "given"):
        Store.init(name)
    assert as_json(capsys, "store", "ls")["store"] == str(there / "kinfold-store")
    monkeypatch.setenv("KINFOLD_STORE", "mine")
    assert as_json(capsys, "store", "ls")["store"] == str(there / "mine")
    assert as_json(capsys, "store", "ls", "--store", "given")["store"] == str(there / "given")
    assert commands.default_store() == "mine"  # what `pack --all` takes


def test_ls_and_log(filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    filled.tag("movie@1", "prod")
    out, err = said(capsys, "store", "log", "movie")
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [["2", "pack", "truncsvd"], ["1", "pack", "exact"]]
    words(out, "prod", "by exact")
    words(err, "kinfold store diff movie@1 movie@2")
    report = as_json(capsys, "store", "log", "movie")
    assert [(e["version"], e["codec"], e["tags"]) for e in report["entries"]] == [
        (2, "truncsvd", []),
        (1, "exact", ["prod"]),
    ]
    out, _ = said(capsys, "store", "ls")
    report = as_json(capsys, "store", "ls")
    assert [entry["name"] for entry in report["entries"]] == ["base", "movie", "news"]
    for entry in report["entries"]:
        line = next(line for line in out.splitlines()[1:] if entry["name"] in line.split())
        words(line, entry["kind"], entry["codec"], f" {entry['version']} ", entry["created"][:10])


def test_ls_without_the_base_and_without_anything(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store.init("kinfold-store")
    out, err = said(capsys, "store", "ls")
    words(out, "nothing is in the store")
    words(err, "kinfold store add BASE")
    kinfold.pack("base", "variants/movie", "movie.kin.safetensors", codec="exact")
    store.add("movie.kin.safetensors")
    out, _ = said(capsys, "store", "ls")
    assert out.splitlines()[1].split()[:4] == ["movie", "pack", "exact", "base"]


def test_info(filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, "store", "info", "movie")
    report = as_json(capsys, "store", "info", "movie")
    words(out, "movie@2", "pack, truncsvd", report["entry"]["fingerprint"], "movie@1", "by truncsvd", "budget")
    words(out, report["files"][0]["hash"][:16], str(report["files"][0]["size"]))
    assert run(app, shlex.split(err.split("next: kinfold")[1])) == 0  # store get
    assert kinfold.verify("movie.kin.safetensors", "base").sound
    capsys.readouterr()
    out, _ = said(capsys, "store", "info", "base")
    words(out, "movie, news", "model.safetensors", "config.json")


def test_diff(filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "store", "diff", "movie@1", "movie")
    report = as_json(capsys, "store", "diff", "movie@1", "movie")
    assert (report["a"], report["b"]) == ("movie@1", "movie@2")
    assert report["facts"]["codec"] == ["exact", "truncsvd"]
    words(out, "only in movie@1", "codec", "truncsvd", "budget", "1/2")
    out, _ = said(capsys, "store", "diff", "movie", "movie")
    words(out, "1 are the same, 0 differ")


def test_get_and_tag(filled: Store, fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "store", "tag", "movie@1", "prod")
    words(out, "movie:prod", "version 1")
    assert as_json(capsys, "store", "tag", "movie@1", "prod")["tags"] == ["prod"]
    out, err = said(capsys, "store", "get", "movie:prod", "-o", "m.kin.safetensors")
    words(out, "m.kin.safetensors", "movie@1")
    words(err, "kinfold inspect m.kin.safetensors")
    assert kinfold.inspect("m.kin.safetensors").codec == "exact"
    assert run(app, ["store", "get", "movie", "-o", "m.kin.safetensors"]) == 1
    capsys.readouterr()
    assert as_json(capsys, "store", "get", "base", "-o", "copy") == {"ref": "base", "path": "copy"}
    assert raw(Path("copy")) == raw(fleet / "base")


def test_add_says_what_is_shared(filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "store", "add", "base", "--name", "twin", "--note", "again")
    words(out, "twin, version 1, a model", "0 B of it new")
    out, _ = said(capsys, "store", "add", "base", "--name", "twin")
    words(out, "unchanged")
    added = as_json(capsys, "store", "add", "base", "--name", "third", "--expect", "0")
    assert (added["version"], added["new_bytes"], added["kind"]) == (1, 0, "model")
    _, err = said(capsys, "store", "add", "variants/movie", "--name", "third", "--expect", "7", code=1)
    words(err, "version 7 was expected")


def test_verify_exits_with_3_on_damage(filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "store", "verify")
    words(out, "sound", "versions")
    assert as_json(capsys, "store", "verify", "movie")["sound"]
    for path in (Path(filled.url) / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.write_bytes(bytes(path.stat().st_size))
    out, err = said(capsys, "store", "verify", "movie", code=3)
    words(out, "damaged", "movie@1", "movie@2")
    words(err, "error: the store is damaged", "kinfold store pull COPY movie --store ./kinfold-store")
    report = as_json(capsys, "store", "verify", code=3)
    assert not report["sound"]
    assert {ref for one in report["damage"] for ref in one["harms"]} == {"base@1", "movie@1", "movie@2", "news@1"}


def test_rm_and_gc(filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "store", "rm", "news", "--dry-run")
    words(out, "would go", "news")
    assert len(filled.ls()) == 3
    said(capsys, "store", "rm", "news", "nobody", code=1)
    assert len(filled.ls()) == 3  # none, as one of them is not there
    assert as_json(capsys, "store", "rm", "news")["names"] == ["news"]
    assert [entry.name for entry in filled.ls()] == ["base", "movie"]
    plan = as_json(capsys, "store", "gc", "--dry-run")
    assert plan["dry_run"]
    out, err = said(capsys, "store", "gc", "--dry-run", "--prune-history")
    words(out, "would go")
    words(err, "kinfold store gc --prune-history --store ./kinfold-store")
    found = as_json(capsys, "store", "gc")
    assert {**found, "dry_run": True} == plan
    assert found["objects"] > 0
    out, _ = said(capsys, "store", "gc", "--yes")
    words(out, "deleted", "0 B in 0 objects")
    said(capsys, "store", "verify")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "left"), [("y\n", 2), ("\n", 3), ("no\n", 3), ("", 3)])
def test_a_person_is_asked(
    answer: str, left: int, filled: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run(app, ["store", "rm", "news"]) == 0
    words(terminal.getvalue(), f"remove news from {filled.url}? [y/N]")
    assert len(filled.ls()) == left
    assert run(app, ["store", "gc"]) == 0  # stdin has ended: no
    words(terminal.getvalue(), "nothing was removed")
    assert run(app, ["store", "rm", "movie", "--yes"]) == 0
    assert len(filled.ls()) == left - 1


def test_push_and_pull(filled: Store, capsys: pytest.CaptureFixture[str]) -> None:
    Store.init("other")
    _, err = said(capsys, "store", "push", "other", "movie:", code=1)
    words(err, "is no tag")
    out, err = said(capsys, "store", "push", "other", "movie")
    words(out, "movie@1", "sent")
    words(err, "kinfold store ls --store other")
    report = as_json(capsys, "store", "push", "other")
    assert (report["copied"], report["present"]) == (["base@1", "news@1"], ["movie"])
    Store.init("third")
    report = as_json(capsys, "store", "pull", "other", "--store", "third")
    assert report["copied"] == ["base@1", "movie@1", "news@1"]
    assert Store.open("third").names() == filled.names()
    out, _ = said(capsys, "store", "pull", "other", "--store", "third")
    words(out, "nothing", "there already")


def test_main_runs_the_group(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["store", "ls"])
    assert stop.value.code == 1
    words(capsys.readouterr().err, "kinfold store init")
