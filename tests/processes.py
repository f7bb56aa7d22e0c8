"""Real processes: those that a command started, and a command in a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

COMMAND = Path(sys.executable).parent / "fedpipe"
LIMIT = 120.0
"""Seconds after which nothing more is expected, on the slowest machine; what a test interrupts lasts longer."""


@contextlib.contextmanager
def few_files(count: int) -> Iterator[None]:
    """Lets this process open so many more files at most, unless it raises the limit itself."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + count, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (now, most))


def started_with(mark: dict[str, str]) -> set[int]:
    """The living processes with these environment variables; one that has ended has none."""
    wanted = [f"{name}={value}".encode() for name, value in mark.items()]
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if set(wanted) <= set(path.read_bytes().split(b"\0")):
                found.add(int(path.parent.name))
    return found


def assert_ended(mark: dict[str, str], seconds: float = LIMIT) -> None:
    """All processes with these environment variables end within this time; those that remain are killed."""
    end = time.monotonic() + seconds
    while (left := started_with(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    commands = []
    for process in left:
        with contextlib.suppress(OSError):
            commands.append(Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
            os.kill(process, signal.SIGKILL)
    assert not left, commands


class Terminal:
    """A command in a terminal of its own, of which all output is kept."""

    def __init__(self, *arguments: object, cwd: Path, env: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [str(COMMAND), *map(str, arguments)], stdin=slave, stdout=slave, stderr=slave, cwd=cwd, close_fds=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "160", **env}, preexec_fn=_become_leader,
        )  # fmt: skip
        os.close(slave)
        self.output = ""

    def read(self, seconds: float) -> bool:
        """Takes what is printed within this time; returns whether there may be more."""
        if select.select([self._master], [], [], seconds)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return False
            self.output += data.decode(errors="replace")
            return bool(data)
        return True

    def wait_for(self, pattern: str, seconds: float = LIMIT, *, until: Callable[[], bool] = lambda: True) -> None:
        """Reads until the output has a text, and more has happened."""
        end = time.monotonic() + seconds
        while not (re.search(pattern, self.output) and until()):
            assert self.read(0.1), f"ended without {pattern!r}: {self.output[-2000:]}"
            assert time.monotonic() < end, self.output[-2000:]

    def press_ctrl_c(self) -> None:
        """The terminal itself sends SIGINT to all processes in its foreground."""
        os.write(self._master, b"\x03")

    def end(self, seconds: float = LIMIT, *, pressing: float = 0.0) -> int:
        """Reads until the command has ended, and presses Ctrl-C after every pause if there are pauses; returns its code."""
        begun = pressed = time.monotonic()
        while self.process.poll() is None:
            self.read(0.05)
            now = time.monotonic()
            assert now - begun < seconds, f"does not end: {self.output[-2000:]}"
            if pressing and now - pressed > pressing:
                self.press_ctrl_c()
                pressed = now
        while self.read(0.1) and select.select([self._master], [], [], 0.1)[0]:
            pass
        return self.process.returncode


def _become_leader() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def terminal(*arguments: object, cwd: Path) -> Iterator[Terminal]:
    """Starts a command in a terminal; afterwards none of its processes is left."""
    mark = {"STARTED_BY": f"{cwd}-{time.monotonic_ns()}"}
    made = Terminal(*arguments, cwd=cwd, env=mark)
    try:
        yield made
        assert_ended(mark)
    finally:
        for process in started_with(mark):
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        made.process.wait()
