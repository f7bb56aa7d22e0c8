"""Sends a request again while its answer is late, and uses the answer that comes first.

MinIO holds a reader back that meets a writer of the same object. It looks at the lock again after a random time of up
to 50 ms (`lockRetryInterval` in internal/lsync), although the write takes 5. A reader that waits meets the
writer nearly each time. A later request is answered as soon as the object is there.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from fedpipe.store.bodies import release

_MOST = 4
"""Requests of one call at once; and of all calls of this process, beyond which none is sent again.

A server or a process that has much to do would have more, and one that hangs would get more and more of them.
"""
_sent: set[object] = set()
"""Requests of this process without an answer."""
_LATE, _LEAST = 2.0, 0.002
"""An answer is late after so many times the median, and not before so many seconds."""
_FIRST, _STEP = 0.05, 1 / 8
"""The median before anything was measured, and the share by which an answer above or below moves it."""
_SMALL = 2**16
"""Bytes of an answer that is read although nobody needs it, so that its connection can be used again."""


class _Answer(NamedTuple):
    response: Any
    error: BaseException | None
    seconds: float


class Hedge:
    """Sends requests to one server, and knows how long its answers usually take."""

    def __init__(self) -> None:
        self._median = _FIRST

    def first(self, send: Callable[[], Any]) -> Any:
        """Returns the response of the first request that is answered, or raises what it raised.

        Args:
            send: sends a request that may be repeated, and returns the response when its headers are there; several
                threads call it at once.
        """
        race = _Race(partial(_counted, send))
        try:
            for left in reversed(range(_MOST)):
                race.start()
                again = left and len(_sent) < _MOST
                answer = race.awaited(max(_LEAST, _LATE * self._median) if again else None)
                if answer is not None:
                    break
        finally:
            race.end()
        assert answer is not None
        if answer.error is not None:
            raise answer.error
        self._median *= 1 + _STEP if answer.seconds > self._median else 1 - _STEP
        return answer.response


def _counted(send: Callable[[], Any]) -> Any:
    request = object()
    _sent.add(request)
    try:
        return send()
    finally:
        _sent.discard(request)


class _Threads:
    """Runs acts in threads that nobody waits for, and uses these again: a new one takes a third of a poll."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._acts: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock, self._idle = threading.Lock(), 0

    def run(self, act: Callable[[], None]) -> None:
        """Runs an act that raises nothing. The thread ends with the process."""
        with self._lock:
            is_idle = self._idle > 0
            self._idle -= is_idle
        if is_idle:
            self._acts.put(act)
            return
        try:
            threading.Thread(target=self._work, args=(act,), daemon=True).start()
        except RuntimeError:  # the system allows no further thread
            act()

    def _work(self, act: Callable[[], None]) -> None:
        acts, lock = self._acts, self._lock
        while True:
            act()
            with lock:
                self._idle += 1
            act = acts.get()


_threads = _Threads()
os.register_at_fork(after_in_child=_threads._forget)  # threads do not follow into a fork
os.register_at_fork(after_in_child=_sent.clear)


class _Race:
    """The requests of one call: the first answer counts, and the others are read or closed."""

    def __init__(self, send: Callable[[], Any]) -> None:
        self._send, self._lock, self._over = send, threading.Lock(), False
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()

    def start(self) -> None:
        """Sends a request, in a thread."""
        _threads.run(self._run)

    def awaited(self, seconds: float | None) -> _Answer | None:
        """Returns the first answer; None if there is none after so many seconds."""
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            return None

    def end(self) -> None:
        """Uses no further answer."""
        with self._lock:
            self._over = True
        while not self._answers.empty():
            _threads.run(partial(_drop, self._answers.get()))  # its body may be late

    def _run(self) -> None:
        started = time.monotonic()
        try:
            response, error = self._send(), None
        except BaseException as raised:  # the caller's thread raises it
            response, error = None, raised
        answer = _Answer(response, error, time.monotonic() - started)
        with self._lock:
            if not self._over:
                self._answers.put(answer)
                return
        _drop(answer)


def _drop(answer: _Answer) -> None:
    response = answer.response
    if response is None:
        return
    if response.length_remaining is not None and response.length_remaining <= _SMALL:
        response.drain_conn()
    release(response)
