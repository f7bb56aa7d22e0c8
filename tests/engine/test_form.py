"""Changes each run-time parameter of the form, one by one, and looks at what the run did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpipe
from fedpipe.errors import QuorumError
from fedpipe.federation.sources import read_source
from fedpipe.pipelines.frame import form_of
from fedpipe.rounds.history import history
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan, current_plan
from fedpipe.sessions.board import poll_board
from fedpipe.store import Store, open_store

MODEL = """
from fedpipe.learners.numpy import Linear

def build():
    return Linear(features=(4,), outputs=3, loss="softmax", learning_rate=0.5)
"""

pytestmark = pytest.mark.heavy


class Done:
    """A run: its records, its plan, and how its session ended."""

    def __init__(self, store: Store, run: str) -> None:
        self.records: list[Record] = history(store, run)
        self.plan: Plan = current_plan(store, run, self.records[0].plan)
        board = poll_board(store, run)
        self.ending = board[0].ending if board else ""

    @property
    def examples(self) -> int:
        return sum(update.examples for update in self.records[1].updates)


class Form:
    """A federation with defaults for all parameters, and runs of it with others."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        for name, count in (("data", 120), ("other", 60)):
            x = rng.normal(size=(count, 4)).astype(np.float32)
            np.savez(folder / f"{name}.npz", x=x, y=np.argmax(x[:, :3], axis=1))
        (folder / "model.py").write_text(MODEL)
        self.folder = folder
        self.federation: dict[str, Any] = {
            "name": "form", "store": f"file://{folder}/store", "model": f"{folder}/model.py:build", "framework": "numpy",
            "learners": [{"name": "a"}, {"name": "b"}], "data": {"uri": f"{folder}/data.npz"}, "export": "none",
            "training": {"rounds": 2, "batch_size": 8, "start": "fresh"},
            "quorum": {"min_learners": 1, "deadline": 60, "retries": 0},
        }  # fmt: skip

    def run(self, name: str, *, at: str = "store", **parameters: Any) -> Done:
        fedpipe.run(self.federation, out=self.folder / "out" / name, name=name, parameters=parameters)
        return Done(open_store(f"file://{self.folder}/{at}").below("form"), name)


@pytest.fixture(scope="module")
def form(tmp_path_factory: pytest.TempPathFactory) -> Form:
    return Form(tmp_path_factory.mktemp("form"))


@pytest.fixture(scope="module")
def usual(form: Form) -> Done:
    """The run with the defaults of the form."""
    return form.run("usual")


def same_weights(one: Done, other: Done) -> bool:
    return one.records[1].weights == other.records[1].weights


CHANGES: dict[str, tuple[Any, Callable[[Done, Done], bool]]] = {
    "data": ("{folder}/other.npz", lambda usual, done: done.examples < usual.examples),
    "learning_rate": (0.01, lambda usual, done: not same_weights(usual, done)),
    "local_epochs": (3, lambda usual, done: not same_weights(usual, done)),
    "batch_size": (4, lambda usual, done: not same_weights(usual, done)),
    "rounds": (3, lambda usual, done: len(done.records) == 4 and same_weights(usual, done)),
    "deadline": (55.5, lambda usual, done: done.plan.federation.quorum.deadline == 55.5 and same_weights(usual, done)),
    "min_learners": (2, lambda usual, done: done.plan.federation.min_learners == 2 and same_weights(usual, done)),
    "max_seconds": (0.001, lambda usual, done: done.ending == "max_seconds" and len(done.records) < 3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_parameter_changes_what_the_run_does(form: Form, usual: Done, name: str) -> None:
    value, holds = CHANGES[name]
    given = value.format(folder=form.folder) if isinstance(value, str) else value
    assert holds(usual, form.run(f"with-{name.replace('_', '-')}", **{name: given}))


def test_the_store_and_the_name_of_the_run(form: Form, usual: Done) -> None:
    done = form.run("elsewhere", at="other-store", store=f"file://{form.folder}/other-store", run="elsewhere")
    assert done.records[0].run == "elsewhere"
    assert same_weights(usual, done)
    assert not list(open_store(f"file://{form.folder}/store").below("form").keys("runs/elsewhere/"))


def test_patience_needs_early_stopping_in_the_file(form: Form) -> None:
    form.federation["training"] |= {"early_stopping": {"patience": 5, "min_delta": 100.0}, "rounds": 6}
    try:
        done = form.run("patience", patience=1)
    finally:
        form.federation["training"] |= {"rounds": 2}
        del form.federation["training"]["early_stopping"]
    assert done.ending == "early_stopping"
    assert len(done.records) < 6


def test_a_quorum_above_the_learners_that_answer_ends_the_run(form: Form) -> None:
    """The parameter is used, not only recorded: b's data kill nothing, but it has none of its own."""
    learners = form.federation["learners"]
    form.federation["learners"] = [{"name": "a"}, {"name": "b", "data": f"{form.folder}/missing.npz"}]
    try:
        assert len(form.run("one-is-enough").records) == 3
        with pytest.raises(QuorumError):
            form.run("two-are-needed", min_learners=2)
    finally:
        form.federation["learners"] = learners


def test_every_parameter_of_the_form_is_tried(form: Form) -> None:
    assert set(form_of(read_source(form.federation))) == {*CHANGES, "store", "run", "patience"}
