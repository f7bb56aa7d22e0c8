"""Fixtures that many tests share."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from hypothesis import settings

from fedpipe.engine.workers import Worker, Workers, start_server
from fedpipe.store import MemoryStore
from tests import servers
from tests.faults import seeds
from tests.memory import MEMORY

pytest.register_assert_rewrite("fedpipe.store.testing")
settings.register_profile("untimed", deadline=None)  # a slow moment of the machine is not a failure
settings.load_profile("untimed")
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` ignores it, and so would all processes of the tests
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # tests give the same numbers with and without a GPU


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests rehearse models again, and leave no notes in the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


def pytest_configure(config: pytest.Config) -> None:
    """Puts the files of tests into memory; images of `make e2e` are too large for it."""
    if MEMORY and "PYTEST_DEBUG_TEMPROOT" not in os.environ and not any("e2e" in part for part in config.args):
        os.environ["PYTEST_DEBUG_TEMPROOT"] = os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


def pytest_report_header() -> str:
    """Returns the seed with which a run's faults can be repeated."""
    return f"faults: FEDPIPE_FAULT_SEED={seeds.FIRST}"


LAST = ("tests/kubeflow/test_images", "tests/test_chart", "tests/test_site_chart", "tests/tracking/test_mlflow")
"""The last heavy tests: those of programs that a new machine builds in the meantime."""
FIRST = ("tests/tff/", "tests/engine/test_kfp", "tests/commands/", "tests/learners/keras/", "tests/faults/test_proc")
"""The first heavy tests: the longest, and groups that need one worker."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders tests: the heavy ones first, so that all workers are busy until the end."""
    items.sort(key=_place_of)


def _place_of(item: pytest.Item) -> int:
    name, last = item.nodeid, len(FIRST) + 1
    if name.startswith(LAST):
        return last
    if item.get_closest_marker("heavy") is None:
        return last + 1
    return next((place for place, start in enumerate(FIRST) if name.startswith(start)), len(FIRST))


@pytest.fixture(scope="session", params=["minio", "versitygw"])
def s3_server(request: pytest.FixtureRequest) -> servers.Server:
    """Both servers, one after the other."""
    server: servers.Server = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture(scope="session")
def minio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A MinIO server, of which each worker starts one."""
    with servers.running("minio", tmp_path_factory.mktemp("minio")) as server:
        yield server


class Shared(Workers):
    """Processes that tests share, because the import of TensorFlow takes seconds; an engine does not end them."""

    def __init__(self, **workers: Worker) -> None:
        super().__init__()
        self._shared = {environment: (worker, Lock()) for environment, worker in workers.items()}

    def call(self, function: Callable[..., Any], *arguments: Any, environment: str = "keras") -> Any:
        worker, lock = self._shared[environment]
        with lock:
            return worker.call(function, *arguments)

    def stop(self) -> None:
        """Leaves them to the fixtures."""


@pytest.fixture(scope="session")
def processes(keras: Worker, tff: Worker) -> Workers:
    """A process for each environment."""
    return Shared(keras=keras, tff=tff)


@pytest.fixture(scope="session")
def keras() -> Iterator[Worker]:
    """A process with Keras, which tests share."""
    start_server()
    worker = Worker()
    yield worker
    worker.stop()


@pytest.fixture(scope="session")
def tff() -> Iterator[Worker]:
    """A process of the tff environment, which tests share."""
    worker = Worker("tff")
    yield worker
    worker.stop()


@pytest.fixture(scope="session")
def other_tff() -> Iterator[Worker]:
    """Another one, for claims that hold in any process."""
    worker = Worker("tff")
    yield worker
    worker.stop()


@pytest.fixture(scope="session")
def versitygw_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A VersityGW server, of which each worker starts one."""
    with servers.running("versitygw", tmp_path_factory.mktemp("versitygw")) as server:
        yield server


@pytest.fixture
def s3_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of the test servers in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET_KEY)
    for name in ("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def store() -> MemoryStore:
    """An empty store in memory."""
    return MemoryStore()


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A folder with what `fedpipe init` writes."""
    from fedpipe.commands.init import init

    init(tmp_path / "digits")
    return tmp_path / "digits"


@pytest.fixture
def numpy_digits(tmp_path: Path) -> Path:
    """A folder with what `fedpipe init --framework numpy` writes: trained in milliseconds, without TensorFlow."""
    from fedpipe.commands.init import Framework, init

    init(tmp_path / "numpy", framework=Framework.numpy)
    return tmp_path / "numpy"
