"""watch and stop from the store alone, over a session that was played without a framework."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedpipe.rounds.beginning import begin
from fedpipe.store import open_store
from tests.cli.conftest import Result, files
from tests.federations import PlusOneLearner, fresh, make_plan


@pytest.fixture
def played(digits: Path) -> Path:
    from fedpipe.federation.file import read_federation
    from tests.simulation import World, attendance, coordinator

    federation = read_federation(digits / "federation.yaml")
    world, plan = World(), make_plan(federation, "run-1")
    world.store = store = open_store(str(digits / "store")).below("digits")  # type: ignore[assignment]
    begin(store, plan, fresh)
    world.spawn("coordinator", coordinator(world, plan))
    for learner in federation.learners:
        world.spawn(learner.name, attendance(world, plan, learner.name, PlusOneLearner(1.0)))
    world.run()
    return digits / "federation.yaml"


def test_watch_tells_the_rounds_and_the_end(fedpipe: Callable[..., Result], played: Path) -> None:
    done = fedpipe("watch", "run-1", "-f", played)
    assert done.code == 0
    assert "round 10  loss 1.0000  5 learners  train " in done.out
    assert done.out.strip().endswith("the session ended: all rounds are done")


def test_stop_after_the_end_changes_nothing(fedpipe: Callable[..., Result], played: Path) -> None:
    before = files(played.parent)
    done = fedpipe("stop", "run-1", "-f", played)
    assert done.code == 2
    assert "run 'run-1' has ended already" in done.err
    assert files(played.parent) == before


def test_stop_of_a_run_that_is_not_there(fedpipe: Callable[..., Result], played: Path) -> None:
    done = fedpipe("stop", "run-2", "-f", played)
    assert done.code == 2
    assert "there is no run 'run-2'. Runs: run-1." in done.err


@pytest.mark.parametrize("word", ["watch", "stop"])
def test_without_a_federation_file(fedpipe: Callable[..., Result], word: str) -> None:
    done = fedpipe(word, "run-1")
    assert done.code == 2
    assert "federation.yaml: cannot be read" in done.err
