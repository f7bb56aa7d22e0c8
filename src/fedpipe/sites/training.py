"""Attends a session for the agent: it waits here, and computes in a process without keys and network."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes

import msgspec

from fedpipe.codec import from_json
from fedpipe.errors import Failure, FedpipeError, InputError, WorkerDiedError, one_line
from fedpipe.federation.environments import Environment
from fedpipe.federation.mistakes import quantity
from fedpipe.frameworks import find_python
from fedpipe.learners.masking import MaskedFile
from fedpipe.learners.reading import SITE_DATA
from fedpipe.rounds.plan import Plan, RunPlace
from fedpipe.rounds.releases import reason_that_leaves, released_reason
from fedpipe.rounds.updates import own_update
from fedpipe.secure.party import Orders
from fedpipe.sessions.board import Board
from fedpipe.sessions.current import Opened
from fedpipe.sites.agent import Note, keep_nothing
from fedpipe.sites.child import LARGEST, Answer, Call
from fedpipe.sites.guard import Guard
from fedpipe.sites.isolation import Isolation
from fedpipe.sites.rows import prepared
from fedpipe.sites.site import Site
from fedpipe.steps.contract import Hands
from fedpipe.steps.fence import FENCED
from fedpipe.steps.learn import Inputs, attended
from fedpipe.steps.work import answers, keyless, secret_paths
from fedpipe.store import Store, endpoint_of, keys, path_of
from fedpipe.store.held import FOLDER, KEYHOLDER
from fedpipe.store.keyholder import Keyholder

log = logging.getLogger("fedpipe")

_PROGRAM = """
from fedpipe.sites.isolation import isolate, supervise
supervise({agent})
isolation = isolate({folder!r}, {needed!r}, {memory}, {cores}, {gpus})
from fedpipe.sites.child import main
main({handle}, isolation)
"""
"""The program of the process: it isolates itself before it imports what could start threads."""
_PROXIES = tuple(f"{name}_proxy" for name in ("http", "https", "all", "no"))
"""Variables, in lower and upper case, in which there may be a password of a proxy."""
_TRAININGS = ("train", "propose", "masked", "align", "exchange")
"""Phases in which a learner trains."""
_OTHERS: tuple[Environment, ...] = ("tff", "custom")
"""Environments with a Python of their own."""
_GRACE = 20.0
"""Seconds in which a process must have ended all that it has started."""
_LOG, _HEAP = 16 * 2**20, 65_536
"""Most bytes of the log of the process that trains, and of a part of it."""
SCRATCH = "scratch"
"""The folder below the site's state in which training may write; each process has a folder in it."""


