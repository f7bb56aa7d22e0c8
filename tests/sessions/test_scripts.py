"""The phases of the two algorithms: whom they ask, and what closes them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from fedpipe.errors import DataError, RoundError
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.early import EarlySums
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.roll import Roll
from fedpipe.sessions.phases import Phase, Script
from fedpipe.sessions.scripts import describing, script_of
from fedpipe.store import MemoryStore
from tests.federations import fresh, make_federation, make_plan

NAMES = ("a", "b", "c")


def started(store: MemoryStore, algorithm: Any, **more: Any) -> tuple[Script, Record]:
    plan = make_plan(make_federation(NAMES, algorithm=algorithm, quorum={"min_learners": 2}))
    record = begin(store, plan, fresh)
    return script_of(store, plan, **more)(record), record


@pytest.mark.parametrize(
    ("attempt", "away", "asked"),
    [
        (1, (), NAMES),
        (1, ("c",), ("a", "b")),
        (1, ("b", "c"), NAMES),
        (2, ("c",), NAMES),
    ],
    ids=["all are there", "one is away", "the quorum needs those away", "a second attempt"],
)
def test_whom_a_vote_asks(store: MemoryStore, attempt: int, away: tuple[str, ...], asked: tuple[str, ...]) -> None:
    script, record = started(store, {"name": "averaging", "vote": {}})
    assert (next(script).name, script.send(None).name) == ("vote", "train")
    vote = script.send(record)
    assert (vote.name, vote.candidate, vote.owner) == ("vote", record.weights, "")
    assert vote.asks(attempt, away) == asked


def test_a_proposer_that_is_away_is_not_asked(store: MemoryStore) -> None:
    script, _ = started(store, "collective")
    next(script)
    propose: Phase = script.send(None)
    assert propose.asks(1, ()) == ("a",)
    assert propose.asks(1, ("a",)) == ()
    rejected = script.send(propose.close(Roll((), excused={"a": "away since round 1"}), None))
    assert (rejected.name, rejected.asks(1, ())) == ("reject", ())
    record = rejected.close(Roll(()), None)
    assert not record.accepted
    assert [(item.learner, item.why) for item in record.dropped] == [("a", "away since round 1")]


def test_a_round_that_is_aggregated_elsewhere_adds_nothing_early(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedpipe.aggregation.tree.WORTH_ADDING", 0)
    calls: list[Any] = []
    script, record = started(store, "averaging", aggregate=lambda *given: calls.append(given) or record)
    train = next(script)
    assert train.early(NAMES, tmp_path) is None
    assert train.close(Roll(NAMES), None) == record
    assert calls == [(1, record.weights, Roll(NAMES))]
    here = next(started(MemoryStore(), "averaging")[0])
    assert isinstance(here.early(NAMES, tmp_path), EarlySums)


def test_statistics_of_late_learners_do_not_count_and_mistakes_end_the_session() -> None:
    """The phase before round 1 closes with round 0."""
    absent: list[Collection[str]] = []

    def begin(names: Collection[str]) -> Any:
        absent.append(names)
        raise DataError("nothing fits", remedy="Change it.")

    phase = describing(make_plan(), begin)
    assert (phase.name, phase.round, phase.answer, phase.asks(1, ("a",))) == (
        "describe",
        0,
        "statistics",
        ("a", "b", "c"),
    )
    with pytest.raises(RoundError, match=r"nothing fits. Change it"):
        phase.close(Roll(("a", "b", "c"), excused={"c": "late"}), None)
    assert absent == [["c"]]
