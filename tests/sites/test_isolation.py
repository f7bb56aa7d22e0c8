"""The process that trains at a site: whatever its code tries, it finds no key, no network, no file to change."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedpipe.errors import WorkerDiedError
from fedpipe.identity.signing import make_key
from fedpipe.rounds.beginning import begin, make_plan
from fedpipe.rounds.plan import Plan, RunPlace, Shards
from fedpipe.rounds.releases import REASON_STAYS
from fedpipe.sessions.board import Board
from fedpipe.sessions.current import Opened
from fedpipe.sites import training
from fedpipe.sites.child import Answer, Call
from fedpipe.sites.guard import Guard
from fedpipe.sites.site import read_site
from fedpipe.sites.training import Child, own_files, remove_leftovers
from fedpipe.steps.learn import Inputs
from fedpipe.store import file_uri, keys
from fedpipe.store.concealment import changed_environment
from fedpipe.store.objects import put_bytes
from fedpipe.weights import Array
from tests.federations import make_federation

MODEL = """
import ctypes, json, multiprocessing, os, pathlib, resource, shutil, signal, socket, sys, time
from fedpipe.learners.numpy import Linear

HERE = {here!r}

def tried(what):
    try:
        return str(what())
    except BaseException as error:
        return f"{{type(error).__name__}}: {{error}}"

def appended(path):
    with open(path, "a") as file:
        file.write("x")

def build():
    found = {{
        "read key": tried(lambda: pathlib.Path(HERE, "own.key").read_text()),
        "read credentials": tried(lambda: pathlib.Path(HERE, "credentials/secretkey").read_text()),
        "read state": tried(lambda: pathlib.Path(HERE, "state/agent.json").read_text()),
        "write state": tried(lambda: appended(pathlib.Path(HERE, "state/agent.json"))),
        "write data": tried(lambda: appended(pathlib.Path(HERE, "rows.npz"))),
        "read data": tried(lambda: len(pathlib.Path(HERE, "rows.npz").read_bytes())),
        "data": os.environ["FEDPIPE_SITE_DATA"],
        "write home": tried(lambda: appended(pathlib.Path.home() / "mine")),
        "write shared": tried(lambda: appended("/dev/shm/{left}")),
        "segment": ctypes.CDLL(None).shmget({number}, 4096, 0o1666),
        "device": tried(lambda: os.mknod(pathlib.Path.home() / "disk", 0o60600, os.makedev(7, 0))),
        "write null": tried(lambda: appended("/dev/null")),
        "semaphore": tried(lambda: multiprocessing.get_context("fork").Lock().acquire()),
        "mode": tried(lambda: pathlib.Path(HERE, "own.key").chmod(0o666)),
        "time": tried(lambda: os.utime(pathlib.Path(HERE, "rows.npz"), (0, 0))),
        "label": tried(lambda: os.setxattr(pathlib.Path(HERE, "rows.npz"), "user.left", b"x")),
        "copy": tried(lambda: shutil.copy2(pathlib.Path(HERE, "rows.npz"), pathlib.Path.home() / "rows.npz")),
        "kernel's keys": ctypes.CDLL(None).syscall({add_key}, b"user", b"left", b"x", 1, -4),
        "limit": tried(lambda: resource.prlimit({agent}, resource.RLIMIT_CPU, (1, 1))),
        "host": tried(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)),
        "service": tried(lambda: socket.socket(socket.AF_UNIX).connect({service!r})),
        "threads": [
            line.split()[1] for path in pathlib.Path("/proc/self/task").glob("*/status")
            for line in path.read_text().splitlines() if line.startswith("Seccomp:")
        ],
        "connect": tried(lambda: socket.create_connection(("127.0.0.1", {port}), 2)),
        "kill": tried(lambda: os.kill({agent}, 0)),
        "kill parent": tried(lambda: os.kill(os.getppid(), 0)),
        "environ": tried(lambda: pathlib.Path("/proc/{agent}/environ").read_text()),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "variables": sorted(os.environ),
        "keys": [name for name, value in os.environ.items() if "very-secret" in value],
    }}
    sys.stdout.write(json.dumps(found) + "\\n")
    sys.stdout.flush()
    {then}
    return Linear(features=(4,), outputs=3, loss="softmax", learning_rate=0.5)
