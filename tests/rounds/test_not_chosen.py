"""Learners that a rule leaves out: in the record, and wherever a round is shown."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fedpipe.cli.progress import Progress
from fedpipe.commands.watch import round_line
from fedpipe.engine.local import Event
from fedpipe.reports.comparison import compare
from fedpipe.reports.report import render
from fedpipe.reports.story import read_story, summarise
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.history import history
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan
from fedpipe.sessions.board import Board
from fedpipe.sessions.coordinator import Moment
from fedpipe.steps.aggregate import metadata_of
from fedpipe.store import MemoryStore, Store, keys
from fedpipe.store.objects import canonical
from fedpipe.tracking.points import points_of
from tests.cli.events import event
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan, play, play_round
from tests.simulation import World, attendance, coordinator

NUMBERS = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "e": 5.0, "f": 100.0, "g": 200.0}
"""The number that each learner adds to all weights."""
CHOSEN = [
    ({"name": "krum", "byzantine": 2}, "b"),  # b, c and d have the sum 6 of their three nearest; b is the first
    ({"name": "multi_krum", "byzantine": 2, "keep": 2}, "bc"),
    ({"name": "multi_krum", "byzantine": 1}, "abcd"),  # of their four nearest: 30, 15, 10, 15, 30
    ({"name": "bulyan", "byzantine": 1}, "abcde"),  # in the order c, b, d, a, e
]


def learners() -> dict[str, Any]:
    return {name: PlusOneLearner(number) for name, number in NUMBERS.items()}


def plan_of(rule: Any, run: str = "r1", **more: Any) -> Plan:
    federation = make_federation(
        tuple(NUMBERS), algorithm={"name": "averaging", "rule": rule}, training={"rounds": 1, "batch_size": 1}, **more
    )
    return make_plan(federation, run)


def closed(store: Store, plan: Plan, who: dict[str, Any] | None = None) -> Record:
    base = begin(store, plan, fresh).weights
    play_round(store, plan, 1, base, who or learners())
    return close_round(store, plan, 1, base)


@pytest.mark.parametrize(("rule", "chosen"), CHOSEN)
class TestTheRecord:
    def test_names_the_learners_that_the_rule_left_out(self, store: MemoryStore, rule: Any, chosen: str) -> None:
        record = closed(store, plan_of(rule))
        assert record.not_chosen == tuple(sorted(set(NUMBERS) - set(chosen)))
        assert [update.learner for update in record.updates] == list(NUMBERS)  # their updates are valid
        assert record.dropped == ()

    def test_is_the_same_of_a_session_and_of_a_replay(self, store: MemoryStore, rule: Any, chosen: str) -> None:
        plan, world = plan_of(rule), World()
        first = closed(store, plan)
        store.delete(keys.record("r1", 1))
        assert canonical(close_round(store, plan, 1, first.base or "")) == canonical(first)
        begin(world.store, plan, fresh)
        world.spawn("coordinator", coordinator(world, plan))
        for name, learner in learners().items():
            world.spawn(name, attendance(world, plan, name, learner))
        world.run()
        assert canonical(history(world.store, "r1")[1]) == canonical(first)


def test_those_that_were_dropped_are_not_among_them(store: MemoryStore) -> None:
    """A learner without an update gave the rule no choice."""
    failing = learners() | {"c": PlusOneLearner(1.0, fails="no power")}
    record = closed(store, plan_of({"name": "multi_krum", "byzantine": 1, "keep": 3}), failing)
    assert [item.learner for item in record.dropped] == ["c"]
    assert record.not_chosen == ("e", "f", "g")  # of the three nearest: a 26, b 14, d 14, e 26


@pytest.mark.parametrize(
    "rule",
    [
        "mean",
        "median",
        "geometric_median",
        {"name": "trimmed_mean", "share": 0.2},
        {"name": "centered_clip", "norm": 1.0},
    ],
)
def test_a_rule_that_uses_all_leaves_the_record_as_it_was(store: MemoryStore, rule: Any) -> None:
    record = closed(store, plan_of(rule))
    assert record.not_chosen is msgspec.UNSET
    assert b"not_chosen" not in canonical(record)
    assert "not_chosen" not in summarise(read_story(store, "r1"))["rounds"][0]
    assert "not chosen" not in render(read_story(store, "r1"))


def test_after_mixing_only_those_that_no_mixture_needs(store: MemoryStore) -> None:
    """Each update is the mean of the six nearest, so the first five hold all but g; Krum then takes one of them."""
    algorithm = {
        "name": "averaging", "before": [{"name": "nearest_neighbour_mixing", "byzantine": 1}],
        "rule": {"name": "krum", "byzantine": 1},
    }  # fmt: skip
    federation = make_federation(tuple(NUMBERS), algorithm=algorithm, training={"rounds": 1, "batch_size": 1})
    assert closed(store, make_plan(federation)).not_chosen == ("g",)


class TestItIsShown:
    @pytest.fixture
    def plan(self, store: MemoryStore) -> Plan:
        plan = plan_of({"name": "multi_krum", "byzantine": 2, "keep": 5})
        play(store, plan, learners())
        return plan

    def test_in_summary_and_report(self, store: MemoryStore, plan: Plan) -> None:
        story = read_story(store, "r1")
        assert summarise(story)["rounds"][0]["not_chosen"] == ["f", "g"]
        assert "not chosen by the rule: f, g" in render(story)

    def test_when_a_run_is_watched(self, store: MemoryStore, plan: Plan) -> None:
        assert "7 learners  not chosen by the rule: f, g" in round_line(store, plan.federation, history(store, "r1")[1])

    def test_in_the_progress_of_a_run(self, store: MemoryStore, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
        record = history(store, "r1")[1]
        board = Board(federation="tiny", run="r1", session="s", round=1, attempt=1, phase="train", base=record.weights)
        self.shown(event("coordinate", 1, {})._replace(moment=Moment("closed", board, record=record, last=1)))
        assert "not chosen by the rule: f, g" in capsys.readouterr().err

    def shown(self, happened: Event) -> None:
        with Progress() as progress:
            progress(happened._replace(what="started"))
            progress(happened._replace(what="moment"))

    def test_in_the_metadata_of_a_step(self, store: MemoryStore, plan: Plan) -> None:
        assert metadata_of(history(store, "r1")[1])["not chosen"] == "f, g"

    def test_in_a_comparison_with_the_mean(self, store: MemoryStore, plan: Plan) -> None:
        play(store, plan_of("mean", "r2"), learners())
        found = compare([read_story(store, name) for name in ("r1", "r2")])
        assert found.results["updates not chosen"] == [2, None]

    def test_as_a_curve(self, store: MemoryStore, plan: Plan) -> None:
        points = {point.key: point.value for point in points_of(read_story(store, "r1"), 1)}
        assert (points["learners"], points["not_chosen"]) == (7.0, 2.0)
