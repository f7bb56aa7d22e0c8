"""A table of votes that grows on the terminal while the run is in progress."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from fedpipe.cli.text import Styled, styled
from fedpipe.engine.local import Event
from fedpipe.rounds.manifests import Record
from fedpipe.steps.vote import flat

_MARKS = {
    "yes": ("✓", "green"), "no": ("✗", "red"), "absent": ("–", "yellow"), "void": ("·", "dim"), "none": (" ", ""),
}  # fmt: skip
_SCORES, _NARROW = 15, 3


def is_vote(event: Event) -> bool:
    """Return whether this table shows the event: a finished step of a vote."""
    voted = event.moment is not None and event.moment.what == "closed" and "rule" in event.metadata
    return voted or (event.what in ("done", "found") and event.task.step in ("vote", "tally"))


class VoteTable:
    """One row per round: proposer, result, epsilon, and each learner's ballot with its vote and test score.

    Args:
        width: of the terminal; one too narrow for scores shows ballots alone.
    """

    def __init__(self, width: int) -> None:
        self._width, self._begun = width, False
        self._cast: dict[int, dict[str, dict[str, Any]]] = {}

    def lines(self, event: Event) -> list[Text]:
        """Return the lines to print: a row when a round is decided, a warning for an absent voter."""
        if event.moment is not None and event.moment.record is not None:
            return self._session_lines(event.moment.record, dict(event.metadata))
        number = int(event.inputs["round"])
        if event.task.step == "tally":
            return self._row(number, _metadata(event, "model"))
        learner, ballot = str(event.inputs["learner"]), _metadata(event, "metrics")
        self._cast.setdefault(number, {})[learner] = ballot
        return [_absence(event.task.name, ballot["absent"])] if "absent" in ballot else []

    def _session_lines(self, record: Record, tally: dict[str, Any]) -> list[Text]:
        """Return the lines of a round of a session, whose record holds all ballots."""
        cast = {b.learner: {"ballot": "yes" if b.approve else "no", **flat(b.proposed)} for b in record.ballots}
        absent = {item.learner: {"absent": item.why} for item in record.absent}
        self._cast[record.round] = {**cast, **absent}
        warnings = [_absence(f"{record.round} vote {name}", item["absent"]) for name, item in absent.items()]
        return [*warnings, *self._row(record.round, tally)]

    def _row(self, number: int, tally: dict[str, Any]) -> list[Text]:
        learners = sorted(self._cast.get(number, {}))
        wide = 44 + _SCORES * len(learners) <= self._width
        cells = [part for name in learners for part in _cell(name, self._cast[number][name], tally, wide)]
        row = styled(_sign(tally), f" {number:>3} {tally['proposer']!s:<14.14} ", _result(tally), " ", *cells)
        return [*self._head(learners, str(tally["criterion"]), wide), row]

    def _head(self, learners: list[str], criterion: str, wide: bool) -> list[Text]:
        if self._begun or not learners:
            return []
        self._begun = True
        what = f"ballot, {criterion} on vote and test part" if wide else "ballots"
        columns = "".join(f"{name:<{_SCORES}.{_SCORES - 1}}" for name in learners) if wide else ", ".join(learners)
        lines = (f"    # proposer       result ({what} of:)", f"{'':>40}{columns}")
        return [styled((line, "dim")) for line in lines]


def _absence(what: str, why: Any) -> Text:
    return styled((f"– {what}", "yellow"), f" absent: {why}")


def _sign(tally: dict[str, Any]) -> Styled:
    return ("●", "bold green") if tally["accepted"] else ("○", "dim")


def _result(tally: dict[str, Any]) -> Styled:
    if "voters" not in tally:
        return str(tally["dropped"]), "red"
    word = "accepted" if tally["accepted"] else "rejected"
    spent = f" ε {tally['epsilon']:.3g}" if "epsilon" in tally else ""
    return f"{word} {tally['approvals']}/{tally['voters']}{spent:<8}"


def _cell(name: str, ballot: dict[str, Any], tally: dict[str, Any], wide: bool) -> list[Styled]:
    void = tally["rule"] == "others_vote" and name == tally["proposer"]
    mark = _MARKS["void" if void else str(ballot.get("ballot", "absent"))]
    if not wide:
        return [mark, " "]
    scores = [ballot.get(f"{part}_{tally['criterion']}") for part in ("vote", "test")]
    shown = " ".join(f"{score:.4f}"[:6] if isinstance(score, float) else "     –" for score in scores)
    return [mark, f"{shown:<{_SCORES - 1}}"]


def _metadata(event: Event, artifact: str) -> dict[str, Any]:
    assert event.result is not None
    listed = event.result["artifacts"].get(artifact, {}).get("artifacts", [])
    return dict(listed[0].get("metadata", {})) if listed else {}
