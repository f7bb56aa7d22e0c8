"""Processes that run steps with TensorFlow: imported once, then one step after another.

Workers of the keras environment are forked from a server that has imported it, or started fresh where TensorFlow is not
needed. The tff environment is another Python (`.venv-tff`). A worker that was not forked has an inherited connection.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Self

from fedpipe import errors
from fedpipe.errors import FedpipeError, WorkerDiedError
from fedpipe.frameworks import find_python

_START = threading.Lock()
_STARTED = threading.Event()


class Failure(NamedTuple):
    """An error on its way between processes."""

    kind: str
    what: str
    where: str | None
    remedy: str | None

    @classmethod
    def of(cls, error: FedpipeError) -> Failure:
        """The failure that stands for an error."""
        return cls(type(error).__name__, error.what, error.where, error.remedy)

    def error(self) -> FedpipeError:
        """The error again, of its own class."""
        kind: type[FedpipeError] = getattr(errors, self.kind, FedpipeError)
        made = kind.__new__(kind)
        FedpipeError.__init__(made, self.what, where=self.where, remedy=self.remedy)
        return made


def start_server() -> None:
    """Starts importing TensorFlow in the background; workers are forked from there.

    TensorFlow's threads stay as they are in a step's own container: their number changes the last bits of a sum, and
    a run must not depend on how many workers share it.
    """
    with _START:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        multiprocessing.set_forkserver_preload(["fedpipe.engine.preload"])
        first = not _STARTED.is_set()  # only then, for what other threads print meanwhile is lost
        with _native_output_dropped() if first else contextlib.nullcontext():
            forkserver.ensure_running()
        _STARTED.set()


@contextlib.contextmanager
def _native_output_dropped() -> Iterator[None]:
    """The server inherits file descriptors 1 and 2: what TensorFlow's native code prints is not for the terminal."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with Path(os.devnull).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        for number, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keeps workers from importing the user's script again: all they need is in this package."""
    main = sys.modules["__main__"]
    kept: dict[str, Any] = {name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__dict__["__spec__"] = None
    try:
        yield
    finally:
        main.__dict__.update(kept)


class Worker:
    """One process that runs calls one after another; it is started again when it died.

    Args:
        environment: of the steps that it runs: `keras`, which is this Python's own, or `tff`.
        preloaded: whether it is forked from the server that has imported TensorFlow.
    """

    def __init__(self, environment: str = "keras", *, preloaded: bool = True) -> None:
        self._environment, self._preloaded = environment, preloaded
        self._process: Any = None
        self._connection: Connection | None = None
        self._ending = threading.Lock()
        self._is_over = False

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a function of this package in the process.

        Raises:
            FedpipeError: as the function says.
            WorkerDiedError: the process ended before it answered.
        """
        connection = self._connection or self._start()
        try:
            connection.send((function, arguments))
            answer = connection.recv()
        except (EOFError, OSError) as error:
            self.stop()
            raise WorkerDiedError("the worker process was killed", remedy="Is there enough memory?") from error
        if isinstance(answer, Failure):
            raise answer.error()
        if isinstance(answer, _Bug):
            raise RuntimeError(answer.text)
        return answer

    def _start(self) -> Connection:
        with self._ending:  # whoever ends it waits until it can be ended
            if self._is_over:
                raise WorkerDiedError("the worker process was ended")
            return self._connected()

    def _connected(self) -> Connection:
        context = multiprocessing.get_context("forkserver")
        self._connection, theirs = ours, _ = context.Pipe()
        if self._environment == "tff":
            self._process = _started(find_python(self._environment), theirs)
        elif not self._preloaded:
            self._process = _started(Path(sys.executable), theirs)
        else:
            with _START, _without_main():
                self._process = context.Process(target=_serve, args=(theirs, dict(os.environ)), daemon=True)
                self._process.start()
        theirs.close()
        return ours

    def stop(self, *, for_good: bool = False) -> None:
        """Ends the process at once; another thread may find it ended while it waits for an answer.

        Args:
            for_good: it is not started again, by whichever thread still has a call for it.
        """
        with self._ending:
            self._is_over = self._is_over or for_good
            process, self._process = self._process, None
            connection, self._connection = self._connection, None
        if process is not None:
            process.kill()
            if isinstance(process, subprocess.Popen):
                process.wait()
            else:
                process.join()
                process.close()
        if connection is not None:
            connection.close()


