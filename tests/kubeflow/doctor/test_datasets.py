"""Tests datasets in S3 on a real server: one rule for their endpoint, `fedpipe put`, and the look of `doctor`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import fedpipe
from fedpipe.cli.main import app
from fedpipe.errors import InputError
from fedpipe.federation.sources import read_source
from fedpipe.kubeflow.doctor.datasets import check_datasets
from fedpipe.kubeflow.doctor.finding import Finding
from fedpipe.kubeflow.where import Where
from fedpipe.rounds.history import history
from fedpipe.rounds.plan import bare_name
from fedpipe.store import open_store
from tests import servers

MODEL = """
from fedpipe.learners.numpy import Linear

def build():
    return Linear(features=(4,), outputs=3, loss="softmax", learning_rate=0.5)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_keys: None) -> Path:
    """A dataset of 120 examples, and a model."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.argmax(x[:, :3], axis=1))
    (tmp_path / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    return tmp_path


def content(server: servers.Server, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "name": "small", "store": {"uri": f"s3://tests/{folder.name}", "endpoint": server.endpoint},
        "model": f"{folder}/model.py:build", "framework": "numpy", "learners": [{"name": "a"}, {"name": "b"}],
        "data": {"uri": f"s3://tests/{folder.name}/data.npz"}, "training": {"rounds": 1, "batch_size": 8},
        "export": "none", **more,
    }  # fmt: skip


def findings(federation: dict[str, Any]) -> list[Finding]:
    read = read_source(federation)
    return list(check_datasets(read, read.store_uri, Where()))


@pytest.mark.heavy
def test_data_without_an_endpoint_are_at_the_stores(minio_server: servers.Server, folder: Path) -> None:
    """Checks the central dataset and a learner's own, in `check`, `explore` and `run`."""
    place = open_store(f"s3://tests/{folder.name}?endpoint={minio_server.endpoint}")
    for name in ("data.npz", "own.npz"):
        place.upload(name, folder / "data.npz")
    learners = [{"name": "a"}, {"name": "b"}, {"name": "c", "data": f"s3://tests/{folder.name}/own.npz"}]
    federation = content(minio_server, folder, learners=learners)
    size = (folder / "data.npz").stat().st_size
    assert [(one.level, one.subject, one.what.rpartition("has ")[2]) for one in findings(federation)] == [
        ("ok", "data", f"{size} bytes"), ("ok", "data of c", f"{size} bytes"),
    ]  # fmt: skip
    checked = dict(map(tuple, fedpipe.check(federation)))  # type: ignore[arg-type]
    assert checked["c"] == "96 train, 12 vote, 12 test"
    assert [view.learner for view in fedpipe.explore(federation).views] == ["a", "b", "c"]
    fedpipe.run(federation, out=folder / "out", name="r1")
    records = history(place.below("small"), "r1")
    assert [sorted(update.learner for update in record.updates) for record in records] == [[], ["a", "b", "c"]]


def test_a_dataset_is_put_once_and_found(minio_server: servers.Server, folder: Path) -> None:
    (folder / "federation.yaml").write_text(yaml.safe_dump(content(minio_server, folder)))
    result = CliRunner().invoke(app, ["put", "data.npz"])
    assert result.exit_code == 0, result.output
    size, text = (folder / "data.npz").stat().st_size, " ".join(result.output.split())
    assert f"uploaded {size} bytes; in the federation file:" in text
    first = fedpipe.put("federation.yaml", "data.npz")
    assert first.found
    assert f"data: {{uri: {first.uri}}}" in text
    assert first.uri.startswith(f"s3://tests/{folder.name}/small/datasets/")
    assert first.uri.endswith("/data.npz")
    (found,) = findings(content(minio_server, folder, data={"uri": first.uri}))
    assert found.level == "ok"
    assert found.what.startswith(f"{first.uri}?endpoint={minio_server.endpoint}")
    assert found.what.endswith(f" has {size} bytes")
    (folder / "data.npz").write_bytes(b"other")
    assert fedpipe.put("federation.yaml", "data.npz").uri != first.uri


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.npz", "cannot be read: No such file"),
        (".", "cannot be read: Is a directory"),
        ("a b.npz", "part of a key"),
    ],
)
def test_a_file_that_cannot_be_put(folder: Path, minio_server: servers.Server, name: str, message: str) -> None:
    (folder / "a b.npz").write_bytes(b"x")
    with pytest.raises(InputError, match=message):
        fedpipe.put(content(minio_server, folder), name)


@pytest.mark.parametrize(
    ("data", "level", "message"),
    [
        ("{place}/none.npz", "error", "there is no such dataset"),
        ("s3://tests", "error", "the URI names no file"),
        ("s3://tests/", "error", "the URI names no file"),
        ("{folder}/data.npz", "error", "pods cannot read .*, a file on this machine"),
        ("s3://tests/x.npz?endpoint=http://store.nowhere:9000", "warning", "cannot be looked at from here"),
    ],
)
def test_what_doctor_says_about_other_datasets(
    folder: Path, minio_server: servers.Server, data: str, level: str, message: str
) -> None:
    uri = data.format(place=f"s3://tests/{folder.name}", folder=folder)
    (found,) = findings(content(minio_server, folder, data={"uri": uri}))
    assert (found.level, found.subject) == (level, "data")
    assert re.search(message, found.what)
    assert level == "warning" or "fedpipe put FILE" in found.remedy or "Write s3://bucket/key.npz" in found.remedy


def test_the_name_of_a_dataset_is_not_its_endpoint() -> None:
    assert bare_name("s3://b/k.npz?endpoint=http://host:9000") == bare_name("/folder/k.npz") == "k.npz"
