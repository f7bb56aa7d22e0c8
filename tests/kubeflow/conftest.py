"""A small Kubeflow Pipelines that clients reach."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.kubeflow.kfp_server import KfpServer, serving


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KfpServer]:
    monkeypatch.setenv("HOME", str(tmp_path))  # KFP's client keeps a file there
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with serving() as server:
        yield server


@pytest.fixture
def file(digits: Path) -> Path:
    """A federation that pods can reach."""
    path = digits / "federation.yaml"
    content = yaml.safe_load(path.read_text())
    content["store"] = {"uri": "s3://bucket/hospitals", "endpoint": "http://minio.store.svc:9000"}
    content["data"]["uri"] = "s3://bucket/digits.npz"
    path.write_text(yaml.safe_dump(content))
    return path
