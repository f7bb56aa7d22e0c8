from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedpipe.data.examples import Examples, label_counts, read_examples
from fedpipe.data.parts import get_parts, get_shard, put_parts, put_shard
from fedpipe.errors import CorruptError, DataError
from fedpipe.store import MemoryStore, open_store
from tests import servers

X, Y = np.arange(12, dtype=np.float32).reshape(6, 2), np.array([0, 1, 2, 0, 1, 2])


def read(path: Path | str, **more: str) -> Examples:
    return read_examples(str(path), **{"features": "x", "labels": "y", **more})[0]


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y, writer=np.array(["a"] * 6))
    examples, keys = read_examples(str(tmp_path / "d.npz"), features="x", labels="y", key="writer")
    np.testing.assert_array_equal(examples.x, X)
    np.testing.assert_array_equal(examples.y, Y)
    assert keys is not None
    assert list(keys) == ["a"] * 6
    np.testing.assert_array_equal(read(f"file://{tmp_path}/d.npz").x, X)


def test_parquet_with_a_list_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": X.tolist(), "y": Y}), tmp_path / "d.parquet")
    np.testing.assert_array_equal(read(tmp_path / "d.parquet").x, X)


def test_parquet_with_one_column_per_feature(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": X[:, 0], "b": X[:, 1], "y": Y}), tmp_path / "d.parquet")
    np.testing.assert_array_equal(read(tmp_path / "d.parquet").x, X)


@pytest.mark.usefixtures("s3_keys")
def test_from_a_bucket(minio_server: servers.Server, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    open_store(minio_server.uri).below("sets").upload("d.npz", tmp_path / "d.npz")
    uri = f"s3://tests/sets/d.npz?endpoint={minio_server.endpoint}"
    np.testing.assert_array_equal(read(uri).x, X)
    with pytest.raises(DataError, match="no such dataset"):
        read(uri.replace("d.npz", "e.npz"))


def pickled(path: Path) -> None:
    np.savez(path, x=np.array([{"a": 1}], dtype=object), y=np.zeros(1))


def lying(path: Path) -> None:
    """Writes .npy headers that claim 2^38 numbers, without data."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**38,)})
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", header.getvalue())
        file.writestr("y.npy", header.getvalue())


MISTAKES = {
    "no such array": (lambda p: np.savez(p, features=X, y=Y), "there is no array 'x'"),
    "empty": (lambda p: np.savez(p, x=X[:0], y=Y[:0]), "the dataset is empty"),
    "lengths": (lambda p: np.savez(p, x=X, y=Y[:5]), "6 features but 5 labels"),
    "too large": (
        lambda p: np.savez(p, x=np.array([[1, 2], [3, -1e39]]), y=[0, 1]),
        "the features are too large for a model, first in row 2. Scale",
    ),
    "long floats": (
        lambda p: np.savez(p, x=X.astype(np.longdouble), y=Y),
        "the features have dtype float128, which no model takes. Convert",
    ),
    "a text": (lambda p: p.write_text("hello"), "because it is not NumPy's format"),
    "a pointer": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid"),
        "is a pointer of Git LFS, .* Download",
    ),
    "nan": (lambda p: np.savez(p, x=X * np.nan, y=Y), "NaN or infinity"),
    "scalar": (lambda p: np.savez(p, x=np.float32(1), y=Y), "neither numbers nor text"),
    "pickle": (pickled, "cannot be read"),
    "lying header": (lying, "cannot be read"),
    "no zip": (lambda p: p.write_bytes(b"nonsense"), "cannot be read"),
    "truncated": (lambda p: (np.savez(p, x=X, y=Y), p.write_bytes(p.read_bytes()[:-50])), "cannot be read"),
}


@pytest.mark.parametrize(("write", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_unreadable_datasets(tmp_path: Path, write: object, message: str) -> None:
    write(tmp_path / "d.npz")  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        read(tmp_path / "d.npz")


def test_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such dataset"):
        read(tmp_path / "absent.npz")
    (tmp_path / "d.xlsx").write_text("1,2")
    with pytest.raises(DataError, match=r"unsupported format\. Save the sheet as CSV"):
        read(tmp_path / "d.xlsx")
    (tmp_path / "d.dta").write_text("1,2")
    with pytest.raises(DataError, match=r"Use one of \.npz, \.csv, \.tsv, \.parquet"):
        read(tmp_path / "d.dta")
    (tmp_path / "d.parquet").write_text("1,2")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "d.parquet")
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, X)
    for features in ("x", "auto"):
        with pytest.raises(DataError, match="cannot be read, because it is one array without a name"):
            read_examples(str(tmp_path / "one.npz"), features=features, labels="y")


def test_label_counts() -> None:
    assert label_counts(np.array([3, 1, 3])) == {"1": 1, "3": 2}
    assert label_counts(np.eye(3)[[0, 2, 2]]) == {"0": 1, "2": 2}
    assert label_counts(np.array([0.5, 1.0])) == {}
    assert label_counts(np.arange(2000)) == {}


def test_shards_are_read_as_they_were_written(store: MemoryStore) -> None:
    parts = {"train": Examples(X[:4], Y[:4]), "test": Examples(X[4:], Y[4:])}
    shard, digest = put_shard(store, "a", parts)
    assert shard.parts == {"train": 4, "test": 2}
    assert shard.labels == {"0": 2, "1": 2, "2": 2}
    assert get_shard(store, "a", digest) == shard
    found = get_parts(store, shard.data, "a")
    np.testing.assert_array_equal(found["train"].x, X[:4])
    np.testing.assert_array_equal(found["test"].y, Y[4:])
    assert put_shard(store, "a", parts) == (shard, digest)


def test_a_set_without_labels_is_refused(store: MemoryStore, tmp_path: Path) -> None:
    from fedpipe import weights
    from fedpipe.store.objects import put_file

    digest = weights.save({"train/x": X}, tmp_path / "e")
    put_file(store, tmp_path / "e", digest)
    with pytest.raises(CorruptError, match="'y' is missing"):
        get_parts(store, digest)


def test_an_empty_part_is_kept(store: MemoryStore) -> None:
    digest, _ = put_parts(store, {"vote": Examples(X[:0], Y[:0])})
    assert get_parts(store, digest)["vote"].x.shape == (0, 2)
