"""Live progress of a run on the terminal: a bar, and a line for whatever is finished."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from fedpipe.cli.vote_table import VoteTable, is_vote
from fedpipe.engine.local import Event
from fedpipe.sessions.coordinator import Moment
from fedpipe.steps import WAITING


class Progress:
    """A listener of the local engine. On a terminal it draws a bar; elsewhere only lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._row = self._bar.add_task("starting", total=None)
        self._session: TaskID | None = None
        self._awaited: list[str] = []
        self._running: list[str] = []
        self._ended = 0
        self._votes = VoteTable(console.width)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Takes an event of the engine."""
        with self._lock:
            self._count(event)
            if event.moment is not None:
                self._follow(event.moment)
            for text in self._votes.lines(event) if is_vote(event) else [_line(event)]:
                if text:
                    self._console.print(text, highlight=False, soft_wrap=True)

    def _follow(self, moment: Moment) -> None:
        """A second bar: the rounds of a session, and who is awaited."""
        board = moment.board
        if self._session is None:
            self._session = self._bar.add_task("session", total=moment.last)
        if moment.what == "opened":
            self._awaited = list(board.asked)
        elif moment.learner in self._awaited:
            self._awaited.remove(moment.learner)
        done = board.round if moment.what in ("closed", "ended") else max(0, board.round - 1)
        awaited = f"awaiting {', '.join(self._awaited[:3])}{' ...' if len(self._awaited) > 3 else ''}"
        text = "session ended" if moment.what == "ended" else f"round {board.round} {board.phase}: {awaited}"
        self._bar.update(self._session, description=text, completed=done)

    def _count(self, event: Event) -> None:
        if event.what == "started":
            self._running.append(event.task.name)
        elif event.what in ("done", "found"):
            self._ended += 1
            self._running.remove(event.task.name)
        doing = ", ".join(self._running[:2]) or "waiting"
        more = f" +{len(self._running) - 2}" if len(self._running) > 2 else ""
        self._bar.update(self._row, description=doing + more, completed=self._ended, total=event.total or None)


def _line(event: Event) -> str:
    name = escape(event.task.name)
    if event.what == "retried":
        return f"[yellow]↻ {name}[/]: {escape(event.why)}; trying again"
    if event.moment is not None:
        return _round_line(event.moment, event.told)
    if event.what not in ("done", "found") or event.result is None:
        return ""
    if event.task.step in WAITING and event.what == "done":
        return ""  # its rounds were told
    numbers, reason = _told(event.result)
    if reason and event.task.step == "train":
        return f"[red]✗ {name}[/] dropped: {escape(reason)}"
    mark = (
        "[dim]= [/]"
        if event.what == "found"
        else "[green]✓[/]"
        if event.task.step != "aggregate"
        else "[bold green]●[/]"
    )
    dropped = f" [red]without {escape(reason)}[/]" if reason else ""
    timing = "already done" if event.what == "found" else f"{event.seconds:.1f} s"
    return f"{mark} {name:<22} {numbers}{dropped} [dim]{timing}[/]"


def _round_line(moment: Moment, told: Mapping[str, Any]) -> str:
    """A round of a session that is closed, or why the session ended before its last one."""
    board, record = moment.board, moment.record
    if moment.what == "ended" and board.ending != "done":
        return f"[yellow]the session ended after round {board.round}[/]: {escape(board.why)}"
    if moment.what != "closed" or record is None:
        return ""
    numbers = "  ".join(f"{k} {v:.4f}" for k, v in told.items() if _is_shown(k, v))
    dropped = "".join(f"\n  [red]✗ {escape(d.learner)}[/] dropped: {escape(d.why)}" for d in record.dropped)
    name = f"round {record.round} of {moment.last}"
    return f"[bold green]●[/] {name:<22} {numbers} [dim]{moment.seconds:.1f} s[/]{dropped}"


def _is_shown(name: str, value: Any) -> bool:
    """Whether a line tells it: metrics, but nothing that was measured inside of an algorithm."""
    return isinstance(value, float) and "/" not in name


def _told(result: dict[str, Any]) -> tuple[str, str]:
    """The metrics of a step's artifact as text, and who was dropped or why."""
    for name in ("metrics", "model"):
        listed = result["artifacts"].get(name, {}).get("artifacts", [])
        if listed and listed[0].get("metadata"):
            metadata = listed[0]["metadata"]
            shown = {k: v for k, v in metadata.items() if _is_shown(k, v)}
            return "  ".join(f"{k} {v:.4f}" for k, v in shown.items()), str(metadata.get("dropped", ""))
    return "", ""
