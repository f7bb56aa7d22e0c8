"""Wakes the parties of a session that wait in threads of this process, before they would look at the store again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class Bell:
    """Wakes the threads that wait for it; a ring that nobody awaits yet is heard by the next who waits."""

    def __init__(self) -> None:
        self._rung, self.count = threading.Condition(), 0

    def ring(self) -> None:
        """Wakes all."""
        with self._rung:
            self.count += 1
            self._rung.notify_all()

    def wait(self, heard: int, seconds: float) -> int:
        """Waits until it has rung more often than was heard, at most so many seconds; returns how often it has rung."""
        with self._rung:
            self._rung.wait_for(lambda: self.count != heard, seconds)
            return self.count


class Meeting:
    """The bells of a session: learners hear that the board has moved, the coordinator that nobody computes any more.

    The store alone decides what was asked and answered. A bell that rings too often costs a look, one that does not
    ring costs the pause before the next look.
    """

    def __init__(self) -> None:
        self._asked, self._answered = Bell(), Bell()
        self._lock, self._computing = threading.Lock(), 0

    def move(self) -> None:
        """Wakes the learners, after the board has moved."""
        self._asked.ring()

    def end(self) -> None:
        """Wakes all."""
        self._asked.ring()
        self._answered.ring()

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Counts a computation, from the moment when it waits for a core."""
        with self._lock:
            self._computing += 1
        try:
            yield
        finally:
            with self._lock:
                self._computing -= 1

    def waiter(self, *, coordinates: bool) -> Callable[[float], None]:
        """Returns the function by which one party waits for some seconds, or until it is woken.

        Args:
            coordinates: whether it is the coordinator. A learner that begins to wait has answered.
        """
        own = self._answered if coordinates else self._asked
        heard = own.count

        def wait(seconds: float) -> None:
            nonlocal heard
            if not coordinates and not self._computing:
                self._answered.ring()
            heard = own.wait(heard, seconds)

        return wait
