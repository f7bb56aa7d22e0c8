"""How waiting parties pace their polls, and when they give up."""

from __future__ import annotations

from collections.abc import Generator
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.sessions.pacing import drive, patience_of, pause
from tests.federations import make_federation


class Even(Random):
    """A draw without jitter."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class TestPauses:
    @pytest.mark.parametrize(
        ("waited", "crowd", "seconds"),
        [
            (0, 1, 1 / 200),
            (0, 100, 100 / 200),
            (8, 1, 8 / 16),
            (1000, 1, 1),
            (1000, 20, 1),
            (1000, 100, 100 / 20),
        ],
        ids=["one begins", "a crowd begins", "a share of the wait", "at most 1 s", "up to 20", "an idle crowd"],
    )
    def test_follow_the_formula(self, waited: float, crowd: int, seconds: float) -> None:
        assert pause(waited, crowd, Even()) == seconds

    @given(st.floats(0, 1e6), st.integers(1, 5000), st.integers())
    def test_jitter_by_a_quarter(self, waited: float, crowd: int, seed: int) -> None:
        ratio = pause(waited, crowd, Random(seed)) / pause(waited, crowd, Even())
        assert 0.7499 < ratio < 1.2501

    def test_polls_grow_with_the_logarithm_of_the_wait(self) -> None:
        """A minute of training: how often a learner's sign is looked at, and how late its end is seen at most."""
        looks, now, random = 0, 0.0, Random(1)
        while now < 60:
            now += pause(now, 5, random)
            looks += 1
        assert looks < 220
        assert pause(60, 5, Random(1)) < 1.3


@pytest.mark.parametrize(("deadline", "seconds"), [(60, 900), (300, 900), (301, 903), (3600, 10800)])
def test_patience_is_three_deadlines_or_a_quarter_of_an_hour(deadline: float, seconds: float) -> None:
    assert patience_of(make_federation(quorum={"deadline": deadline})) == seconds


def test_driving_sleeps_as_told_and_returns_the_result() -> None:
    slept: list[float] = []

    def waiting() -> Generator[float, None, str]:
        yield 1.0
        yield 2.0
        return "done"

    assert drive(waiting(), slept.append) == "done"
    assert slept == [1.0, 2.0]
