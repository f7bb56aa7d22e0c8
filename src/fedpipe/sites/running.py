"""The agent as a process: one for each state folder, with a file that shows its state. It can be asked to end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from msgspec import Struct

from fedpipe.errors import CorruptError, FedpipeError, InputError
from fedpipe.rounds.manifests import Moment
from fedpipe.sessions.presence import State
from fedpipe.sites.isolation import Isolation
from fedpipe.sites.site import Site
from fedpipe.store.files import write_whole
from fedpipe.store.objects import decode, encode

_LOCK, _STATE, _STOP, _WAKE = "agent.lock", "agent.json", "stop", "wake"
_SLICE = 1.0
"""Most seconds until a sleeping agent sees that it is asked to end or to look."""


class Running(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The state of an agent as it was last written: since when, by the clock of the site.

    `isolation` is what was in force for the process that trained last; None before the first training.
    """

    process: int
    state: State = "idle"
    text: str = ""
    since: Moment = 0.0
    isolation: Isolation | None = None


class Control:
    """The control of a running agent: it sleeps, shows its state, and learns that it is asked to end.

    Args:
        site: its file.
    """

    def __init__(self, site: Site) -> None:
        self._folder = Path(site.state)
        self._asked = threading.Event()
        self._running = Running(process=os.getpid(), since=time.time())

    def stops(self) -> bool:
        """Return whether the agent was asked to end, by a signal or by `fedpipe site stop`."""
        if (self._folder / _STOP).exists():
            self._asked.set()
        return self._asked.is_set()

    @property
    def is_idle(self) -> bool:
        """Whether the agent attends no session."""
        return self._running.state != "attends"

    def sleep(self, seconds: float) -> None:
        """Wait for some seconds, or until the agent is asked to end or to look."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self.stops() and not _taken(self._folder / _WAKE):
            self._asked.wait(min(left, _SLICE))

    def show(self, state: State, text: str) -> None:
        """Write the state of the agent for `fedpipe site status`."""
        self._write(state=state, text=text, since=time.time())

    def show_isolation(self, isolation: Isolation) -> None:
        """Write what is in force for the process that trains."""
        if isolation != self._running.isolation:
            self._write(isolation=isolation)

    def _write(self, **changes: Any) -> None:
        fields = {name: getattr(self._running, name) for name in Running.__struct_fields__}
        self._running = Running(**(fields | changes))
        with contextlib.suppress(FedpipeError):  # a full disk must not end the agent: its state is a convenience
            write_whole(self._folder / _STATE, encode(self._running))

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Let SIGTERM, SIGINT and SIGHUP ask the agent to end; the second one ends it as usual."""
        before: dict[int, Any] = {}

        def ask(number: int, _: Any) -> None:
            self._asked.set()
            signal.signal(number, before[number])

        for number in (int(signal.SIGTERM), int(signal.SIGINT), int(signal.SIGHUP)):
            before[number] = signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def only_one(site: Site) -> Iterator[Control]:
    """Yield the control of this process as the only agent of a state folder. Raises InputError if there is another."""
    with _locked(site) as is_first:
        if not is_first:
            running = last_state(site)
            process = f", process {running.process}" if running else ""
            raise InputError(
                f"another agent of {site.name} runs already{process}", where=site.state,
                remedy="End it with `fedpipe site stop`, or give this one a state folder of its own.",
            )  # fmt: skip
        stop, wake = Path(site.state) / _STOP, Path(site.state) / _WAKE
        for left in (stop, wake):
            left.unlink(missing_ok=True)
        yield Control(site)
        stop.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(site: Site) -> Iterator[bool]:
    """Take the lock of a state folder for a while, and yield whether it was free."""
    with _lock_file(site) as file:
        for pause in (0.05, 0.2, 0.0):  # `status` holds it for a moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(pause)
        else:
            yield False
            return
        yield True


def _lock_file(site: Site) -> IO[bytes]:
    try:
        return (Path(site.state) / _LOCK).open("ab")
    except OSError as error:
        raise InputError(f"the file cannot be written: {error.strerror}", where=f"{site.state}/{_LOCK}") from error


def is_running(site: Site) -> bool:
    """Return whether an agent runs with this state folder on this machine."""
    with _locked(site) as is_free:
        return not is_free


def last_state(site: Site) -> Running | None:
    """Return the state that the last agent wrote; None without one."""
    path = Path(site.state) / _STATE
    try:
        return decode(path.read_bytes(), Running, where=str(path))
    except (OSError, CorruptError):
        return None


def wake(site: Site) -> None:
    """Let a sleeping agent look at once, such as after a decision of the site."""
    with contextlib.suppress(OSError):  # it looks by itself too, only later
        (Path(site.state) / _WAKE).touch()


def _taken(path: Path) -> bool:
    """Return whether a file was there, and remove it."""
    try:
        path.unlink()
    except OSError:
        return False
    return True


def ask_to_end(site: Site, *, wait: float, again: Callable[[float], None] = time.sleep) -> bool:
    """Ask the agent to end after the answer that it works on, and wait for it.

    Args:
        site: its file.
        wait: seconds that it may take.
        again: waits between two looks.

    Returns:
        Whether it has ended.
    """
    stop = Path(site.state) / _STOP
    until = time.monotonic() + wait
    if is_running(site):
        stop.touch()
    while is_running(site):
        if time.monotonic() > until:
            return False
        again(0.2)
    stop.unlink(missing_ok=True)
    return True
