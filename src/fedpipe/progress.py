"""Live progress of a run on the terminal: a bar, and a line for whatever is finished."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from fedpipe.local import Event
from fedpipe.vote_table import VoteTable, is_vote


class Progress:
    """A listener of the local engine. On a terminal it draws a bar; elsewhere only lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._row = self._bar.add_task("starting", total=None)
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
            for text in self._votes.lines(event) if is_vote(event) else [_line(event)]:
                if text:
                    self._console.print(text, highlight=False, soft_wrap=True)

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
    if event.what not in ("done", "found") or event.result is None:
        return ""
    numbers, reason = _told(event.result)
    if reason and event.task.step in ("train", "train_private"):
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


def _told(result: dict[str, Any]) -> tuple[str, str]:
    """The metrics of a step's artifact as text, and who was dropped or why."""
    for name in ("metrics", "model"):
        listed = result["artifacts"].get(name, {}).get("artifacts", [])
        if listed and listed[0].get("metadata"):
            metadata = listed[0]["metadata"]
            shown = {k: v for k, v in metadata.items() if isinstance(v, float)}
            return "  ".join(f"{k} {v:.4f}" for k, v in shown.items()), str(metadata.get("dropped", ""))
    return "", ""
