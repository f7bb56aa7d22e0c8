"""Ends runs of models that take too long for the thread of the requests, in which only quick ones run."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

_LOOK = 0.01
"""Seconds between two looks while runs begin."""
_IDLE = 1.0
"""Seconds without a run after which nobody looks."""


class Watch:
    """A thread that ends runs of onnxruntime by their options; it sleeps while there are none."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[float, Any]] = {}
        self._begun, self._lock = threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def over(self, options: Any, seconds: float) -> Iterator[None]:
        """End the run of this thread, by `options.terminate`, if it takes more seconds than these."""
        if self._thread is None:
            self._start()
        thread = threading.get_ident()
        self._runs[thread] = time.monotonic() + seconds, options
        if not self._begun.is_set():
            self._begun.set()
        try:
            yield
        finally:
            del self._runs[thread]

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
                self._thread.start()

    def _look(self) -> None:
        last = time.monotonic()
        while True:
            self._begun.wait()
            time.sleep(_LOOK)
            now, runs = time.monotonic(), list(self._runs.values())
            for until, options in runs:
                if now > until:
                    options.terminate = True
            if runs:
                last = now
            elif now - last > _IDLE:
                self._begun.clear()
                if self._runs:  # one has begun in between, and saw the event
                    self._begun.set()
                last = now


WATCH = Watch()
"""The one of this process."""
