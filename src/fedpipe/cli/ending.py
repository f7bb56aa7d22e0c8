"""End the command early: by Ctrl-C, or by a signal of the system, with a sentence and a whole terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C."""
STOPPED = "stopped; run the same command again to resume"
_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_AGAIN = 0.5
"""Seconds between looks whether a signal's exception was lost, such as in a destructor, where Python drops it."""


class EndedError(BaseException):
    """A signal asks this process to end; no `except Exception` may catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let the first signal end the command in order, and the second one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        if first:
            leave(128 + number)
        first.append(number)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN, _AGAIN)
        raise _exception_of(number)

    def end_again(_number: int, _frame: FrameType | None) -> None:
        if sys.exception() is None:  # otherwise the command is cleaning up
            raise _exception_of(first[0])

    watched = [signal.SIGINT, *_SIGNALS]
    earlier: dict[int, Any] = {number: signal.getsignal(number) for number in watched}
    for number, handler in earlier.items():
        if handler in (signal.SIG_DFL, signal.default_int_handler):  # nohup ignores SIGHUP
            signal.signal(number, end)
    alarm = signal.signal(signal.SIGALRM, end_again)
    try:
        with _main_woken():
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        for number, handler in earlier.items():
            if signal.getsignal(number) is end:
                signal.signal(number, handler)


@contextlib.contextmanager
def _main_woken() -> Iterator[None]:
    """Wake the main thread for each signal: the system may give one to another thread, and Python's handler then waits.

    SIGURG is sent to the main thread, and does nothing but end its wait.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    main = threading.get_ident()

    def wake() -> None:
        while numbers := reader.recv(64):
            if any(number != signal.SIGURG for number in numbers):
                signal.pthread_kill(main, signal.SIGURG)

    earlier = signal.signal(signal.SIGURG, lambda *_: None)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    waker = threading.Thread(target=wake, name="signals", daemon=True)
    waker.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        waker.join()
        reader.close()
        signal.signal(signal.SIGURG, earlier)


def _exception_of(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else EndedError(number)


def leave(code: int) -> None:
    """End this process at once, with the cursor shown; its workers end with it."""
    show_cursor()
    os._exit(code)


def show_cursor() -> None:
    """Show the terminal's cursor, which a bar hides; an interrupt may come before the bar can show it again."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream.isatty():
                stream.write("\x1b[?25h")
            stream.flush()


def is_busy() -> bool:
    """Return whether other threads still compute, for which Python would wait at its end."""
    return any(thread is not threading.current_thread() and not thread.daemon for thread in threading.enumerate())