"""


LEFT, SEGMENT = Path("/dev/shm") / f"fedpipe-patient-{os.getpid()}", 4711_0000 + os.getpid()
"""The things that code of a model would leave in the memory of this machine: a file, and a segment of System V."""
SERVICE = f"/run/fedpipe-service-{os.getpid()}"
"""A socket by which a service of this machine answers everybody."""
ADD_KEY = {"x86_64": 248, "aarch64": 217}[os.uname().machine]


class World:
    """A site with a folder as store, in which a run has begun."""

    def __init__(self, folder: Path, port: int, **more: Any) -> None:
        self.folder, self.port = folder, port
        rng = np.random.default_rng(0)
        x = rng.normal(size=(40, 4)).astype(np.float32)
        np.savez(folder / "rows.npz", x=x, y=np.argmax(x[:, :3], axis=1))
        (folder / "credentials").mkdir()
        for name in ("accesskey", "secretkey"):
            (folder / "credentials" / name).write_text("very-secret")
        (folder / "own.key").write_text(make_key())
        content = {
            "store": "store", "federation": "tiny", "name": "s", "key": "own.key", "credentials": "credentials",
            "policy": {"data": "rows.npz"}, **more,
        }  # fmt: skip
        (folder / "site.yaml").write_text(yaml.safe_dump(content))
        self.site = read_site(folder / "site.yaml")
        (folder / "state" / "agent.json").write_text("{}")
        self.store = self.site.open()

    def begin(self, then: str = "pass") -> tuple[Plan, Call]:
        """Begins a run whose code looks around first, and returns the call of its first training."""
        code = MODEL.format(
            here=str(self.folder), port=self.port, agent=os.getpid(), then=then, left=LEFT.name, number=SEGMENT,
            add_key=ADD_KEY, service=SERVICE,
        )  # fmt: skip
        federation = make_federation(
            learners=[{"name": "s", "at": "site"}], framework="numpy", data={},
            training={"rounds": 1, "batch_size": 8, "tensorboard": False},
        )  # fmt: skip
        plan = make_plan("r1", federation, code, Shards(learners={}))
        self.code = plan.code
        put_bytes(self.store, code.encode())
        first: dict[str, Array] = {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(3, np.float32)}
        record = begin(self.store, plan, lambda: first)
        place = RunPlace(store=self.site.store, federation="tiny", run="r1", plan=plan.put(self.store))
        board = Board(
            federation="tiny", run="r1", session="job-1", round=1, phase="train", base=record.weights, asked=("s",)
        )
        self.store.create(keys.board("r1"), b"{}")
        return plan, Call("act", Inputs(place=place, learner="s", job="job"), board)

    def play(self, call: Call) -> tuple[Answer, Child]:
        """Lets the process of the site answer the call."""
        opened = Opened(run="r1", plan=call.inputs.place.plan, job="job")
        with changed_environment(self.site.surroundings()):
            child = Child(self.site, "core", Guard(self.site, opened), (self.code,))
            try:
                return child.call(call), child
            finally:
                child.stop()

    def found(self) -> dict[str, Any]:
        """Returns all that the code has seen."""
        lines = (self.folder / "state" / "training.log").read_text().splitlines()
        return next(json.loads(line) for line in lines if line.startswith("{"))


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder on the disk: other tests may have their files in the machine's shared memory."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder in the machine's shared memory, such as for data that no disk may have."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def port() -> Iterator[int]:
    """A port of this machine that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def world(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://site:very-secret@proxy.example.org:3128")
    return World(tmp_path, port)


@pytest.fixture
def service() -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(SERVICE)
        server.listen()
        Path(SERVICE).chmod(0o666)
        yield
    Path(SERVICE).unlink()


def test_code_that_looks_for_everything(world: World, service: None) -> None:
    _, call = world.begin()
    files = [world.folder / name for name in ("own.key", "rows.npz")]
    before = [path.stat() for path in files]
    answer, child = world.play(call)
    assert answer.took_part
    assert world.store.size(keys.update("s", "r1", 1)) is not None
    found = world.found()
    assert child.isolation.files
    assert child.isolation.network
    for name in ("read key", "read credentials", "read state", "write state", "write data", "environ"):
        assert "PermissionError" in found[name], (name, found[name])
    assert found["connect"].startswith(("PermissionError", "OSError", "ConnectionRefusedError"))
    assert found["interfaces"] == ["lo"]
    assert "PermissionError" in found["kill"]
    assert "PermissionError" in found["kill parent"], "it ends what the code leaves behind"
    assert found["write home"] == "None"
    assert int(found["read data"]) > 0
    for name in ("limit", "host"):
        assert "PermissionError" in found[name], (name, found[name])
    assert len(found["threads"]) > 1
    assert set(found["threads"]) == {"2"}, "a thread from before the fence would be outside, and do what code asks"
    assert found["service"].startswith("FileNotFoundError")
    assert (found["kernel's keys"], found["label"].partition(":")[0]) == (-1, "OSError")
    assert found["copy"].endswith("/rows.npz"), "copies of files work, and only their modes and times are not kept"
    assert [(one.st_mode, one.st_mtime, one.st_ctime) for one in before] == [
        (one.st_mode, one.st_mtime, one.st_ctime) for one in (path.stat() for path in files)
    ], "nor can it open a file to others, or leave a mark on one"
    assert found["keys"] == []
    assert not [name for name in found["variables"] if name.startswith("AWS_") and name.endswith("KEY")]
    assert (world.folder / "state" / "agent.json").read_text() == "{}"
    assert not list((world.folder / "state" / "scratch").iterdir())


def is_left() -> bool:
    """Whether code of a model has left something in the memory of this machine."""
    segments = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return LEFT.exists() or SEGMENT in {int(line.split()[0]) for line in segments}


def test_code_leaves_nothing_in_the_memory_of_the_machine(world: World) -> None:
    """Its shared memory is its own, for the semaphores of `multiprocessing`, and ends with it."""
    _, call = world.begin()
    assert world.play(call)[0].took_part
    found = world.found()
    assert (found["write shared"], found["semaphore"], found["write null"]) == ("None", "True", "None")
    assert found["segment"] >= 0
    assert "PermissionError" in found["device"]
    assert not is_left()


def test_a_site_whose_files_are_in_the_memory_of_the_machine(in_memory: Path, port: int) -> None:
    """Its code sees the data there, and writes in its scratch folder only."""
    world = World(in_memory, port)
    _, call = world.begin()
    assert world.play(call)[0].took_part
    found = world.found()
    assert int(found["read data"]) > 0
    assert found["write home"] == "None"
    for name in ("write shared", "semaphore", "read key"):
        assert "PermissionError" in found[name], (name, found[name])
    assert not is_left()


@pytest.mark.parametrize("place", ["/dev/shm", "/run"])
def test_data_in_a_folder_that_is_covered_may_be_named_by_a_uri(tmp_path: Path, port: int, place: str) -> None:
    with tempfile.TemporaryDirectory(dir=place, prefix="a b") as folder:
        world = World(tmp_path, port, policy={"data": file_uri(Path(folder) / "rows.npz")})
        shutil.copy(tmp_path / "rows.npz", folder)
        _, call = world.begin()
        assert world.play(call)[0].took_part
        assert world.found()["write home"] == "None"


WITHOUT_NAMESPACES = """
import ctypes, json, multiprocessing, socket, sys
from pathlib import Path
from fedpipe.sites.isolation import isolate

def tried(what, *arguments):
    try:
        return type(what(*arguments)).__name__
    except OSError as error:
        return type(error).__name__

folder, left, others, segment = sys.argv[1:]
isolation = isolate(folder, (), 0, 0, 0)
libc = ctypes.CDLL(None)
families = {name: getattr(socket, name) for name in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET")}
print(json.dumps({
    "files": isolation.files, "network": isolation.network,
    "done": [tried(open, f"{folder}/x", "w"), tried(open, "/dev/null", "w"), tried(open, "/dev/urandom", "rb"),
             tried(socket.socketpair), tried(socket.socketpair, socket.AF_UNIX, socket.SOCK_SEQPACKET),
             tried(multiprocessing.Pipe)],
    "refused": [tried(open, left, "w"), tried(open, others), tried(open, "/dev/ptmx", "rb"),
                *(tried(socket.socket, family, socket.SOCK_DGRAM) for family in families.values()),
                *(tried(socket.socketpair, socket.AF_UNIX, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW)),
                tried(socket.socketpair, socket.AF_INET)],
    "disks": sorted({tried(open, path, "rb") for path in Path("/dev").iterdir() if path.is_block_device()}),
    "shared": [libc.shmget(int(segment), 4096, 0o1666), libc.semget(int(segment), 1, 0o1666), libc.msgget(int(segment), 0o1666),
               libc.mq_open(b"/left", 0o102, 0o600, None)],
}))
"""
FORBIDDEN = (
    'for kind in user net mnt ipc; do echo 0 > "/proc/sys/user/max_${kind}_namespaces" || exit 1; done; exec "$0" "$@"'
)
"""A user who may make no namespaces."""


def test_where_namespaces_are_forbidden_code_has_no_network_and_no_shared_memory_at_all(
    tmp_path: Path, in_memory: Path
) -> None:
    (in_memory / "others").write_text("data")
    arguments = [str(tmp_path), str(LEFT), str(in_memory / "others"), str(SEGMENT)]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", FORBIDDEN, sys.executable, "-c", WITHOUT_NAMESPACES, *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert set(found.pop("disks")) <= {"PermissionError"}
    assert "PermissionError" not in found.pop("done")
    assert set(found.pop("refused")) == {"PermissionError"}
    assert found == {"files": True, "network": True, "shared": [-1] * 4}
    assert not is_left()


WITHOUT_FENCE = """
import ctypes, json, socket, sys
from fedpipe.sites import isolation
isolation.fence = lambda *_, **__: False
found = isolation.isolate(sys.argv[1], (), 0, 0, 0)
libc = ctypes.CDLL(None)
libc.umount2(b"/run", 2)
try:
    service = type(socket.socket(socket.AF_UNIX)).__name__
except PermissionError as error:
    service = type(error).__name__
print(json.dumps({
    "files": found.files, "network": found.network, "service": service,
    "segment": libc.shmget(int(sys.argv[2]), 4096, 0o1666),
}))
"""


def test_where_the_kernel_has_no_fence_code_asks_no_service_by_uncovering_its_folder(tmp_path: Path) -> None:
    """In its namespace it is root, and may unmount what covers a folder."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FENCE, str(tmp_path), str(SEGMENT)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == {"files": False, "network": True, "service": "PermissionError", "segment": -1}


def test_code_sees_only_the_rows_that_the_policy_allows(tmp_path: Path, port: int) -> None:
    world = World(tmp_path, port, policy={"data": "rows.npz", "rows": {"y": {"at_least": 1}}})
    _, call = world.begin()
    answer, _ = world.play(call)
    assert answer.took_part
    found = world.found()
    assert "PermissionError" in found["read data"]
    assert found["data"].startswith(str(tmp_path / "state" / "scratch"))
    with np.load(tmp_path / "rows.npz") as data:
        allowed = int((data["y"] >= 1).sum())
    update = json.loads(world.store.read(keys.update("s", "r1", 1)).data)
    assert update["examples"] < allowed < 40


@pytest.mark.parametrize(("leaves", "text"), [({}, REASON_STAYS), ({"reasons": True}, "patient 4711")])
def test_errors_of_code_stay_unless_the_policy_lets_them_leave(
    tmp_path: Path, port: int, leaves: dict[str, Any], text: str
) -> None:
    world = World(tmp_path, port, policy={"data": "rows.npz", "leaves": leaves})
    _, call = world.begin(then="raise ValueError('patient 4711')")
    answer, _ = world.play(call)
    assert not answer.took_part
    note = world.store.read(keys.answer("s", "r1", 1, "dropped")).data.decode()
    assert text in note
    assert ("4711" in note) is bool(leaves)
    assert "patient 4711" in (tmp_path / "state" / "training.log").read_text(), "people at the site see it"


def test_code_that_takes_too_long_is_ended(tmp_path: Path, port: int) -> None:
    world = World(tmp_path, port, policy={"data": "rows.npz", "seconds": 4})
    _, call = world.begin(then="time.sleep(600)")
    started = time.monotonic()
    with pytest.raises(WorkerDiedError, match=r"was ended, because train took more than 4 s"):
        world.play(call)
    assert time.monotonic() - started < 30


def test_code_that_takes_too_much_memory_is_dropped(tmp_path: Path, port: int) -> None:
    world = World(tmp_path, port, policy={"data": "rows.npz", "memory": "2Gi"})
    _, call = world.begin(then="bytearray(4 * 2**30)")
    answer, _ = world.play(call)
    assert not answer.took_part
    note = world.store.read(keys.answer("s", "r1", 1, "dropped")).data
    assert b"its work failed, and its owner keeps the reason" in note
    assert "MemoryError" in (tmp_path / "state" / "training.log").read_text()


@pytest.mark.parametrize("then", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)"])
def test_code_that_ends_its_process(world: World, then: str) -> None:
    _, call = world.begin(then=then)
    with pytest.raises(WorkerDiedError, match=r"the process that trains was ended"):
        world.play(call)


def test_code_that_ends_itself_is_dropped(world: World) -> None:
    _, call = world.begin(then="raise SystemExit(3)")
    answer, _ = world.play(call)
    assert not answer.took_part


DAEMON = f"4711.{os.getpid()}"
"""Seconds for which a process sleeps; no other one sleeps so long."""


def daemons() -> list[int]:
    """The processes that code of a model has left on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes() == f"sleep\0{DAEMON}\0".encode():
                found.append(int(path.parent.name))
    return found


LEAVES_DAEMONS = f"""import subprocess
    for _ in range(3):
        if not os.fork():
            os.setsid()
            if not os.fork():
                ctypes.CDLL(None).prctl(15, bytes([255, 254]), 0, 0, 0)  # PR_SET_NAME
                time.sleep(600)
            subprocess.Popen(["sleep", "{DAEMON}"], start_new_session=True)
            os._exit(0)
    while tried(lambda: os.wait()).startswith("("):
        pass
    {{then}}"""


@pytest.mark.parametrize("then", ["pass", "os._exit(1)", "time.sleep(600)"])
def test_nothing_that_code_has_started_outlasts_it(tmp_path: Path, port: int, then: str) -> None:
    """Neither when the agent ends it, nor when it ends itself, nor when it takes too long."""
    world = World(tmp_path, port, policy={"data": "rows.npz", "seconds": 8})
    _, call = world.begin(then=LEAVES_DAEMONS.format(then=then))
    with contextlib.nullcontext() if then == "pass" else pytest.raises(WorkerDiedError):
        world.play(call)
    assert daemons() == []


CHAIN = f"fp-{os.getpid()}".encode()
FORKS_FASTER_THAN_IT_IS_COUNTED = f"""fork = ctypes.PyDLL(None).fork
    if not fork():
        os.setsid()
        ctypes.CDLL(None).prctl(15, {CHAIN!r}, 0, 0, 0)  # PR_SET_NAME
        end = time.monotonic() + 60
        for _ in range(3):
            fork()
        while time.monotonic() < end:
            if fork():
                os._exit(0)
        os._exit(0)
    time.sleep(0.5)"""


def test_processes_that_fork_faster_than_they_are_counted_end_too(world: World) -> None:
    _, call = world.begin(then=FORKS_FASTER_THAN_IT_IS_COUNTED)
    assert world.play(call)[0].took_part
    for _ in range(20):
        for path in Path("/proc").glob("[0-9]*/comm"):
            with contextlib.suppress(OSError):
                assert path.read_bytes().strip() != CHAIN
        time.sleep(0.01)


AGENT = """
import os, subprocess, sys, time
program = "import sys, time; from fedpipe.sites.isolation import supervise; supervise({agent}); print('ready', flush=True); "
subprocess.Popen([sys.executable, "-c", program.format(agent=os.getpid()) + f"time.sleep({sys.argv[1]})"])
time.sleep(600)
"""


def test_an_agent_that_is_killed_takes_all_with_it(tmp_path: Path) -> None:
    """Also where the code of a model keeps its process from looking at its pipe."""
    with subprocess.Popen([sys.executable, "-c", AGENT, DAEMON], stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        assert sleeping(DAEMON)
        agent.kill()
    end = time.monotonic() + 20
    while sleeping(DAEMON):
        assert time.monotonic() < end
        time.sleep(0.05)


def sleeping(mark: str) -> list[int]:
    """The processes of this machine with a mark in their program."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"time.sleep({mark})".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def test_code_that_says_more_than_the_disk_should_have(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_LOG", 2**20)
    _, call = world.begin(then="print('patient 4711 ' * 2**20)")
    assert world.play(call)[0].took_part
    log = world.folder / "state" / "training.log"
    assert log.stat().st_size == 2**20
    world.play(call)
    assert log.with_name("training.log.1").stat().st_size == 2**20
    assert log.stat().st_size <= 2**20


WRITES_ANYTHING = """[
        os.write(int(handle), {written}) for handle in os.listdir("/proc/self/fd")
        if tried(lambda: os.readlink(f"/proc/self/fd/{{handle}}")).startswith("socket:")
    ]
    {then}"""


@pytest.mark.parametrize(
    ("written", "then", "seconds", "why"),
    [
        ('bytes([0, 0, 0, 6]) + b"<html>"', "pass", 20, "JSON is malformed"),
        ("bytes([0, 0])", "time.sleep(600)", 4, "train took more than 4 s"),
        ('bytes([0, 0, 0, 9]) + b"x"', "time.sleep(600)", 4, "train took more than 4 s"),
    ],
    ids=["no JSON", "half a length", "half a message"],
)
def test_code_that_writes_into_the_pipes(
    tmp_path: Path, port: int, written: str, then: str, seconds: int, why: str
) -> None:
    """The agent refuses it as no answer, and lives on."""
    world = World(tmp_path, port, policy={"data": "rows.npz", "seconds": seconds})
    _, call = world.begin(then=WRITES_ANYTHING.format(written=written, then=then))
    with pytest.raises(WorkerDiedError, match=f"was ended, because {why}"):
        world.play(call)


def test_leftovers_of_a_killed_agent_are_removed(world: World) -> None:
    (world.folder / "state" / "scratch" / "old").mkdir(parents=True)
    (world.folder / "state" / "scratch" / "old" / "rows").write_text("data")
    remove_leftovers(world.site)
    assert not (world.folder / "state" / "scratch").exists()
    assert [path.name for path in own_files(world.site)] == ["agent.json"]
