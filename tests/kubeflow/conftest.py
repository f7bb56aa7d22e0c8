"""A small Kubeflow Pipelines that clients reach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubeflow.kfp_server import KfpServer, serving


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KfpServer]:
    monkeypatch.setenv("HOME", str(tmp_path))  # KFP's client keeps a file there
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with serving() as server:
        yield server
