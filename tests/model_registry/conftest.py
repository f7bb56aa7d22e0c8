"""The server of the Model Registry, and a federation whose runs register their models there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model_registry.server import RegistryServer, running
from tests.tracking.registering import registered


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with running(tmp_path_factory.mktemp("model-registry")) as server:
        yield server


@pytest.fixture(scope="session")
def federation(registry: RegistryServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a federation, whose two runs have registered a version each; the first one is promoted."""
    return registered(tmp_path_factory.mktemp("federation") / "numpy", registry.url)
