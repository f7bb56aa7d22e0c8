"""The server of the Model Registry, and a federation whose runs register their models there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fedpipe
from fedpipe.commands.init import Framework, init
from tests.model_registry.server import RegistryServer, running


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with running(tmp_path_factory.mktemp("model-registry")) as server:
        yield server


@pytest.fixture(scope="session")
def federation(registry: RegistryServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a federation, whose two runs have registered a version each; the first one is promoted."""
    folder = tmp_path_factory.mktemp("federation") / "numpy"
    init(folder, framework=Framework.numpy)
    for name in ("one", "two"):
        fedpipe.run(folder / "federation.yaml", out=folder / name, name=name, training={"rounds": 1},
                    export={"registry": registry.url})  # fmt: skip
    fedpipe.promote("digits", 1, source=folder / "federation.yaml")
    return folder
