"""init and check: a mistake of any kind is one message and exit code 2, and changes nothing; `run` finds the same.

Each mistake has a test where it is found: tests/federation, tests/data, tests/learners. Here is one of every kind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Result, files


@pytest.mark.parametrize("options", [[], ["--algorithm", "collective"]], ids=["averaging", "collective"])
def test_init_writes_a_federation_that_needs_no_tensorflow(fedpipe: Callable[..., Result], options: list[str]) -> None:
    done = fedpipe("init", "demo", "--framework", "numpy", *options)
    assert done.code == 0
    assert set(files(Path("demo"))) == {"federation.yaml", "model.py", "DATA.md", "digits.npz"}
    assert "650 parameters" in fedpipe("check", "demo/federation.yaml").out
    with np.load("demo/digits.npz") as data:
        assert data["x"].shape == (1797, 8, 8, 1)


def test_init_overwrites_nothing_unless_asked(fedpipe: Callable[..., Result]) -> None:
    fedpipe("init", "demo")
    Path("demo/model.py").write_text("mine")
    again = fedpipe("init", "demo")
    assert again.code == 2
    assert "federation.yaml already exists" in again.err
    assert Path("demo/model.py").read_text() == "mine"
    assert fedpipe("init", "demo", "--force").code == 0


def change(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


@pytest.mark.xdist_group("runs")
def test_check_says_what_is_good_and_changes_nothing(fedpipe: Callable[..., Result], digits: Path) -> None:
    """With Keras, in its own process; as well as a mistake that only Keras finds."""
    before = files(digits)
    done = fedpipe("check", digits / "federation.yaml")
    assert "14,698 parameters" in done.out
    assert "hospital-e 321 train, 40 vote, 40 test" in done.out
    change(digits, "model.py", "model.compile(", "dict(")
    wrong = fedpipe("check", digits / "federation.yaml")
    assert (wrong.code, wrong.err.count("the model is not compiled")) == (2, 1)
    change(digits, "model.py", "dict(", "model.compile(")
    assert files(digits) == before


def without_numbers(folder: Path) -> None:
    with np.load(folder / "digits.npz") as data:
        np.savez(folder / "digits.npz", x=data["x"] * np.nan, y=data["y"])


MISTAKES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a key": (lambda d: change(d, "federation.yaml", "rounds:", "round:"), "training: unknown key 'round'. Did you mean 'rounds'?"),
    "two keys that do not fit": (lambda d: change(d, "federation.yaml", "hospital-b", "hospital-a"), "the learner 'hospital-a' is listed twice"),
    "a store": (lambda d: change(d, "federation.yaml", "store: store ", "store: s4://x "), "the store 's4://x' has an unknown scheme"),
    "no model.py": (lambda d: (d / "model.py").unlink(), "model.py: the file cannot be read"),
    "syntax": (lambda d: change(d, "model.py", "def build()", "def build("), "SyntaxError"),
    "model and data": (lambda d: change(d, "model.py", "outputs=10", "outputs=9"), "the labels range from 0 to 9, but the model has 9 outputs"),
    "data": (without_numbers, "the features contain NaN or infinity"),
    "data and settings": (lambda d: change(d, "federation.yaml", "batch_size: 16", "batch_size: 500"), "the train part of hospital-a has 249 examples, but a batch has 500"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), MISTAKES.values(), ids=MISTAKES.keys())
@pytest.mark.parametrize("word", ["check", "run"])
def test_mistakes_in_files(
    fedpipe: Callable[..., Result], numpy_digits: Path, word: str, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(numpy_digits)
    before = files(numpy_digits)
    done = fedpipe(word, numpy_digits / "federation.yaml")
    assert done.code == 2
    assert files(Path()) == {}  # no folder for results either
    assert message in done.err
    assert done.err.count("fedpipe:") == 1
    assert "Traceback" not in done.err + done.out
    assert files(numpy_digits) == before
