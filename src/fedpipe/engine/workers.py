"""Runs steps in processes that import TensorFlow once.

Workers of the keras environment are forked from a server that has imported TensorFlow, or started fresh if TensorFlow
is not needed. The tff environment has its own Python (`.venv-tff`), and a custom learner may have one. A worker that
was not forked communicates through an inherited connection. A worker ends as soon as the other side of its connection
is gone, however its parent ended.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple, Self

from fedpipe.errors import Failure, FedpipeError, WorkerDiedError
from fedpipe.frameworks import find_python
from fedpipe.learners.downloads import shared_downloads
from fedpipe.store.concealment import conceal, environ, reveal

OWN_PYTHON = ("tff", "custom")
"""Environments with a Python of their own, which is found by `frameworks.find_python`."""
_START = threading.Lock()
_STARTED = threading.Event()
_SERVER_END = 300.0
"""Seconds within which a server that no longer answers has ended; on a busy machine it first imports TensorFlow."""


def start_server() -> None:
    """Starts the server from which workers are forked; it imports TensorFlow in the background.

    TensorFlow keeps the number of threads that it has in a step's own container. That number changes the last bits of
    a sum, and results must not depend on the number of workers.
    """
    with _START:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        multiprocessing.set_forkserver_preload(["fedpipe.engine.preload"])
        first = not _STARTED.is_set()  # only once, because output of other threads in the meantime is lost
        with _silenced_output() if first else contextlib.nullcontext():
            forkserver.ensure_running()
        _STARTED.set()


@contextlib.contextmanager
def _silenced_output() -> Iterator[None]:
    """Redirects file descriptors 1 and 2, which the server inherits: native code of TensorFlow then prints nothing."""
    sys.stdout.flush()
    sys.stderr.flush()
    originals = [os.dup(1), os.dup(2)]
    with Path(os.devnull).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        for number, descriptor in enumerate(originals, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hides the user's script from workers, which would import it again but only need this package."""
    main = sys.modules["__main__"]
    removed: dict[str, Any] = {n: main.__dict__.pop(n) for n in ("__file__", "__spec__") if n in main.__dict__}
    main.__dict__["__spec__"] = None
    try:
        yield
    finally:
        main.__dict__.update(removed)


class Worker:
    """Runs calls one after another in one process, which is restarted after it died.

    Args:
        environment: environment of its steps: `keras`, that of this Python, or one of OWN_PYTHON.
        preloaded: whether the process is forked from the server that has imported TensorFlow.
    """

    def __init__(self, environment: str = "keras", *, preloaded: bool = True) -> None:
        self._environment, self._preloaded = environment, preloaded
        self._process: Any = None
        self._connection: Connection | None = None
        self._stopping = threading.Lock()
        self._is_stopped = False

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a function of this package in the process.

        Raises:
            FedpipeError: the function raised it.
            WorkerDiedError: the process ended before it answered.
        """
        connection = self._connection or self._start()
        try:
            connection.send((function, arguments))
            answer = connection.recv()
        except (EOFError, OSError) as error:
            self.stop()
            raise WorkerDiedError("the worker process was killed", remedy="Check for lack of memory.") from error
        if isinstance(answer, Failure):
            raise answer.error()
        if isinstance(answer, _Bug):
            raise CrashError(answer)
        return answer

    def _start(self) -> Connection:
        with self._stopping:  # `stop` waits until the process is started
            if self._is_stopped:
                raise WorkerDiedError("the worker process was ended")
            return self._start_process()

    def _start_process(self) -> Connection:
        context = multiprocessing.get_context("forkserver")
        self._connection, theirs = ours, _ = context.Pipe()
        if self._environment in OWN_PYTHON:
            self._process = _start_python(find_python(self._environment), theirs)
        elif not self._preloaded:
            self._process = _start_python(Path(sys.executable), theirs)
        else:
            with _START, _without_main():
                process = context.Process(target=_serve, args=(theirs, dict(environ)), daemon=True)
                _fork(process)
                self._process = process  # not before: Ctrl-C may interrupt the start, and `stop` kills what has begun
        theirs.close()
        if isinstance(self._process, subprocess.Popen):
            ours.send(dict(environ))
        return ours

    def stop(self, *, for_good: bool = False) -> None:
        """Ends the process immediately; threads that wait for an answer get a WorkerDiedError.

        Args:
            for_good: do not start it again for later calls.
        """
        with self._stopping:
            self._is_stopped = self._is_stopped or for_good
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


def _fork(process: ForkServerProcess) -> None:
    """Starts a process by the server, or by its successor: an earlier start that was interrupted ends the server."""
    give_up = time.monotonic() + _SERVER_END
    while True:
        try:
            return process.start()
        except (ConnectionError, EOFError):
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)


_WORKER = """
import os, select, threading
hung_up = select.poll()
hung_up.register({handle}, 0)
threading.Thread(target=lambda: (hung_up.poll(), os._exit(1)), daemon=True).start()
from fedpipe.engine.workers import serve
serve({handle})
"""
"""The program of a worker: it ends with its parent from its first moment, also while it imports this package."""


def _start_python(python: Path, connection: Connection) -> subprocess.Popen[bytes]:
    """Starts a worker with a Python of its own, and discards the output of its TensorFlow."""
    handle = connection.fileno()
    return subprocess.Popen(  # noqa: S603  (fedpipe's own environment)
        [str(python), "-c", _WORKER.format(handle=handle)],
        pass_fds=[handle],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


def serve(handle: int) -> None:
    """Runs the main program of a worker that was not forked; `handle` is the connection's file descriptor."""
    connection = Connection(handle)
    _serve(connection, connection.recv())


