"""Supervises a step in its pod: a small parent starts the work in a process of its own, again if it fails.

Kubeflow's own retries are not enough: by default KFP 2.17 repeats a step only if its pod was deleted, not if it failed.
The parent imports no framework. It starts the work with the same limits and the same log.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from fedpipe.errors import FedpipeError, StoreUnavailableError, WorkerDiedError, one_line
from fedpipe.steps.contract import execute, give_up, log, parse_arguments, start_log, write_outputs
from fedpipe.store.concealment import concealed

PAUSES = (10.0, 20.0)
"""Seconds before each further try."""
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Ended(NamedTuple):
    """How a try ended: its exit code, the reason of a failure, whether to try again, and whether the process died."""

    code: int
    why: str = ""
    again: bool = False
    died: bool = False


def main(arguments: list[str], pauses: tuple[float, ...] = PAUSES) -> int:
    """Run `fedpipe step NAME EXECUTOR_INPUT`, the container's command, and return the exit code.

    A learner's step that failed for good ends with 0 where the run continues without this learner.

    Args:
        arguments: the name of the step, and KFP's executor input as JSON.
        pauses: seconds before each further try.
    """
    start_log()
    try:
        name, executor_input = parse_arguments(arguments)
    except FedpipeError as error:
        print(f"fedpipe: {error}", file=sys.stderr)
        return error.exit_code
    with _signals() as child:
        for pause in (*pauses, None):
            ended = _in_child(child, lambda: _work(name, executor_input))
            if not ended.code or not ended.again or child.stopped or pause is None:
                break
            log.warning("step %s failed and is tried again in %g s: %s", name, pause, ended.why)
            child.wait(pause)
        if ended.died and not child.stopped:
            given_up = _in_child(child, lambda: _give_up(name, executor_input, ended.why))
            if not given_up.code:
                return 0
    if ended.code:
        print(f"fedpipe: {ended.why}", file=sys.stderr)
    return ended.code


class _Child:
    """The process that works, and whether this one was asked to end."""

    def __init__(self) -> None:
        self.pid = 0
        self.stopped = 0
        self._asked = threading.Event()

    def end(self, number: int, _: Any) -> None:
        self.stopped = number
        self._asked.set()
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, seconds: float) -> None:
        """Wait before the next try, unless this process is asked to end."""
        self._asked.wait(seconds)


@contextlib.contextmanager
def _signals() -> Any:
    """Pass the signals that end this process to its child."""
    child = _Child()
    before = {number: signal.signal(number, child.end) for number in _ENDING}
    try:
        yield child
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_child(child: _Child, work: Callable[[], _Ended]) -> _Ended:
    """Run a function in a process of its own, and return how it ended."""
    if child.stopped:
        return _Ended(128 + child.stopped, "it was asked to end")
    report, answer = os.pipe()
    alive, parent = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child.pid = os.fork()
    if child.pid == 0:
        for number in _ENDING:
            signal.signal(number, signal.SIG_DFL)
        os.close(report)
        os.close(parent)
        threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
        ended = work()
        with contextlib.suppress(OSError):
            os.write(answer, json.dumps(ended).encode())
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(ended.code)
    os.close(answer)
    os.close(alive)
    _, status = os.waitpid(child.pid, 0)
    child.pid = 0
    with os.fdopen(report, "rb") as pipe:
        os.set_blocking(report, False)  # a process that outlives the child may hold the other side
        written = pipe.read() or b""
    os.close(parent)
    return _Ended(*json.loads(written)) if written else _died(os.waitstatus_to_exitcode(status))


def _died(code: int) -> _Ended:
    """Describe the end of a process that left no report."""
    if code < 0:
        number = signal.Signals(-code)
        hint = ", perhaps for lack of memory" if number == signal.SIGKILL else ""
        return _Ended(128 + number, f"the process was ended by {number.name}{hint}", again=True, died=True)
    return _Ended(code or 1, f"the process ended with code {code}", again=True, died=True)


def _end_with_parent(pipe: int) -> None:
    """End this process when its parent is gone, whatever it does at that moment."""
    os.read(pipe, 1)
    os._exit(1)


def _work(name: str, executor_input: dict[str, Any]) -> _Ended:
    try:
        with concealed():
            execute(name, executor_input)
    except FedpipeError as error:
        return _Ended(error.exit_code, str(error), again=isinstance(error, StoreUnavailableError | WorkerDiedError))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return _Ended(
            1,
            f"{type(error).__name__}: {one_line(error, 500)}",
            again=isinstance(error, OSError | MemoryError | SystemExit),
            died=True,
        )
    return _Ended(0)


def _give_up(name: str, executor_input: dict[str, Any], why: str) -> _Ended:
    """Drop the learner of the step, if the run continues without it."""
    try:
        outputs = give_up(name, executor_input["inputs"]["parameterValues"], why)
        if outputs is None:
            return _Ended(1)
        write_outputs(outputs, executor_input["outputs"])
    except (FedpipeError, OSError) as error:
        log.warning("step %s: its learner cannot be dropped: %s", name, error)
        return _Ended(1)
    log.warning("step %s: the run continues without this learner: %s", name, why)
    return _Ended(0)
