"""Processes that are forked from one that has imported everything, and that has no threads.

Python's own forkserver is not used: a process has only one, and fedpipe's workers need it with TensorFlow imported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
_POLL = None
"""Asks for exit codes; every other message is the argument of a new process."""


class Forks:
    """Starts processes that call a function of a module, each with an argument of its own.

    Args:
        function: called in each process.
        environment: more variables of their environment.
    """

    def __init__(self, function: Callable[[Any], None], **environment: str) -> None:
        self._connection, theirs = Pipe()
        command = [sys.executable, "-c", f"from tests.faults.forks import serve; serve({theirs.fileno()})"]
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], cwd=ROOT, env={**os.environ, **environment}
        )
        theirs.close()
        self._connection.send(function)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.wait()

    def start(self, argument: Any) -> int:
        """Starts a process and returns its id."""
        self._connection.send(argument)
        return int(self._connection.recv())

    def ended(self) -> dict[int, int]:
        """Returns the exit codes of processes that have ended since the last call, by their ids."""
        self._connection.send(_POLL)
        return dict(self._connection.recv())

    def kill(self, processes: set[int]) -> None:
        """Kills processes, and waits until they have ended."""
        for process in processes:
            os.kill(process, signal.SIGKILL)
        while processes:
            processes = processes - self.ended().keys()


def serve(handle: int) -> None:
    """Forks processes until the other end of the connection is closed."""
    connection = Connection(handle)
    function = connection.recv()
    with contextlib.suppress(EOFError):
        while True:
            argument = connection.recv()
            connection.send(_reaped() if argument is _POLL else _forked(function, argument, connection))


def _reaped() -> dict[int, int]:
    codes = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            codes[found[0]] = os.waitstatus_to_exitcode(found[1])
    return codes


def _forked(function: Callable[[Any], None], argument: Any, connection: Connection) -> int:
    if process := os.fork():
        return process
    code = 1
    try:
        connection.close()
        function(argument)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