class Child:
    """One process for the calls of a session, which is started again after it died.

    Args:
        site: its file.
        environment: in which the process runs.
        guard: of its requests to the store.
        code: digests of the code that may run.
        note: keeps the account of what is in force for each process.
    """

    def __init__(
        self, site: Site, environment: Environment, guard: Guard, code: tuple[str, ...], note: Note = keep_nothing
    ) -> None:  # fmt: skip
        self._site, self._environment, self._guard, self._code, self._note = site, environment, guard, code, note
        self._open: contextlib.ExitStack | None = None
        self._pipe: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self.isolation = Isolation(files=False, network=False)

    def call(self, call: Call) -> Answer:
        """Let the process answer a phase.

        Raises:
            FedpipeError: the process raised it.
            WorkerDiedError: it ended before it answered, or answered something else.
        """
        with self._lock:
            pipe = self._pipe or self._start()
            limit = _Limit(self._process, self._site.policy.seconds)
            try:
                with limit:
                    pipe.send_bytes(msgspec.json.encode(call))
                    answer = from_json(pipe.recv_bytes(LARGEST), Answer)
            except (EOFError, OSError, msgspec.MsgspecError, RecursionError) as error:
                self.stop()
                why = "" if isinstance(error, EOFError | ConnectionError) else f", because {one_line(error)}"
                if limit.passed:
                    why = f", because {call.board.phase} took more than {limit.seconds:g} s"
                raise WorkerDiedError(
                    f"the process that trains was ended{why}", remedy="Check for lack of memory."
                ) from error
            if answer.crash:
                self.stop()
                raise WorkerDiedError(f"the process that trains failed, because {answer.crash}")
            if answer.failure is not None:
                raise answer.failure.error()
            return answer

    def _start(self) -> Connection:
        """Start the process, and wait until it is ready. Raises WorkerDiedError."""
        self._open = stack = contextlib.ExitStack()
        store = self._site.store
        folder_of_store = "" if store.startswith("s3://") else store
        holder = stack.enter_context(
            Keyholder(endpoint_of(store), self._answers(), self._guard.check, folder_of_store, self._guard.read)
        )
        folder = stack.enter_context(scratch(self._site))
        ours, child = Pipe()
        stack.callback(ours.close)
        handles = [child.fileno(), holder.theirs.fileno()]
        try:
            data = prepared(self._site.policy, Path(folder)).path
        except FedpipeError:
            self.stop()
            raise
        log = stack.enter_context(_log_of(self._site))
        process = subprocess.Popen(  # noqa: S603  (our own module)
            [str(self._python()), "-c", self._program(child.fileno(), folder, data)],
            env=self._environ(holder.theirs.fileno(), folder, data), pass_fds=handles, cwd=folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._process = process
        child.close()
        holder.theirs.close()
        keeping = threading.Thread(target=_keep_log, args=(process, log), daemon=True)
        keeping.start()
        stack.callback(keeping.join, 5)
        stack.callback(_end, process)
        try:
            self.isolation = from_json(ours.recv_bytes(LARGEST), Isolation)
            self._note("isolated", **msgspec.to_builtins(self.isolation))
        except (EOFError, OSError, msgspec.MsgspecError) as error:
            self.stop()
            raise WorkerDiedError("the process that trains cannot start", remedy="See training.log.") from error
        except FedpipeError:
            self.stop()
            raise
        self._pipe = ours
        return ours

    def _program(self, handle: int, folder: str, data: str) -> str:
        policy = self._site.policy
        memory = int(quantity(policy.memory)) if policy.memory else 0
        cores = math.ceil(quantity(policy.cpu)) if policy.cpu else 0
        return _PROGRAM.format(
            agent=os.getpid(), handle=handle, folder=folder, memory=memory, cores=cores, gpus=policy.gpus,
            needed=(folder, _local(data)),
        )  # fmt: skip

    def _python(self) -> Path:
        return find_python(self._environment) if self._environment in _OTHERS else Path(sys.executable)

    def _environ(self, handle: int, folder: str, data: str) -> dict[str, str]:
        """Return the environment of the process: no keys, its own data, and a folder to write in."""
        site, gpus, whole = self._site, self._site.policy.gpus, self._site.policy.data
        hidden = [*secret_paths(), site.key, site.credentials, site.certificate, *map(str, own_files(site))]
        hidden += [str(path_of(whole))] if data != whole else []  # a part of it is in the scratch folder
        fenced = os.pathsep.join(path for path in dict.fromkeys(hidden) if path and Path(path).exists())
        passed = {name: value for name, value in keyless().items() if name.lower() not in _PROXIES}
        return {
            **passed, KEYHOLDER: str(handle), FOLDER: self._site.store, FENCED: fenced,
            SITE_DATA: data, "TMPDIR": folder, "HOME": folder, "TF_CPP_MIN_LOG_LEVEL": "2",
            **({} if gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus)))}),
        }  # fmt: skip

    def _answers(self) -> dict[str, Callable[[str, bytes], Any]]:
        """Return the answers of the agent: it signs statements of a learner's work, in its own name."""
        found = answers()
        sign = found["sign"]

        def signed(learner: str, data: bytes) -> Any:
            self._guard.check_statement(data)
            return sign(learner, data)

        floors = msgspec.to_builtins(self._site.policy.floors(self._code))
        return found | {"sign": signed, "floors": lambda _, __: floors}

    def stop(self) -> None:
        """End the process, and remove all that it wrote."""
        stack, self._open, self._pipe = self._open, None, None
        if stack is not None:
            stack.close()


def _local(data: str) -> str:
    """Return the path that a `file://` URI names, also one with a pattern; other data as they are."""
    path = data.removeprefix("file://")
    return data if path == data else os.fsdecode(unquote_to_bytes(path))


class _Limit:
    """Ends a process that takes longer than some seconds in the body, also in the middle of a message; 0: no limit."""

    def __init__(self, process: subprocess.Popen[bytes] | None, seconds: float) -> None:
        self._process, self.seconds, self.passed = process, seconds, False
        self._timer = threading.Timer(seconds, self._pass)

    def __enter__(self) -> None:
        if self.seconds:
            self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _pass(self) -> None:
        self.passed = True
        assert self._process is not None
        self._process.terminate()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, which ends all that it has started."""
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _log_of(site: Site) -> IO[bytes]:
    """Open the log of the processes that train; a long one becomes the earlier one."""
    path = Path(site.state) / "training.log"
    if path.exists() and path.stat().st_size > _LOG // 2:
        path.replace(path.with_name(f"{path.name}.1"))
    return path.open("ab", buffering=0)


def _keep_log(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Append what a process says to its log, as far as there is room: its code may say anything, without an end."""
    assert process.stdout is not None
    with process.stdout as said:
        while data := said.read1(_HEAP):  # type: ignore[attr-defined]
            with contextlib.suppress(OSError, ValueError):  # a full disk, or a log that was closed
                log.write(data[: max(0, _LOG - log.tell())])


