"""Columns of CSV, TSV and Parquet are taken by name, unless the file says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpipe.codec import read_json
from fedpipe.federation.file import parse_federation, read_federation
from fedpipe.federation.sources import read_source
from fedpipe.store.objects import encode
from tests.federation.test_file import GOOD

OWN = [{"name": "a", "data": "a.csv"}, {"name": "b", "data": "b.TSV"}]


def features(folder: Path, code: str = "", **sections: Any) -> Any:
    """The features of a federation file with these sections; read from a dictionary, they are the same."""
    (folder / "model.py").write_text(code)
    content = {**GOOD, "model": "model.py:build", **sections}
    (folder / "federation.yaml").write_text(yaml.safe_dump(content))
    found = read_federation(folder / "federation.yaml")
    assert parse_federation(read_json(encode(found))) == found
    assert read_source(folder / "federation.yaml", {"training": {"rounds": 3}}).data == found.data
    return found.data.features


@pytest.mark.parametrize("uri", ["t.csv", "t.TSV", "t.parquet", "s3://bucket/t.csv"])
def test_columns_have_names(tmp_path: Path, uri: str) -> None:
    assert features(tmp_path, data={"uri": uri}) == "auto"


@pytest.mark.parametrize("uri", ["t.npz", "t.h5", "t.sqlite", "csv"])
def test_arrays_do_not(tmp_path: Path, uri: str) -> None:
    assert features(tmp_path, data={"uri": uri}) == "x"


@pytest.mark.parametrize("given", ["x", "", "pixels", "auto", {"age": "number"}])
def test_the_file_decides(tmp_path: Path, given: Any) -> None:
    assert features(tmp_path, data={"uri": "t.csv", "features": given}) == given


def test_data_of_their_own(tmp_path: Path) -> None:
    assert features(tmp_path, data={}, learners=OWN) == "auto"
    assert features(tmp_path, data={"uri": "t.csv"}, learners=OWN) == "auto"
    assert features(tmp_path, data={"uri": "t.npz"}, learners=OWN) == "x"
    assert features(tmp_path, data={}, learners=[OWN[0], {"name": "b", "data": "b.npz"}]) == "x"


@pytest.mark.parametrize("code", ["def load(uri):\n    ...", "from mine import load", "import x\nload = x.load"])
def test_a_load_of_model_py_returns_arrays(tmp_path: Path, code: str) -> None:
    assert features(tmp_path, code, data={}, learners=OWN) == "x"
    assert features(tmp_path, code, data={"uri": "t.csv"}) == "auto"


@pytest.mark.parametrize(
    "code", ["def loads(uri): ...", "# def load(uri)", "class A:\n    def load(self): ...", "x = load"]
)
def test_other_names_do_not(tmp_path: Path, code: str) -> None:
    assert features(tmp_path, code, data={}, learners=OWN) == "auto"
