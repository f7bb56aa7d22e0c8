"""Tests files of clients as TensorFlow Federated writes them, without TensorFlow."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe.data.client_files import read_clients, read_keyed
from fedpipe.data.examples import read_examples
from fedpipe.data.shards import dealt
from fedpipe.engine.workers import Worker
from fedpipe.errors import DataError
from fedpipe.federation.file import parse_federation
from tests.tff_files import write_sqlite, writers

WRITERS = writers()


def write_hdf5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        for key, columns in WRITERS.items():
            group = file.create_group(f"examples/{key}")
            for name, values in columns.items():
                group[name] = values
    return path


class TestHdf5:
    def test_clients_keep_their_columns(self, tmp_path: Path) -> None:
        found = read_clients(write_hdf5(tmp_path / "emnist.h5"))
        assert list(found) == sorted(WRITERS)
        for key, columns in WRITERS.items():
            for name, values in columns.items():
                np.testing.assert_array_equal(found[key][name], values)

    def test_only_some_are_read(self, tmp_path: Path) -> None:
        found = read_clients(write_hdf5(tmp_path / "emnist.h5"), columns=("label",), most=2)
        assert {key: list(columns) for key, columns in found.items()} == {"f0000": ["label"], "f0001": ["label"]}

    def test_a_dataset_is_dealt_by_client(self, tmp_path: Path) -> None:
        """Checks that all pictures of a writer go to one learner."""
        path = write_hdf5(tmp_path / "emnist.h5")
        examples, keys = read_examples(str(path), features="pixels", labels="label", key="client")
        assert keys is not None
        assert examples.x.shape == (27, 4, 4)
        assert [str(k) for k in np.unique(keys)] == sorted(WRITERS)
        federation = parse_federation({
            "name": "emnist", "learners": [{"name": "a"}, {"name": "b"}],
            "data": {"uri": "x", "features": "pixels", "labels": "label", "shards": {"by": "key", "column": "client"},
                     "parts": {"train": 1.0, "vote": 0.0, "test": 0.0}},
            "training": {"rounds": 1, "batch_size": 2}, "evaluation": {"holdout": 0.0},
        })  # fmt: skip
        owners: dict[bytes, str] = {}
        for learner, parts in dealt(federation, str(path))[0].items():
            for picture in parts["train"].x:
                owners[picture.tobytes()] = learner
        for columns in WRITERS.values():
            assert len({owners[picture.tobytes()] for picture in columns["pixels"]}) == 1

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"nonsense", "is not an HDF5 file of federated data"), (b"", "is not an HDF5 file of federated data")],
    )
    def test_another_format(self, content: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / "x.h5").write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            read_keyed(tmp_path / "x.h5", ("x", "y"))
        assert "examples/<client>/<column>" in str(caught.value.remedy)

    def test_links_out_of_the_file_are_not_followed(self, tmp_path: Path) -> None:
        secret = write_hdf5(tmp_path / "secret.h5")
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_group("examples/a")["x"] = h5py.ExternalLink(str(secret), "examples/f0000/pixels")
        with pytest.raises(DataError, match="'x' is a link"):
            read_keyed(tmp_path / "x.h5", ("x",))

    def test_clients_must_be_alike(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            for key, width in (("a", 2), ("b", 3)):
                file[f"examples/{key}/x"] = np.zeros((4, width))
        with pytest.raises(DataError, match=r"the clients' 'x' have different shapes: \[\(2,\), \(3,\)\]"):
            read_keyed(tmp_path / "x.h5", ("x",))


@pytest.mark.heavy
@pytest.mark.xdist_group("tff")
def test_sqlite_as_tff_writes_it(tmp_path: Path, tff: Worker) -> None:
    path = tmp_path / "emnist.sqlite"
    tff.call(write_sqlite, str(path))
    found = read_clients(path)
    assert list(found) == sorted(WRITERS)
    for key, columns in WRITERS.items():
        np.testing.assert_array_equal(found[key]["pixels"], columns["pixels"].reshape(-1, 16))
        np.testing.assert_array_equal(found[key]["label"], columns["label"])


class TestSqlite:
    def write(self, path: Path, rows: list[tuple[str, str, bytes]]) -> Path:
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE examples (split_name TEXT, client_id TEXT, serialized_example_proto BLOB)")
            database.executemany("INSERT INTO examples VALUES (?, ?, ?)", rows)
        database.close()
        return path

    def test_a_split_is_chosen(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "x.sqlite", [("train", "a", b""), ("test", "a", b"")])
        for split, message in (("", "the file has 2 splits"), ("tset", "there is no split 'tset'")):
            with pytest.raises(DataError, match=message) as caught:
                read_clients(path, split=split)
            assert caught.value.remedy == "Set data.split to one of them: test, train."

    @settings(max_examples=40, deadline=None)
    @given(data=st.binary(max_size=40))
    def test_any_bytes_are_read_or_refused(self, data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
        path = self.write(tmp_path_factory.mktemp("s") / "x.sqlite", [("train", "a", data)])
        with contextlib.suppress(DataError):
            read_keyed(path, ("x", "y"))

    def test_another_format(self, tmp_path: Path) -> None:
        (tmp_path / "x.sqlite").write_bytes(b"nonsense" * 100)
        with pytest.raises(DataError, match="is not a SQLite file of federated data: file is not a database"):
            read_clients(tmp_path / "x.sqlite")
        with pytest.raises(DataError, match="there is no such dataset"):
            read_examples(str(tmp_path / "y.sqlite"), features="x", labels="y")
        assert not (tmp_path / "y.sqlite").exists()