def _started(python: Path, connection: Connection) -> subprocess.Popen[bytes]:
    """A worker with a Python of its own; what TensorFlow prints while it is imported is dropped."""
    handle = connection.fileno()
    return subprocess.Popen(  # noqa: S603  (our own environment)
        [str(python), "-c", f"from fedpipe.engine.workers import serve; serve({handle})"],
        pass_fds=[handle],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


def serve(handle: int) -> None:
    """Run the main program of a worker that was not forked; `handle` is the connection's file descriptor."""
    _serve(Connection(handle), dict(os.environ))


class Workers:
    """Processes that calls share, by environment: the one that was used last is used first, for it is warm.

    Args:
        preload: whether the keras environment is needed for TensorFlow, which is then imported once for all workers.
    """

    def __init__(self, *, preload: bool = True) -> None:
        self._preload = preload
        self._idle: dict[str, list[Worker]] = {}
        self._all: list[Worker] = []
        self._lock = threading.Lock()
        self._is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def call(self, function: Callable[..., Any], *arguments: Any, environment: str = "keras") -> Any:
        """Run a function of this package in a process of an environment; `core` is this process.

        Raises:
            FedpipeError: as the function says.
            WorkerDiedError: the process ended before it answered; the next call starts it again.
        """
        if environment == "core":
            return function(*arguments)
        if environment != "tff" and self._preload:
            start_server()
        with self._lock:
            if self._is_over:
                raise WorkerDiedError("the worker processes were ended")
            idle = self._idle.setdefault(environment, [])
            worker = idle.pop() if idle else Worker(environment, preloaded=self._preload)
            if worker not in self._all:
                self._all.append(worker)
        try:
            return worker.call(function, *arguments)
        finally:
            with self._lock:
                idle.append(worker)

    def stop(self) -> None:
        """Ends all processes at once, for good."""
        with self._lock:
            self._is_over = True
        for worker in self._all:
            worker.stop(for_good=True)


def beside(function: Callable[..., Any], *arguments: Any, **named: Any) -> Future[Any]:
    """Calls a function in a thread of its own, such as `Workers.call` while another process works."""
    pool = ThreadPoolExecutor(1)
    done = pool.submit(function, *arguments, **named)
    pool.shutdown(wait=False)
    return done


class _Bug(NamedTuple):
    text: str


def _bug(error: Exception) -> _Bug:
    import traceback

    return _Bug("".join(traceback.format_exception(error)))


def _serve(connection: Connection, environment: dict[str, str]) -> None:
    """The worker's loop, in the caller's environment of now: the server's may be older, and lack credentials."""
    import signal

    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine ends its workers itself
    while True:
        try:
            function, arguments = connection.recv()
        except (EOFError, OSError):
            return
        except Exception as error:  # what was sent cannot be read here
            connection.send(_bug(error))
            continue
        try:
            answer = function(*arguments)
        except FedpipeError as error:
            answer = Failure.of(error)
        except Exception as error:
            answer = _bug(error)
        connection.send(answer)


def warm_simulation() -> None:
    """Imports TensorFlow Federated and starts its runtime."""
    importlib.import_module("fedpipe.tff.runtime").federated()


def run_step(name: str, executor_input: dict[str, Any], log: str) -> None:
    """Runs a step; what it logs and prints goes to a file."""
    from fedpipe.steps.contract import execute

    run_logged(log, execute, name, executor_input)


def run_logged(log: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function; what it logs and prints goes to a file."""
    with logged_to(Path(log)) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        return function(*arguments)


@contextlib.contextmanager
def logged_to(path: Path) -> Iterator[Any]:
    """Adds what this thread logs to a file."""
    logger, thread = logging.getLogger("fedpipe"), threading.get_ident()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    with path.open("a") as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        handler.addFilter(lambda record: record.thread == thread)
        logger.addHandler(handler)
        try:
            yield file
        finally:
            logger.removeHandler(handler)
