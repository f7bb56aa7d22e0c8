"""A real MLflow server, which the tests of a worker share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests import servers
from tests.tracking.mlflow_server import MlflowServer, running


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with running(tmp_path_factory.mktemp("mlflow"), servers.free_port()) as server:
        yield server
