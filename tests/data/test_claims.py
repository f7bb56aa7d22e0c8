"""Files that claim more than they hold, or hold more than the memory, are refused before they are read."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fedpipe.data import claims
from fedpipe.data.examples import read_examples
from fedpipe.data.sheets import read_sheet
from fedpipe.data.tables import read_columns
from fedpipe.errors import DataError
from fedpipe.registry.features import read_features
from fedpipe.registry.prediction import TensorSpec

SPEC = [TensorSpec("x", np.dtype(np.float32), (None, 4))]
READERS = {
    "predict": lambda path: read_features(path, SPEC),
    "train": lambda path: read_examples(str(path), features="x", labels="y"),
    "table": read_columns,
}


def npy(shape: tuple[int, ...], data: bytes, dtype: str = "<f4") -> bytes:
    """An array whose header claims a shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "shape", [(2**40, 4), (2**62, 0, 4), (3, 4), (0,), (2**20,)], ids=["huge", "empty", "more", "less", "much more"]
)
def test_a_header_that_claims_another_size(tmp_path: Path, read: Any, shape: tuple[int, ...]) -> None:
    path = npz(tmp_path / "a.npz", x=npy(shape, bytes(32)), y=npy((2,), bytes(8)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"claims|cannot be read"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_an_archive_that_grows(tmp_path: Path, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MiB in 16 kB, with 8 MiB of free memory."""
    path = npz(tmp_path / "a.npz", x=npy((2**20, 4), bytes(2**24)), y=npy((2**20,), bytes(2**22)))
    assert path.stat().st_size < 2**15
    monkeypatch.setattr(claims, "free_memory", lambda: 2**23)
    with pytest.raises(DataError, match="it needs 20 MiB of memory, but 8 MiB are free"):
        read(path)


def test_an_array_file_that_claims_more(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(npy((2**40, 4), bytes(32)))
    with pytest.raises(DataError, match="claims"):
        read_features(tmp_path / "a.npy", SPEC)


def test_a_parquet_file_of_many_equal_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"a": np.zeros(2**21), "b": ["x"] * 2**21}), path)
    assert path.stat().st_size < 2**17
    assert read_sheet(path).rows == 2**21
    monkeypatch.setattr(claims, "free_memory", lambda: 2**24)
    with pytest.raises(DataError, match="it needs 32 MiB of memory"):
        read_sheet(path)


@pytest.mark.parametrize("kind", ["texts", "bytes", "categories", "missing", "several groups"])
def test_a_parquet_file_that_holds_a_long_text_once(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 MB in 100 kB; each row has the same text."""
    path, text = tmp_path / "a.parquet", "a" * 100_000
    cells: Any = [text.encode() if kind == "bytes" else text] * 3000
    if kind == "missing":
        cells = [*cells[:2999], None]
    array = pa.array(cells).dictionary_encode() if kind == "categories" else pa.array(cells)
    parquet.write_table(
        pa.table({"a": array, "b": range(3000)}), path, row_group_size=1000 if kind == "several groups" else None
    )
    del array
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    try:
        sheet = read_sheet(path)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert list(sheet.cells("a")) == cells
    monkeypatch.setattr(claims, "free_memory", lambda: 2**26)
    with pytest.raises(DataError, match="it needs 286 MiB of memory, but 64 MiB are free"):
        read_sheet(path)


def test_a_parquet_file_of_long_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"a": [[0.0] * 2**21] * 2, "b": [1, 2]}), path)
    assert path.stat().st_size < 2**16
    monkeypatch.setattr(claims, "free_memory", lambda: 2**24)
    with pytest.raises(DataError, match="it needs 32 MiB of memory"):
        read_sheet(path)


def test_a_csv_file_of_separators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + ",\n" * 2**16)
    monkeypatch.setattr(claims, "free_memory", lambda: 2**18)
    with pytest.raises(DataError, match="it needs 0 MiB of memory, but 0 MiB are free"):
        read_sheet(path)


def test_the_free_memory_of_this_machine() -> None:
    assert 2**20 < claims.free_memory() < 2**46
