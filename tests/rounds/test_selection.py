"""The rules of a session: whom a round asks, and when to end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fedpipe.errors import FederationError
from fedpipe.federation.file import parse_federation
from fedpipe.federation.training import EarlyStopping
from fedpipe.rounds.selection import SIMULATED, select, took_part
from fedpipe.rounds.stopping import stalled
from fedpipe.store import MemoryStore
from tests.federations import PlusOneLearner, make_federation, make_plan, play

NAMES = tuple(f"k{number:02d}" for number in range(20))


def sampled(**quorum: Any) -> Any:
    return make_federation(NAMES, quorum={"min_learners": 2, **quorum})


class TestSelection:
    def test_all_without_sampling(self) -> None:
        assert select(make_federation(("b", "a")), 1) == ("a", "b")

    def test_a_drawn_part_that_is_the_same_everywhere(self) -> None:
        """Pinned: another machine, another version of Python draws the same."""
        federation = sampled(learners_per_round=4)
        assert select(federation, 1) == select(federation, 1)
        assert len(select(federation, 1)) == 4
        assert select(federation, 1) == ("k00", "k07", "k11", "k15")

    def test_every_learner_has_its_turn(self) -> None:
        federation = sampled(learners_per_round=4)
        counts = [sum(name in select(federation, number) for number in range(1, 1001)) for name in NAMES]
        assert all(150 < count < 250 for count in counts)  # 200 expected, standard deviation 13

    def test_over_selection_asks_more(self) -> None:
        assert len(select(sampled(learners_per_round=4, over_selection=1.3), 1)) == 6

    def test_who_is_away_is_not_asked(self) -> None:
        away = NAMES[:10]
        assert not set(select(sampled(), 1, away=away)) & set(away)
        assert not set(select(sampled(learners_per_round=4), 1, away=away)) & set(away)

    def test_unless_the_quorum_needs_them(self) -> None:
        assert select(sampled(), 1, away=NAMES[:19]) == NAMES

    @given(st.integers(1, 50), st.integers(1, 20), st.sets(st.sampled_from(NAMES)))
    def test_another_attempt_asks_more_and_the_first_ones_again(self, number: int, wanted: int, away: set[str]) -> None:
        federation = sampled(learners_per_round=max(2, wanted))
        asked = [set(select(federation, number, attempt)) for attempt in (1, 2, 3)]
        assert asked[0] <= asked[1] <= asked[2]
        assert len(asked[1]) == min(20, 2 * len(asked[0]))


def test_who_took_part(store: MemoryStore) -> None:
    """The learners with an update; the clients of a simulated round, which leave none, are drawn again."""
    federation = make_federation()
    record = play(
        store, make_plan(federation), {name: PlusOneLearner(1, fails="" if name < "c" else "full") for name in "abc"}
    )
    assert took_part(federation, record) == ("a", "b")
    simulated = replace(record, rule=f"{SIMULATED} mean", updates=())
    assert took_part(federation, simulated) == ("a", "b")
    assert took_part(federation, replace(simulated, dropped=())) == ("a", "b", "c")
    held_out = replace(federation, simulation=replace(federation.simulation, held_out=("b",)))
    assert took_part(held_out, simulated) == ("a",)
    assert took_part(held_out, replace(simulated, dropped=())) == ("a", "c")


class TestEarlyStopping:
    @pytest.mark.parametrize(
        ("values", "patience", "more", "expected"),
        [
            ([], 1, {}, False),
            ([1.0], 1, {}, False),
            ([1.0, 1.0], 1, {}, True),
            ([3.0, 2.0, 2.5, 1.9, 2.0], 2, {}, False),
            ([3.0, 2.0, 2.5, 2.4], 2, {}, True),
            ([0.5, 0.6, 0.6], 1, {"metric": "accuracy", "minimise": False}, True),
            ([0.5, 0.6, 0.7], 1, {"metric": "accuracy", "minimise": False}, False),
            ([1.0, 0.95, 0.9], 2, {"min_delta": 0.1}, True),
        ],
    )
    def test_patience(self, values: list[float], patience: int, more: dict[str, Any], expected: bool) -> None:
        assert stalled(values, EarlyStopping(patience=patience, **more)) is expected


BASE: dict[str, Any] = {"name": "t", "learners": [{"name": "a"}, {"name": "b"}], "data": {"uri": "x.npz"}}


@pytest.mark.parametrize(
    ("training", "more", "message"),
    [
        ({"rounds_per_step": 0}, {}, r"training.rounds_per_step: Expected `int` >= 1"),
        ({"rounds_per_step": "al"}, {}, r"training.rounds_per_step: .*Valid: all"),
        ({}, {"quorum": {"min_learners": 3}}, r"quorum.min_learners: is 3, but there are 2 learners. Lower it"),
        ({}, {"quorum": {"learners_per_round": 3}}, r"quorum.learners_per_round: is 3, but there are 2"),
        ({}, {"quorum": {"learners_per_round": 1, "min_learners": 2}}, r"quorum.min_learners: is 2, but a round asks"),
        ({}, {"quorum": {"over_selection": 1.5}}, r"quorum.over_selection: has no effect"),
        ({}, {"quorum": {"over_selection": 0.5}}, r"quorum.over_selection: .*>= 1"),
        ({}, {"quorum": {"deadline": 0}}, r"quorum.deadline: .*> 0"),
        ({}, {"quorum": {"learners_per_round": 1}, "algorithm": "collective"}, r"cannot be set in collective"),
        ({"rounds_per_step": 1, "max_seconds": 9}, {}, r"training.max_seconds: needs a session"),
        ({"rounds_per_step": 1, "early_stopping": {"patience": 1}}, {}, r"training.early_stopping: needs a session"),
        ({"early_stopping": {"patience": 0}}, {}, r"early_stopping.patience: .*>= 1"),
        ({"early_stopping": {"patience": 1, "metric": "test_accuracy"}}, {}, r"early_stopping.minimise: is missing"),
        (
            {"early_stopping": {"patience": 1}},
            {"evaluation": {"every_round": False}},
            r"early_stopping.metric: needs the learners' tests",
        ),
    ],
)
def test_mistakes_in_the_file(training: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(FederationError, match=message):
        parse_federation({**BASE, "training": {"rounds": 3, "batch_size": 1, **training}, **more})