@contextlib.contextmanager
def scratch(site: Site) -> Generator[str, None, None]:
    """Yield a new folder for a process, and remove it afterwards."""
    place = Path(site.state) / SCRATCH
    place.mkdir(mode=0o700, exist_ok=True)
    folder = tempfile.mkdtemp(dir=place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(site: Site) -> None:
    """Remove the folders of processes that were killed with their agent."""
    shutil.rmtree(Path(site.state) / SCRATCH, ignore_errors=True)


def own_files(site: Site) -> list[Path]:
    """Return the files of the site's state, which only the agent may read."""
    return [path for path in sorted(Path(site.state).iterdir()) if path.name != SCRATCH]


class Trainer:
    """Attends sessions: waits in this process, and computes in others.

    Args:
        site: its file.
        store: the federation's store.
        note: keeps the account of each object that is sent, before it is, and of each answer.
        pause: returns why the site does not train at the moment; empty if it does.
        show: takes what is in force for the process that trains.
    """

    def __init__(
        self, site: Site, store: Store, *, note: Note = keep_nothing, pause: Callable[[], str] = str,
        show: Callable[[Isolation], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._site, self._store, self._note, self._pause, self._show = site, store, note, pause, show

    def attend(self, plan: Plan, opened: Opened) -> Generator[float, None, Counter[str]]:
        """Attend a session to its end; the processes that compute end with it.

        Args:
            plan: of the run.
            opened: the session.

        Raises:
            RoundError, StoreError: as `steps.learn.attended`.
        """
        site = self._site
        guard = Guard(site, opened, self._note)
        place = RunPlace(store=site.store, federation=site.federation, run=opened.run, plan=opened.plan)
        inputs = Inputs(place=place, learner=site.name, first=opened.first, last=opened.last, job=opened.job)
        children: dict[Environment, Child] = {}

        def call(_: Callable[..., Any], inputs: Inputs, board: Board, orders: Orders | None = None) -> Any:
            if board.phase in _TRAININGS and (why := self._pause()):
                raise WorkerDiedError(f"the site does not train now: {why}")
            step = "score" if board.phase == "score" else "learn"
            environment = plan.federation.environment_of(step, site.name)
            for other in [other for other in children if other != environment]:
                children.pop(other).stop()  # two frameworks at once would need the memory of both
            child = children.setdefault(environment, Child(site, environment, guard, (plan.code,), self._note))
            guard.allow(self._size(plan, board))
            answer = self._answered(child, Call("mask" if orders else "act", inputs, board, orders))
            self._show(child.isolation)
            self._account(opened.run, board, answer.masked)
            return (answer.masked or answer.dropped) if orders else answer.took_part

        remove_leftovers(site)
        try:
            hands = Hands(call=call, together=call)
            return (yield from attended(self._store, plan, inputs, hands, site.policy.leaves))
        finally:
            for child in children.values():
                child.stop()

    def _size(self, plan: Plan, board: Board) -> int | None:
        """Return the bytes of the model that an answer begins with; None where the global weights lack a part of it.

        Those of split learning hold digests only, and weights that are not shared stay at the site.
        """
        if plan.federation.split is not None or plan.federation.share != "all":
            return None
        return self._store.size(keys.content(board.base)) or 0

    def _answered(self, child: Child, call: Call) -> Answer:
        """Return the answer of the process that trains; its texts stay at the site unless its policy lets them leave.

        Raises:
            FedpipeError: as `Child.call`.
        """
        leaves, board = self._site.policy.leaves, call.board
        try:
            answer = child.call(call)
        except FedpipeError as error:
            self._note("failed", run=board.run, round=board.round, phase=board.phase, why=str(error))
            if leaves.reasons:
                raise
            kept = Failure.of(error)._replace(what=reason_that_leaves(leaves, error.what), where=None, remedy=None)
            if isinstance(error, InputError):  # the data do not fit the policy: the round need not wait
                kept = kept._replace(kind="WorkerDiedError")
            raise kept.error() from error
        if answer.dropped is not None:
            answer = msgspec.structs.replace(answer, dropped=released_reason(leaves, answer.dropped).statement)
        return answer

    def _account(self, run: str, board: Board, masked: MaskedFile | None) -> None:
        """Keep the account of an answer; of a training, with all numbers that have left alone."""
        if masked is not None:
            self._note("trained", run=run, round=board.round, digest=masked.digest, bytes=masked.size)
            return
        update = own_update(self._store, self._site.name, run, board.round) if board.phase in _TRAININGS else None
        if update is None:
            self._note("answered", run=run, round=board.round, phase=board.phase)
            return
        self._note(
            "trained", run=run, round=board.round, digest=update.weights, bytes=update.size, examples=update.examples,
            metrics=dict(update.metrics), epsilon=update.spent.epsilon if update.spent else None,
        )  # fmt: skip
