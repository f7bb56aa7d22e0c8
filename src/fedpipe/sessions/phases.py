"""Scripts: an algorithm is a generator of phases.

A phase asks some learners for an answer, waits until it is over, and closes. The script is sent the result of the
closing; it yields the next phase or returns the record of the round:

    def averaging(round: Round) -> Script:
        aggregated: Record = yield round.train()
        return aggregated

A coordinator interprets scripts and contains no algorithm; a learner answers a phase by its name. In a pipeline of
single steps, each answer and each closing is a step of its own (`close_phase`). Scripts hold no state: after a crash
they are played again from the start of the round. So every closing can be repeated and finds its work done. A closing
whose result depends on late learners publishes it (`rounds.history.propose_candidate`): the first result counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedpipe.rounds.manifests import Record
from fedpipe.rounds.roll import Roll

Script = Generator["Phase", Any, Record]
"""Yields phases, is sent the result of each closing, and returns the committed record."""


class Early(Protocol):
    """Uses answers while others are awaited, so that less is left to do at the closing."""

    def take(self, learner: str) -> None:
        """Use a learner's answer; the closing reports any mistake in it."""


def _trusted(_learner: str) -> bool:
    return True


def _nothing_early(_asked: tuple[str, ...], _folder: Path) -> Early | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One exchange between a coordinator and learners.

    Args:
        name: learners answer the phase by it.
        round: its number; 0 before the first round.
        base: digest of the weights that the round began with.
        answer: name of the object that a learner leaves as its answer, such as `update` or `ballot`.
        asks: returns the learners to ask, from the attempt (1, 2, ...) and the learners that are away; empty: the phase
            closes at once.
        close: ends the phase; takes the roll and the early work. Raises QuorumError below the quorum.
        enough: returns the number of answers that end the wait, from the learners asked; by default all. A deadline
            ends it too.
        closing: name of the closing in timings; empty when it does no work of its own.
        retries: how often the phase is opened again after it stayed below the quorum.
        candidate: digest of the weights to vote on, if any.
        owner: the learner that made the candidate; empty for aggregated weights.
        early: returns the early work, given the learners asked and a folder for its files.
        seconds: the wait lasts for the deadline of the quorum, and not less than this.
        answered: returns whether a learner that says so has really left a valid answer; only these count as answers.
    """

    name: str
    round: int
    base: str
    answer: str
    asks: Callable[[int, Collection[str]], tuple[str, ...]]
    close: Callable[[Roll, Early | None], Any]
    enough: Callable[[Collection[str]], int] = len
    closing: str = ""
    retries: int = 0
    candidate: str = ""
    owner: str = ""
    early: Callable[[tuple[str, ...], Path], Early | None] = _nothing_early
    seconds: float = 0.0
    answered: Callable[[str], bool] = _trusted


def close_phase(script: Script, name: str = "") -> Any:
    """Close a phase whose learners have already answered, after the earlier phases, which find their work done.

    Args:
        script: of the round.
        name: of the phase; empty to play the script to its end.

    Returns:
        The result of the closing, or the record of the round.
    """
    result: Any = None
    try:
        while True:
            phase = script.send(result)
            result = phase.close(Roll(phase.asks(1, ())), None)
            if phase.name == name:
                return result
    except StopIteration as end:
        return end.value
