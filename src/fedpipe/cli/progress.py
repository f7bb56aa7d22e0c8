"""Live progress of a run on standard error: a line for each finished step or round, and a bar on a terminal.

Elsewhere, in a pipe or a log file, lines have the seconds since the start. There the start of a step has a line too,
and so has a long silence.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from fedpipe.cli.text import Clock, Styled, err, plain, remark_text, styled
from fedpipe.cli.vote_table import VoteTable, is_vote
from fedpipe.engine.local import Event
from fedpipe.sessions.coordinator import Moment
from fedpipe.steps import WAITING


class Progress:
    """A listener of the local engine, with a bar on a terminal, and only lines elsewhere.

    Args:
        doing: what happens first.
    """

    def __init__(self, doing: str = "starting") -> None:
        text = TextColumn("{task.description}", markup=False)
        columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._row = self._bar.add_task(doing, total=None)
        self._doing = doing
        self._clock = None if err.is_terminal else Clock(self._describe)
        self._session: TaskID | None = None
        self._awaited: list[str] = []
        self._running: list[str] = []
        self._state = ""
        self._ended = 0
        self._votes = VoteTable(err.width)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        try:
            self._bar.start()
        except BaseException:  # Ctrl-C in the middle: the bar would be drawn on, with the cursor hidden
            self._bar.stop()
            raise
        if self._clock is not None:
            self._clock.__enter__()
            self._clock.line(self._doing)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._clock is not None:
            self._clock.__exit__()

    def stage(self, text: str) -> None:
        """Show what happens before the first step, or after the last."""
        with self._lock:
            self._doing = text
            self._bar.update(self._row, description=plain(text))
            if self._clock is not None:
                self._clock.line(text)

    def _describe(self) -> str:
        """Return what is done at the moment."""
        steps = ", ".join(self._running[:3]) + (f" and {len(self._running) - 3} more" if len(self._running) > 3 else "")
        if not self._running:
            return self._doing
        return f"running {steps}" + (f"; {self._state}" if self._state else "")

    def _say(self, text: Text) -> None:
        if self._clock is not None:
            self._clock.line(text)
        else:
            remark_text(text)

    def __call__(self, event: Event) -> None:
        """Take an event of the engine."""
        with self._lock:
            self._count(event)
            if event.moment is not None:
                self._follow(event.moment)
            for text in self._votes.lines(event) if is_vote(event) else [_line(event)]:
                if text:
                    self._say(text)

    def _follow(self, moment: Moment) -> None:
        """Draw a second bar: the rounds of a session, and the learners that it awaits."""
        board = moment.board
        if self._session is None:
            self._session = self._bar.add_task("session", total=moment.last)
        if moment.what == "opened":
            self._awaited = list(board.asked)
        elif moment.learner in self._awaited:
            self._awaited.remove(moment.learner)
        done = board.round if moment.what in ("closed", "ended") or board.phase == "score" else max(0, board.round - 1)
        names = f"{', '.join(self._awaited[:3])}{' ...' if len(self._awaited) > 3 else ''}"
        awaited = f"awaiting {names}" if names else "all have answered"
        text = "session ended" if moment.what == "ended" else f"round {board.round} {board.phase}: {awaited}"
        self._state = text
        self._bar.update(self._session, description=plain(text), completed=done)

    def _count(self, event: Event) -> None:
        if event.what == "started":
            self._running.append(event.task.name)
            if self._clock is not None:
                self._clock.line(f"{event.task.name} started")
        elif event.what in ("done", "found"):
            self._ended += 1
            self._running.remove(event.task.name)
        doing = ", ".join(self._running[:2]) or "waiting"
        more = f" +{len(self._running) - 2}" if len(self._running) > 2 else ""
        self._bar.update(self._row, description=plain(doing + more), completed=self._ended, total=event.total or None)


def _line(event: Event) -> Text | None:
    name = event.task.name
    if event.what == "retried":
        return styled((f"↻ {name}", "yellow"), f": {event.why}; trying again")
    if event.moment is not None:
        return _round_line(event.moment, event.metadata)
    if event.what not in ("done", "found") or event.result is None:
        return None
    if event.task.step in WAITING and event.what == "done":
        return None  # its rounds have lines of their own
    numbers, reason = _outcome(event.result)
    if reason and event.task.step == "train":
        return styled((f"✗ {name}", "red"), f" dropped: {reason}")
    dropped: list[Styled] = [" ", (f"without {reason}", "red")] if reason else []
    timing = "already done" if event.what == "found" else f"{event.seconds:.1f} s"
    return styled(_mark(event), f" {name:<22} {numbers}", *dropped, " ", (timing, "dim"))


def _mark(event: Event) -> Styled:
    if event.what == "found":
        return "=", "dim"
    return ("●", "bold green") if event.task.step == "aggregate" else ("✓", "green")


def _round_line(moment: Moment, metrics: Mapping[str, Any]) -> Text | None:
    """Describe a closed round of a session, or why the session ended before its last one."""
    board, record = moment.board, moment.record
    if moment.what == "ended" and board.ending not in ("done", "below_quorum", "failed"):  # errors follow anyway
        return styled((f"the session ended after round {board.round}", "yellow"), f": {board.why}")
    if moment.what != "closed" or record is None:
        return None
    numbers = "  ".join(f"{k} {v:.4f}" for k, v in metrics.items() if _is_shown(k, v))
    dropped: list[Styled] = []
    for item in record.dropped:
        dropped += ["\n  ", (f"✗ {item.learner}", "red"), f" dropped: {item.why}"]
    if record.not_chosen:
        dropped += [(f"\n  not chosen by the rule: {', '.join(record.not_chosen)}", "dim")]
    name = f"round {record.round} of {moment.last}"
    return styled(("●", "bold green"), f" {name:<22} {numbers} ", (f"{moment.seconds:.1f} s", "dim"), *dropped)


def _is_shown(name: str, value: Any) -> bool:
    """Return whether a line shows a value: metrics, but no measurements inside an algorithm."""
    return isinstance(value, float) and "/" not in name


def _outcome(result: dict[str, Any]) -> tuple[str, str]:
    """Return the metrics of a step's artifact as text, and the learners that were dropped, or why."""
    for name in ("metrics", "model"):
        listed = result["artifacts"].get(name, {}).get("artifacts", [])
        if listed and listed[0].get("metadata"):
            metadata = listed[0]["metadata"]
            shown = {k: v for k, v in metadata.items() if _is_shown(k, v)}
            return "  ".join(f"{k} {v:.4f}" for k, v in shown.items()), str(metadata.get("dropped", ""))
    return "", ""
