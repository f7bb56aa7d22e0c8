from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.errors import DataError
from fedpipe.registry.features import read_features
from fedpipe.registry.prediction import TensorSpec

ROW = TensorSpec("x", np.dtype(np.float32), (None, 3))
GREY = TensorSpec("x", np.dtype(np.float32), (None, 4, 2, 1))
COLOUR = TensorSpec("x", np.dtype(np.uint8), (None, 2, 2, 3))


def test_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((2, 3)), y=np.array([0, 1]))
    x, y, _ = read_features(tmp_path / "d.npz", [ROW])
    assert x.shape == (2, 3)
    assert y is not None
    np.savez(tmp_path / "one.npz", anything=np.ones((2, 3)))
    assert read_features(tmp_path / "one.npz", [ROW]).y is None
    np.save(tmp_path / "d.npy", np.ones((2, 3)))
    assert read_features(tmp_path / "d.npy", [ROW]).x.shape == (2, 3)
    np.savez(tmp_path / "two.npz", a=1, b=2)
    with pytest.raises(DataError, match="there is no array 'x'"):
        read_features(tmp_path / "two.npz", [ROW])


@pytest.mark.parametrize("name", ["absent.npz", "absent.csv", "absent.png"])
def test_no_such_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_features(tmp_path / name, [GREY])


@pytest.mark.parametrize("name", ["bad.npz", "bad.npy", "bad.png"])
def test_files_whose_names_are_wrong(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        read_features(tmp_path / name, [GREY])


def test_tables_with_and_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "bare.csv").write_text("1,2,3\n\n4,5,6.5\n")
    x, y, _ = read_features(tmp_path / "bare.csv", [ROW])
    np.testing.assert_array_equal(x, [[1, 2, 3], [4, 5, 6.5]])
    assert y is None
    (tmp_path / "named.csv").write_text("a,Label,b,c\n1,7,2,3\n")
    x, y, _ = read_features(tmp_path / "named.csv", [ROW])
    np.testing.assert_array_equal(x, [[1, 2, 3]])
    assert y is not None
    np.testing.assert_array_equal(y, np.int64([7]))


def test_a_row_takes_the_models_shape(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(",".join(map(str, range(8))))
    assert read_features(tmp_path / "d.csv", [GREY]).x.shape == (1, 4, 2, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        ("1,2\n", "a row has 2 features, but the model takes 3"),
        ("1,2,3\n1,2\n", r"row 2 \(line 2\) has 2 cells, not 3"),
        ("a,b,c\n1,2,x\n", r"column 'c', row 1 \(line 2\): 'x' is not a number\. Correct the cell: the model takes"),
    ],
)
def test_tables_that_do_not_fit(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_features(tmp_path / "d.csv", [ROW])


@given(st.text(max_size=60))
def test_any_table_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(text.encode("utf-8", "replace"))
    with contextlib.suppress(DataError):
        assert read_features(path, [ROW]).x.shape[1:] == (3,)


def test_an_unsupported_format(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"the file has an unsupported format\. Use one of \.npz, \.npy, \.csv, \.tsv, \.parquet, \.png"
    ):
        read_features(tmp_path / "d.doc", [ROW])
