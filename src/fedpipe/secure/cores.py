"""Hashes and multiplies points on all cores, in processes: the library holds Python's lock while it multiplies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np

from fedpipe.errors import DroppedError, Failure, WorkerDiedError
from fedpipe.frameworks import cores
from fedpipe.secure.curve import Points, hashed, multiplied

_FEW = 4096
"""Points that are not worth another process."""
_MOST = 32
_PROGRAM = "from fedpipe.secure.cores import serve; serve({})"


def blinded(ids: Sequence[bytes], about: str, scalar: bytes) -> Points:
    """Return the products of the hashes of ids and a scalar."""
    return multiplied(hashed(ids, about), scalar)


class Cores:
    """Computes here if there is little to do, and otherwise in a process for each core.

    Args:
        count: of processes; 0: one for each core that this process may use.
    """

    def __init__(self, count: int = 0) -> None:
        self._count = count or min(cores(), _MOST)
        self._open = ExitStack()
        self._pipes: list[Connection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._pipes = []

    def blinded(self, ids: Sequence[bytes], about: str, scalar: bytes) -> Points:
        """Return the products of the hashes of ids and a scalar."""
        return self._shared(blinded, ids, about, scalar)

    def multiplied(self, points: Points, scalar: bytes) -> Points:
        """Return the products of points and a scalar. Raises DroppedError for a point that is not valid."""
        return self._shared(multiplied, points, scalar)

    def _shared(self, function: Callable[..., Points], rows: Any, *more: Any) -> Points:
        if len(rows) < _FEW or self._count == 1:
            return function(rows, *more)
        self._start()
        edges = np.linspace(0, len(rows), len(self._pipes) + 1).astype(int).tolist()
        with ThreadPoolExecutor(len(self._pipes)) as threads:
            parts = list(
                threads.map(
                    lambda pipe, first, last: _asked(pipe, (function, rows[first:last], *more)),
                    self._pipes, edges[:-1], edges[1:],
                )
            )  # fmt: skip
        return np.concatenate(parts)

    def _start(self) -> None:
        for _ in range(self._count - len(self._pipes)):
            ours, theirs = Pipe()
            process = subprocess.Popen(  # noqa: S603  (our own module)
                [sys.executable, "-c", _PROGRAM.format(theirs.fileno())], pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            theirs.close()
            self._open.callback(process.wait)
            self._open.callback(ours.close)  # first: the process ends by itself
            self._pipes.append(ours)


def _asked(pipe: Connection, call: tuple[Any, ...]) -> Points:
    try:
        pipe.send(call)
        answer = pipe.recv()
    except (EOFError, OSError) as error:
        raise WorkerDiedError("a process that multiplies was ended", remedy="Check for lack of memory.") from error
    if isinstance(answer, Failure):
        raise answer.error()
    found: Points = answer
    return found


def serve(handle: int) -> None:
    """Compute what the other side of a pipe asks for, until it is closed."""
    pipe = Connection(handle)
    while True:
        try:
            function, *arguments = pipe.recv()
            pipe.send(function(*arguments))
        except DroppedError as error:
            pipe.send(Failure.of(error))
        except (EOFError, OSError):
            return
