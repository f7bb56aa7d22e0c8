"""Supervises a step in its pod: a small parent starts the work in a process of its own, again if it fails.

Kubeflow's own retries are not enough: by default KFP 2.17 repeats a step only if its pod was deleted, not if it failed.
The parent imports no framework, and no code of others. It starts the work with the same limits and the same log, but
without keys (`fedpipe.steps.work`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import msgspec

from fedpipe.codec import converted, read_json
from fedpipe.errors import FedpipeError, InputError, StepError
from fedpipe.rounds.plan import RunPlace, read_plan
from fedpipe.steps import TRACKED
from fedpipe.steps.contract import give_up, inputs_of, log, parse_arguments, ready, start_log, write_outputs
from fedpipe.steps.early import shown
from fedpipe.steps.fence import hide_memory
from fedpipe.steps.work import FOREIGN, PROGRAM, Ended, store_of, surroundings
from fedpipe.store.places import path_of
from fedpipe.tracking.tracker import Tracker

PAUSES = (10.0, 20.0)
"""Seconds before each further try."""
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


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
        check_volume(store_of(name, executor_input))
    except FedpipeError as error:
        print(f"fedpipe: {error}", file=sys.stderr)
        return error.exit_code
    hide_memory()
    with _signals() as child, shown(name, executor_input["inputs"]["parameterValues"]) as show_failure:
        ended = _supervised(child, name, executor_input, pauses)
        if ended.code and not child.stopped:
            show_failure(ended.why)
    if ended.code:
        print(f"fedpipe: {ended.why}", file=sys.stderr)
    return ended.code


def _supervised(child: _Child, name: str, executor_input: dict[str, Any], pauses: tuple[float, ...]) -> Ended:
    """Do the work of a step, and return how it ended."""
    ended = Ended(0)
    try:
        if name not in FOREIGN:  # other steps wait in the process that prepares their work
            executor_input = ready(name, executor_input, child.sleep)
        with _tracked(name, executor_input):
            ended = _tried(child, name, executor_input, pauses)
            if ended.code:
                raise StepError(ended.why)  # so that it has failed in the tracking server too
    except FedpipeError as error:
        return ended if ended.code else Ended(error.exit_code, str(error))
    return ended


def _tried(child: _Child, name: str, executor_input: dict[str, Any], pauses: tuple[float, ...]) -> Ended:
    """Try the work until it succeeds or has failed for good."""
    for pause in (*pauses, None):
        try:
            ended = _in_child(child, name, executor_input)
        except FedpipeError as error:
            ended = Ended(error.exit_code, str(error))
        if not ended.code or not ended.again or child.stopped or pause is None:
            break
        log.warning("step %s failed and is tried again in %g s: %s", name, pause, ended.why)
        child.wait(pause)
        executor_input = ready(name, executor_input, child.sleep)  # so that it does not prepare again
    if ended.died and not child.stopped and _give_up(name, ready(name, executor_input, child.sleep), ended.why):
        return Ended(0)
    return ended


def check_volume(uri: str) -> None:
    """Refuse a folder that only this pod has, such as one of the machine that compiled the pipeline.

    Args:
        uri: of the step's store.

    Raises:
        InputError: this is a pod, and the folder is on no mounted volume.
    """
    if "KUBERNETES_SERVICE_HOST" not in os.environ or not uri.startswith("file://"):
        return
    folder = path_of(uri)
    if not any(os.path.ismount(place) for place in (folder, *folder.parents) if place != place.parent):
        raise InputError(
            f"the store {uri!r} is a folder in this pod alone", where="parameter store",
            remedy="Set it to an s3:// URI, or mount a volume there.",
        )  # fmt: skip


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

    def sleep(self, seconds: float) -> None:
        """Wait for other steps. Raises StepError when this process is asked to end."""
        if self._asked.wait(seconds):
            raise StepError("it was asked to end")


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


def _in_child(child: _Child, name: str, executor_input: dict[str, Any]) -> Ended:
    """Do the work in a process of its own, and return how it ended."""
    if child.stopped:
        return Ended(128 + child.stopped, "it was asked to end")
    report, answer = os.pipe()
    alive, parent = os.pipe()
    with surroundings(name, executor_input) as (environment, handles):
        command = [sys.executable, "-c", PROGRAM, str(answer), str(alive), name]
        process = subprocess.Popen(  # noqa: S603  (our own module)
            [*command, json.dumps(executor_input)], env=environment, pass_fds=[answer, alive, *handles]
        )
        child.pid = process.pid
        if child.stopped:
            process.send_signal(child.stopped)
        os.close(answer)
        os.close(alive)
        code = process.wait()
        child.pid = 0
    with os.fdopen(report, "rb") as pipe:
        os.set_blocking(report, False)  # a process that outlives the child may hold the other side
        written = pipe.read() or b""
    os.close(parent)
    reported = _reported(written)
    return reported if reported and reported.code == code else _died(code)


def _reported(written: bytes) -> Ended | None:
    """Return what the process says about its end; it may say anything, as it ran code of others."""
    try:
        return Ended(*converted(read_json(written), tuple[int, str, bool, bool]))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _died(code: int) -> Ended:
    """Describe the end of a process that left no report."""
    if code < 0:
        number = signal.Signals(-code)
        hint = ", perhaps for lack of memory" if number == signal.SIGKILL else ""
        return Ended(128 + number, f"the process was ended by {number.name}{hint}", again=True, died=True)
    return Ended(code or 1, f"the process ended with code {code}", again=True, died=True)


def _give_up(name: str, executor_input: dict[str, Any], why: str) -> bool:
    """Drop the learner of the step; return whether the run continues without it."""
    try:
        outputs = give_up(name, executor_input["inputs"]["parameterValues"], why)
        if outputs is None:
            return False
        write_outputs(outputs, executor_input["outputs"])
    except (FedpipeError, OSError) as error:
        log.warning("step %s: its learner cannot be dropped: %s", name, error)
        return False
    log.warning("step %s: the run continues without this learner: %s", name, why)
    return True


_LOOKS = 5.0
"""Seconds between two looks for a committed round."""


@contextlib.contextmanager
def _tracked(name: str, executor_input: dict[str, Any]) -> Iterator[None]:
    """Send the rounds of a step to the tracking server meanwhile, if there is one; keys for it stay in this process."""
    with contextlib.ExitStack() as stack:
        try:
            place = inputs_of(name, executor_input).place if name in TRACKED else None
            if isinstance(place, RunPlace):
                store = place.open()
                settings = read_plan(store, place.plan).federation.tracking
                tracker = Tracker(store, place.run, settings, uri=place.store, continues=name != "report", every=_LOOKS)
                stack.enter_context(tracker)
        except FedpipeError as error:
            log.warning("the run is not tracked by this step: %s", error)
        yield
