"""Whole runs whose updates take fewer bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fedpipe
from fedpipe.rounds.history import history
from fedpipe.store import keys
from tests.commands.runs import records, run_killed, store_of
from tests.federations import change

INT8 = {"  rounds: 10": "  exchange: {as: delta, dtype: int8}\n  rounds: 10"}


@pytest.fixture
def numpy_digits(numpy_digits: Path) -> Path:
    """Without an export, which takes longer than the rounds."""
    change(numpy_digits, **{"export: {opset: 17}": "export: none"})
    return numpy_digits


@pytest.fixture
def plain(numpy_digits: Path, tmp_path: Path) -> Path:
    """The same federation with whole weights."""
    shutil.copytree(numpy_digits, tmp_path / "plain")
    return tmp_path / "plain" / "federation.yaml"


def test_thirty_rounds_lose_at_most_a_fifth_of_a_point(numpy_digits: Path, plain: Path, tmp_path: Path) -> None:
    """A quarter of the bytes; the record has the sizes, and another run of it the same bytes."""
    file = change(numpy_digits, **INT8)
    found = fedpipe.run(file, out=tmp_path / "out", parameters={"rounds": 30}).summary
    exact = fedpipe.run(plain, out=tmp_path / "exact", parameters={"rounds": 30}).summary
    accuracy, reference = (s["evaluation"]["central"]["metrics"]["accuracy"] for s in (found, exact))
    assert accuracy >= reference - 0.002
    store = store_of(file.parent / "store")
    last, reference_last = history(store, "run-1")[-1], history(store_of(plain.parent / "store"), "run-1")[-1]
    assert last.rule == "mean of changes in int8"
    for update, whole in zip(last.updates, reference_last.updates, strict=True):
        assert update.size < 0.45 * whole.size  # of 650 numbers the header is a third
        assert update.personal
        assert store.size(keys.content(update.weights, update.learner)) == update.size
    again = fedpipe.run(file, store=str(tmp_path / "again"), out=tmp_path / "out2", parameters={"rounds": 30}).summary
    assert records(again) == records(found)


@pytest.mark.parametrize("rounds_per_step", ["all", "1"], ids=["session", "steps"])
def test_the_same_bytes_after_sigkill(numpy_digits: Path, tmp_path: Path, rounds_per_step: str) -> None:
    """With a rule of columns, and a clipped change: what a learner keeps is resumed exactly."""
    robust = "before: [{name: clip, quantile: 0.8}]\n  rule: median"
    file = change(numpy_digits, **INT8, **{"rule: mean": robust})
    change(numpy_digits, **{"  rounds: 10": "  rounds: 4"})
    whole = fedpipe.run(file, out=tmp_path / "out").summary
    change(numpy_digits, **{"rounds_per_step: all": f"rounds_per_step: {rounds_per_step}"})
    what, count = ("coordinate answered", 7) if rounds_per_step == "all" else ("train done", 7)
    run_killed(file, tmp_path / "killed", what, count)
    assert store_of(tmp_path / "killed").size("runs/run-1/4/record") is None
    again = fedpipe.run(file, store=str(tmp_path / "killed"), out=tmp_path / "again").summary
    assert records(again) == records(whole)
