"""Runs the examples in docstrings and in docs/python.md, with a small federation at hand."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
from pathlib import Path

import pytest

import fedpipe
from fedpipe.commands.init import init

ROOT = Path(__file__).parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
LISTED = subprocess.run(
    ["git", "grep", "-l", ">>> ", "--", "src/fedpipe"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split()
MODULES = [name.removeprefix("src/").removesuffix(".py").replace("/", ".") for name in LISTED]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each docstring has a working folder of its own, with what `fedpipe init demo --framework numpy` writes."""
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for number, example in enumerate(doctest.DocTestFinder().find(importlib.import_module(name))):
        if example.examples:
            init(tmp_path / str(number) / "demo", framework="numpy")
            monkeypatch.chdir(tmp_path / str(number))
            runner.run(example)
    assert runner.tries
    assert not runner.failures


def test_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(ROOT / "docs" / "python.md"), module_relative=False, optionflags=FLAGS)
    assert tried > 10
    assert not failed


def functions() -> list[str]:
    """The public functions that work on a federation of this machine alone."""
    return ["check", "compare", "compile", "explore", "export", "init", "open_store", "plot", "predict", "predict_file",
            "promote", "read_federation", "report", "run", "runs", "serve", "simulate", "stop", "watch"]  # fmt: skip


@pytest.mark.parametrize("name", functions())
def test_every_function_has_an_example(name: str) -> None:
    assert ">>> " in str(getattr(fedpipe, name).__doc__), name


def test_the_page_lists_every_command_and_function_that_exists() -> None:
    from typer.main import get_command

    from fedpipe.cli.main import app

    text = (ROOT / "docs" / "python.md").read_text()
    table = re.findall(r"^\| `fedpipe ([a-z]+)` \| `fedpipe\.([a-z_]+)\(", text, re.M)
    commands = set(get_command(app).commands) - {"logs", "site", "step"}  # type: ignore[attr-defined]
    assert {command for command, _ in table} == commands
    assert {function for _, function in table} <= set(fedpipe.__all__)
    assert {command for command, function in table if command != function} == {"predict"}
    for name in re.findall(r"fedpipe\.([A-Za-z_]+)\b(?!\.yaml)", text):
        assert name in fedpipe.__all__ or name == "errors", name


def test_all_names_exist() -> None:
    for name in fedpipe.__all__:
        assert getattr(fedpipe, name) is not None