class Workers:
    """Shares processes between calls, by environment; the last used one is reused first, because it is warm.

    Args:
        preload: whether the keras environment is needed for TensorFlow, which is then imported once for all workers.
    """

    def __init__(self, *, preload: bool = True) -> None:
        self._preload = preload
        self._idle: dict[str, list[Worker]] = {}
        self._all: list[Worker] = []
        self._lock = threading.Lock()
        self._is_stopped = False

    def __enter__(self) -> Self:
        conceal()  # code of others also runs in this process, and in all that it starts
        return self

    def __exit__(self, *_: object) -> None:
        reveal()
        self.stop()

    def call(self, function: Callable[..., Any], *arguments: Any, environment: str = "keras") -> Any:
        """Runs a function of this package in a process of an environment; `core` is this process.

        Raises:
            FedpipeError: the function raised it.
            WorkerDiedError: the process ended before it answered; the next call starts it again.
        """
        if environment == "core":
            return function(*arguments)
        if environment not in OWN_PYTHON and self._preload:
            start_server()
        with self._lock:
            if self._is_stopped:
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
        """Ends all processes immediately and for good."""
        with self._lock:
            self._is_stopped = True
        for worker in self._all:
            worker.stop(for_good=True)


def beside(function: Callable[..., Any], *arguments: Any, **named: Any) -> Future[Any]:
    """Calls a function in a new thread, such as `Workers.call` while another process works."""
    pool = ThreadPoolExecutor(1)
    result = pool.submit(function, *arguments, **named)
    pool.shutdown(wait=False)
    return result


class _Bug(NamedTuple):
    """Transports an unexpected exception between processes, as a traceback."""

    text: str
    reason: str
    transient: bool


def _bug_of(error: BaseException) -> _Bug:
    import traceback

    from fedpipe.learners.user_code import described

    text = "".join(traceback.format_exception(error))
    return _Bug(text, described(error), isinstance(error, OSError | MemoryError))


class CrashError(RuntimeError):
    """An unexpected exception of a step, with its traceback.

    Attributes:
        reason: its cause in one line.
        transient: whether the step may succeed when it is repeated.
    """

    def __init__(self, bug: _Bug) -> None:
        super().__init__(bug.text)
        self.reason, self.transient = bug.reason, bug.transient

    @classmethod
    def of(cls, error: BaseException) -> CrashError:
        """Return the crash for an exception."""
        return cls(_bug_of(error))


def _end_with(connection: Connection) -> None:
    """End this process when the other side of its connection is closed, whatever it computes at that moment."""

    def wait() -> None:
        hung_up = select.poll()
        hung_up.register(connection.fileno(), 0)  # only the end of the other side
        hung_up.poll()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _serve(connection: Connection, environment: dict[str, str]) -> None:
    """Runs the worker's loop, with the caller's current environment: the server's may be older and lack credentials."""
    import signal

    os.environ.clear()
    os.environ.update(environment)
    environment.clear()
    conceal()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine ends its workers itself
    _end_with(connection)
    with shared_downloads():
        _answer_calls(connection)


def _answer_calls(connection: Connection) -> None:
    while True:
        try:
            function, arguments = connection.recv()
        except (EOFError, OSError):
            return
        except Exception as error:  # the call cannot be unpickled here
            connection.send(_bug_of(error))
            continue
        try:
            answer = function(*arguments)
        except FedpipeError as error:
            answer = Failure.of(error)
        except BaseException as error:  # also a user's sys.exit()
            answer = _bug_of(error)
        connection.send(answer)


def warm_simulation() -> None:
    """Imports TensorFlow Federated and starts its runtime."""
    importlib.import_module("fedpipe.tff.runtime").federated()


def run_step(name: str, executor_input: dict[str, Any], log: str) -> None:
    """Runs a step, with its log and output in a file."""
    from fedpipe.steps.contract import execute

    run_logged(log, execute, name, executor_input)


def run_logged(log: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function, with its log and output in a file."""
    with logged_to(Path(log)) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        return function(*arguments)


@contextlib.contextmanager
def logged_to(path: Path) -> Iterator[Any]:
    """Appends this thread's log messages to a file."""
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
