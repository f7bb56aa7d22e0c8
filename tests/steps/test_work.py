"""The process of a step that runs model.py has no keys: a model that looks everywhere finds none, and the run succeeds."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedpipe.commands.compile import compile as compile_to
from fedpipe.identity.enrolment import Enrolment, change_enrolled
from fedpipe.identity.signing import COORDINATOR, make_key, public_key
from fedpipe.rounds.history import history
from fedpipe.store import open_store
from tests import servers
from tests.steps.pods import Pods

FEDERATION = """
name: spied
store: {store}
framework: numpy
learners: [{{name: a}}, {{name: b}}]
data: {{uri: {data}, parts: {{train: 0.6, vote: 0.2, test: 0.2}}}}
training: {{rounds: 2, batch_size: 8}}
"""
MODEL = '''
"""A model that looks for keys wherever a process may look, and writes down what it sees."""
import gc, os, pathlib, sys
from fedpipe.learners.numpy import Linear

def seen():
    yield repr(dict(os.environ))
    for process in (os.getpid(), os.getppid()):
        for name in ("environ", "cmdline"):
            try:
                yield pathlib.Path(f"/proc/{process}/{name}").read_bytes().decode(errors="replace")
            except OSError as error:
                yield f"({name} of a process: {error.strerror})"
    for item in gc.get_objects():
        if isinstance(item, dict):
            yield from (value for value in list(item.values()) if isinstance(value, str))
        elif isinstance(item, (list, tuple)):
            yield from (value for value in list(item) if isinstance(value, str))
    for module in list(sys.modules.values()):
        yield from (value for value in list(vars(module).values()) if isinstance(value, str))
    for path in pathlib.Path(SECRETS).rglob("*"):
        try:
            yield path.read_text()
        except OSError as error:
            yield f"({path.name}: {error.strerror})"

def build():
    with open(FOUND, "a") as file:
        file.write(f"{sys.argv[-2]}\\n" + "\\n".join(seen()) + "\\n")
    return Linear(features=(4,), outputs=3, loss="softmax", learning_rate=0.5)
'''


def without_rights() -> None:
    """Drops all rights of root for what is executed next: pods have none either."""
    libc = ctypes.CDLL(None)
    for right in range(41):
        libc.prctl(24, right, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.fixture
def folder(tmp_path: Path, minio_server: servers.Server, s3_keys: None) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.argmax(x[:, :3], axis=1))
    store = f"s3://tests/{tmp_path.name}?endpoint={minio_server.endpoint}"
    (tmp_path / "federation.yaml").write_text(FEDERATION.format(store=store, data=tmp_path / "data.npz"))
    names = f"FOUND = {str(tmp_path / 'found')!r}\nSECRETS = {str(tmp_path / 'keys')!r}\n"
    (tmp_path / "model.py").write_text(MODEL.replace("def seen", f"{names}\ndef seen"))
    compile_to(tmp_path / "federation.yaml", tmp_path / "pipeline.yaml")
    return tmp_path


@pytest.fixture
def keys(folder: Path, monkeypatch: pytest.MonkeyPatch, minio_server: servers.Server) -> dict[str, str]:
    """The private keys of all parties, in a folder; the parties are enrolled."""
    made = {name: make_key() for name in ("a", "b", COORDINATOR)}
    (folder / "keys").mkdir()
    for name, key in made.items():
        (folder / "keys" / f"{name}.key").write_text(key)
    monkeypatch.setenv("FEDPIPE_KEYS", str(folder / "keys"))
    learners = {name: Enrolment(key=public_key(made[name]), since=0.0) for name in ("a", "b")}
    coordinator = Enrolment(key=public_key(made[COORDINATOR]), since=0.0)
    store = open_store(f"s3://tests/{folder.name}?endpoint={minio_server.endpoint}").below("spied")
    change_enrolled(store, lambda old: type(old)(learners=learners, coordinator=coordinator))
    return made


@pytest.fixture
def pods(folder: Path, keys: dict[str, str]) -> Iterator[Pods]:
    made = Pods(folder / "pipeline.yaml", folder / "outputs", {"run": "r1"}, before=without_rights)
    yield made
    for process in made.processes.values():
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()


@pytest.mark.heavy
def test_a_model_that_looks_for_keys_finds_none(
    folder: Path, pods: Pods, keys: dict[str, str], minio_server: servers.Server
) -> None:
    ended = pods.run()
    assert {name: one.code for name, one in ended.items()} == dict.fromkeys(ended, 0), ended
    found = (folder / "found").read_text()
    for step in ("initialise", "learn", "score", "evaluate", "export"):
        assert f"{step}\n" in found
    assert "(environ of a process: Permission denied)" in found
    assert "(a.key: Permission denied)" in found
    for key in (*keys.values(), os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"]):
        assert key not in found
    store = open_store(f"s3://tests/{folder.name}?endpoint={minio_server.endpoint}").below("spied")
    for record in history(store, "r1")[1:]:
        assert [update.signature.key for update in record.updates if update.signature] == [
            public_key(keys[name]) for name in ("a", "b")
        ]
    assert any(key.endswith("signature.json") for key in store.keys("models"))


FENCED = """
import json, os, sys
from pathlib import Path
from fedpipe.steps.fence import fence
secret, other, parent = sys.argv[1:]
print(json.dumps([fence([Path(secret)])] + [read(path) for path in (f"{secret}/key", f"{secret}/in/key", other, parent)]))
"""


class TestFence:
    def test_files_behind_it_cannot_be_read_by_the_process_and_its_children(self, tmp_path: Path) -> None:
        (tmp_path / "secret" / "in").mkdir(parents=True)
        for path in ("secret/key", "secret/in/key", "other"):
            (tmp_path / path).write_text("text")
        read = "import subprocess\ndef read(path):\n    return subprocess.run(['cat', path], capture_output=True).returncode\n"
        paths = [str(tmp_path / "secret"), str(tmp_path / "other"), f"/proc/{os.getpid()}/environ"]
        done = subprocess.run(
            [sys.executable, "-c", read + FENCED, *paths], capture_output=True, text=True, check=True,
            preexec_fn=without_rights,
        )  # fmt: skip
        assert json.loads(done.stdout) == [True, 1, 1, 0, 1]

    def test_a_process_of_several_threads_is_none(self, tmp_path: Path) -> None:
        """Its other threads would stay outside, and do what the code of a model asks."""
        text = "import threading, time\nthreading.Thread(target=time.sleep, args=(1,), daemon=True).start()\n"
        text += "from pathlib import Path\nfrom fedpipe.steps.fence import fence\nprint(fence([Path('/none')]))"
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"
