"""Shows a run's progress in a notebook, or as lines of a script that asks for them."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from fedpipe.commands.shown import curves, number, shown_metrics, table
from fedpipe.engine.local import Event, Listener

_SECONDS = 0.2
"""Least seconds between two drawings."""


Display = Callable[..., Any]
"""Shows an object in a notebook; with `display_id`, returns a handle whose `update` shows another one in its place."""


def find_display() -> Display | None:
    """Returns IPython's `display` in a Jupyter kernel, and None elsewhere. IPython is not imported for it."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return ipython.display.display if ipython and getattr(shell, "kernel", None) is not None else None


@contextlib.contextmanager
def showing(
    progress: bool | None, listener: Listener, stages: Callable[[str], None]
) -> Iterator[tuple[Listener, Callable[[str], None]]]:
    """Yields a listener of events and one of stages that also show the progress.

    Args:
        progress: shows it, or not; None shows it in a notebook only.
        listener: receives every event.
        stages: receives what happens before the first event.
    """
    display = find_display()
    if not (display is not None if progress is None else progress):
        yield listener, stages
        return
    live = Live(display)

    def both(event: Event) -> None:
        live(event)
        listener(event)

    def begin(text: str) -> None:
        live.stage(text)
        stages(text)

    try:
        yield both, begin
    finally:
        live.draw(last=True)


class Live:
    """Collects a run's events, and draws them in a notebook or writes a line for each round.

    Args:
        display: that of a notebook; None writes lines.
    """

    def __init__(self, display: Display | None = None) -> None:
        self._display, self._lock = display, threading.Lock()
        self._handle: Any = None
        self._drawn, self._doing = 0.0, ""
        self._running: list[str] = []
        self._ended = self._total = 0
        self._last_round = 0
        self.rounds: list[dict[str, Any]] = []
        self.remarks: list[str] = []

    def __call__(self, event: Event) -> None:
        """Takes an event of the engine."""
        with self._lock:
            self._count(event)
            if line := self._line(event):
                self._write(line)
        self.draw()

    def stage(self, text: str) -> None:
        """Takes what happens before the first event."""
        with self._lock:
            self._doing = text
        self.draw()

    def _count(self, event: Event) -> None:
        name = event.task.name
        self._total = event.total or self._total
        if event.what == "started":
            self._running.append(name)
        elif event.what in ("done", "found"):
            self._ended += 1
            self._running = [one for one in self._running if one != name]

    def _line(self, event: Event) -> str:
        """Records what a reader wants to know of an event, and returns it as a line; empty for nothing."""
        if event.what == "retried":
            self.remarks.append(f"{event.task.name}: {event.why}; trying again")
            return self.remarks[-1]
        moment = event.moment
        if moment is not None and moment.what == "closed" and moment.record is not None:
            self._last_round = moment.last
            self.remarks += [f"round {moment.record.round} without {one.learner}: {one.why}"
                             for one in moment.record.dropped]  # fmt: skip
            return self._round(moment.record.round, dict(event.metadata), moment.seconds)
        if moment is None and event.task.step in ("aggregate", "tally") and event.what in ("done", "found"):
            return self._round(len(self.rounds) + 1, _metadata(event), event.seconds)
        return ""

    def _round(self, at: int, metadata: dict[str, Any], seconds: float) -> str:
        metrics = {name: value for name, value in metadata.items() if isinstance(value, float)}
        entry = {"round": at, "loss": metrics.pop("loss", None), "metrics": metrics}
        self.rounds.append(entry)
        of = f" of {self._last_round}" if self._last_round else ""
        numbers = "  ".join(f"{name} {number(value)}" for name, value in shown_metrics(entry).items())
        return f"round {at}{of}  {numbers}  {seconds:.1f} s"

    def _write(self, line: str) -> None:
        if self._display is None:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    def draw(self, *, last: bool = False) -> None:
        """Draws the state in the notebook's cell, a few times a second."""
        if self._display is None or (not last and time.monotonic() - self._drawn < _SECONDS):
            return
        with self._lock:
            self._drawn = time.monotonic()
            if self._handle is None:
                self._handle = self._display(self, display_id=True)
            else:
                self._handle.update(self)

    def _repr_html_(self) -> str:
        doing = ", ".join(self._running[:3]) + (" ..." if len(self._running) > 3 else "")
        doing = doing or ("" if self._total else self._doing)
        bar = f'<progress value="{self._ended}" max="{self._total or 1}"></progress>'
        of = f" of {self._last_round}" if self._last_round else ""
        newest = self.rounds[-1:]
        rows = [(f"{entry['round']}{of}", *map(number, shown_metrics(entry).values())) for entry in newest]
        head = ("round", *(name for entry in newest for name in shown_metrics(entry)))
        notes = table([(remark,) for remark in self.remarks[-5:]], ("remarks",))
        now = table([(doing,)], ("now",)) if doing else ""
        steps = f"{bar} {self._ended} of {self._total} steps {now}"
        return f"<div>{steps}{table(rows, head)}{curves(self.rounds)}{notes}</div>"


def _metadata(event: Event) -> dict[str, Any]:
    """Returns the metadata of the artifact that a step of a round has written."""
    for name in ("metrics", "model"):
        listed = event.result["artifacts"].get(name, {}).get("artifacts", []) if event.result else []
        if listed and listed[0].get("metadata"):
            return dict(listed[0]["metadata"])
    return {}
