"""Tables as files: kinds, guesses, and the message of each mistake."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fedpipe.data.examples import Examples, read_examples
from fedpipe.data.parts import dump_examples, load_examples
from fedpipe.data.schema import Column
from fedpipe.data.tables import Table, arranged, read_table, table_of
from fedpipe.errors import DataError

CSV = """age,sex,smokes,born,note,diagnosis
63,f,yes,1961-02-03,first visit,malignant
,m,no,1970-01-03,,benign
41.5,,NA,,?,benign
"""
KINDS = {"born": "date", "age": "number", "sex": "category", "smokes": "boolean", "note": "text"}


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "patients.csv"
    path.write_text(CSV)
    return path


def parquet_of(path: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def test_declared_kinds_in_the_order_of_the_file(csv: Path) -> None:
    table = read_table(csv, KINDS, "diagnosis")  # type: ignore[arg-type]
    assert [column.name for column in table.columns] == ["age", "sex", "smokes", "born", "note"]
    assert isinstance(table.x, dict)
    numbers = [[63, 1, -3254], [np.nan, 0, 2], [41.5, np.nan, np.nan]]  # 1961-02-03 is 3254 days before 1970
    np.testing.assert_array_equal(table.x["numbers"], np.array(numbers, np.float32))
    assert table.x["numbers"].dtype == np.float32
    assert table.x["categories"].tolist() == [["f"], ["m"], [""]]
    assert table.x["texts"].tolist() == [["first visit"], [""], [""]]
    assert table.y.tolist() == ["malignant", "benign", "benign"]


def test_numbers_alone_form_one_matrix(csv: Path) -> None:
    table = read_table(csv, {"age": "number", "born": "date"}, "diagnosis")
    assert isinstance(table.x, np.ndarray)
    assert table.x.shape == (3, 2)


def test_the_same_table_from_csv_parquet_and_npz(tmp_path: Path) -> None:
    """Four of the kinds; .npz has no missing values but NaN, and "" for strings."""
    (tmp_path / "d.csv").write_text("age,sex,ok,born,y\n1.5,f,true,1970-01-02,0\n,m,false,1970-01-03,1\n")
    parquet_of(
        tmp_path / "d.parquet", age=[1.5, None], sex=pa.array(["f", "m"]).dictionary_encode(), ok=[True, False],
        born=[datetime.date(1970, 1, 2), datetime.date(1970, 1, 3)], y=[0, 1],
    )  # fmt: skip
    np.savez(
        tmp_path / "d.npz", age=[1.5, np.nan], sex=["f", "m"], ok=[True, False],
        born=np.array(["1970-01-02", "1970-01-03"], "datetime64[D]"), y=[0, 1],
    )  # fmt: skip
    tables = [read_table(tmp_path / f"d.{suffix}", "auto", "y") for suffix in ("csv", "parquet", "npz")]
    for table in tables:
        assert [(c.name, c.kind) for c in table.columns] == [
            ("age", "number"), ("sex", "category"), ("ok", "boolean"), ("born", "date")
        ]  # fmt: skip
        assert isinstance(table.x, dict)
        np.testing.assert_array_equal(table.x["numbers"], np.array([[1.5, 1, 1], [np.nan, 0, 2]], np.float32))
        assert table.x["categories"].tolist() == [["f"], ["m"]]
        assert table.y.tolist() == [0, 1]
        assert table.y.dtype == np.int64


GUESSES = {
    "number": ["1", "", "-2.5e3"],
    "boolean": ["yes", "No", "NA"],
    "date": ["2024-01-31", "", "2024-01-31T10:00:00Z"],
    "category": ["a", "b", "a"],
    "text": [f"word {k}" for k in range(30)],
}


@pytest.mark.parametrize("kind", GUESSES)
def test_guesses(tmp_path: Path, kind: str) -> None:
    cells = GUESSES[kind]
    (tmp_path / "d.csv").write_text("c,y\n" + "".join(f"{cell},{k % 2}\n" for k, cell in enumerate(cells)))
    assert read_table(tmp_path / "d.csv", "auto", "y").columns[0].kind == kind


def test_codes_with_leading_zeros_are_categories(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("ward,y\n007,0\n008,1\n")
    table = read_table(tmp_path / "d.csv", "auto", "y")
    assert (table.columns[0].kind, table.x["categories"].tolist()) == ("category", [["007"], ["008"]])  # type: ignore


def test_whole_codes_are_the_same_category_with_and_without_missing_ones(tmp_path: Path) -> None:
    for name, codes in (("a", [1, 2]), ("b", [1.0, None])):
        parquet_of(tmp_path / f"{name}.parquet", ward=codes, y=[0, 1])
    read = [read_table(tmp_path / f"{name}.parquet", {"ward": "category"}, "y").x for name in "ab"]
    assert [x["categories"].tolist() for x in read] == [[["1"], ["2"]], [["1"], [""]]]  # type: ignore[index]


@pytest.mark.parametrize(
    ("cells", "expected", "kind"),
    [
        (["0", "1", "2"], [0, 1, 2], "i"),
        (["0.5", "1", "2"], [0.5, 1, 2], "f"),
        (["1.0", "2.0", "3.0"], [1, 2, 3], "f"),
        (["TRUE", "false", "true"], ["true", "false", "true"], "O"),
        (["b", "a", "b"], ["b", "a", "b"], "O"),
    ],
)
def test_labels(tmp_path: Path, cells: list[str], expected: list[Any], kind: str) -> None:
    (tmp_path / "d.csv").write_text("x,y\n" + "".join(f"{k},{cell}\n" for k, cell in enumerate(cells)))
    y = read_table(tmp_path / "d.csv", "auto", "y").y
    assert (y.tolist(), y.dtype.kind) == (expected, kind)


def test_ignored_columns_and_keys(tmp_path: Path) -> None:
    path = parquet_of(
        tmp_path / "d.parquet", id=[7, 8], ward=["a", "b"], age=[1, 2], y=[0, 1], __index_level_0__=[0, 1]
    )
    table = read_table(path, "auto", "y", key="ward", ignore=["id"])
    assert [column.name for column in table.columns] == ["age"]
    assert table.keys is not None
    assert table.keys.tolist() == ["a", "b"]


def test_an_owner_may_have_removed_ignored_columns(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "d.parquet", age=[1, 2], y=[0, 1])
    with pytest.raises(DataError, match="'id'"):
        read_table(path, "auto", "y", ignore=["id"])
    assert [c.name for c in read_table(path, "auto", "y", ignore=["id"], narrowed=True).columns] == ["age"]


def written(path: Path, text: str) -> Path:
    (path / "d.csv").write_text(text)
    return path / "d.csv"


MISTAKES: dict[str, tuple[Any, Any, str]] = {
    "a string in a number column": (
        lambda p: written(p, "age,y\n1,0\nold,1\n"), {"age": "number"},
        r"d.csv: column 'age', row 2 \(line 3\): 'old' is not a number. Correct",
    ),
    "a date": (
        lambda p: written(p, "born,y\n03/04/2024,0\n"), {"born": "date"},
        r"column 'born', row 1 \(line 2\): '03/04/2024' is not a date. Write dates as YYYY-MM-DD: this column does not",
    ),
    "infinity": (
        lambda p: written(p, "age,y\ninf,0\n"), {"age": "number"}, "column 'age', row 1 .*: 'inf' is infinite"
    ),
    "a label is missing": (
        lambda p: written(p, "age,y\n1,0\n2,\n"), "auto", r"column 'y', row 2 \(line 3\): the label is missing. Remove",
    ),
    "a label is infinite": (
        lambda p: parquet_of(p / "d.parquet", x=[1, 2], y=[0.0, float("inf")]), "auto",
        "column 'y', row 2: the label is infinite. Remove the row",
    ),
    "no such label": (lambda p: written(p, "age,Y\n1,0\n"), "auto", "no column 'y', which data.labels names. Did you mean 'Y'"),
    "a missing column": (
        lambda p: written(p, "age,y\n1,0\n"), {"agee": "number"},
        "d.csv: there is no column 'agee', which data.features names. Did you mean 'age'",
    ),
    "an ignored column": (lambda p: written(p, "age,y\n1,0\n"), "auto ignore=idd", "no column 'idd', which data.ignore"),
    "duplicate columns": (lambda p: written(p, "age,age,y\n1,2,0\n"), "auto", "'age'.*Give each column a name"),
    "nested": (
        lambda p: parquet_of(p / "d.parquet", v=[[1, 2], [3]], y=[0, 1]), "auto",
        "the column 'v' holds values of type list, first in row 1. Give each value a column",
    ),
    "structs": (
        lambda p: parquet_of(p / "d.parquet", v=[{"a": 1}, {"a": 2}], y=[0, 1]), {"v": "number"},
        "column 'v', row 1: .* has the type dict, not a number",
    ),
    "no rows": (lambda p: written(p, "age,y\n"), "auto", "no rows|empty|header"),
    "no rows in Parquet": (lambda p: parquet_of(p / "d.parquet", age=[], y=[]), "auto", "the table is empty. Check"),
    "only labels": (lambda p: written(p, "y\na\nb\n"), "auto", "0 columns of features"),
    "no header": (lambda p: written(p, "1,2\n3,4\n"), "auto", "no header. Add a first line"),
    "the label as a feature": (lambda p: written(p, "a,y\n1,2\n"), {"y": "number"}, "'y' is among the features. Remove"),
    "lengths": (
        lambda p: (np.savez(p / "d.npz", a=np.ones(3), y=np.ones(2)), p / "d.npz")[1], "auto",
        "the columns differ in length: 'a' has 3, 'y' has 2. Give",
    ),
    "pictures": (
        lambda p: (np.savez(p / "d.npz", a=np.ones((2, 3, 3)), y=np.ones(2)), p / "d.npz")[1], "auto",
        "the array 'a' has shape .2, 3, 3., but a column has one value per row. Set data.features to 'a'",
    ),
    "objects": (
        lambda p: (np.savez(p / "d.npz", a=np.array([None, 1], object), y=np.ones(2)), p / "d.npz")[1], "auto",
        "the array 'a' holds Python objects, which cannot be read. Save it as numbers or as text",
    ),
    "another format": (lambda p: p / "d.h5", "auto", "no columns with kinds. Use one of .csv"),
    "a null key": (
        lambda p: parquet_of(p / "d.parquet", a=[1, 2], ward=["a", None], y=[0, 1]), "auto key=ward",
        "column 'ward', row 2: the key is missing. Fill it in",
    ),
    "too large": (
        lambda p: written(p, "age,y\n1e300,0\n"), {"age": "number"}, "d.csv: column 'age', row 1: 1e.300 is too large for a model. Scale",
    ),
    "long labels": (lambda p: written(p, f"a,y\n1,{'x' * 300}\n"), "auto", "texts of up to 300 characters.*Name another"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_file_column_row_and_remedy(tmp_path: Path, name: str) -> None:
    write, features, message = MISTAKES[name]
    more: dict[str, Any] = {}
    if isinstance(features, str) and " " in features:
        features, setting = features.split()
        option, value = setting.split("=")
        more[option] = [value] if option == "ignore" else value
    with pytest.raises(DataError, match=message) as caught:
        read_examples(str(write(tmp_path)), features=features, labels="y", **more)
    assert caught.value.remedy


def test_arrays_in_columns_name_their_mistakes_too(tmp_path: Path) -> None:
    """As before tables, with `features: x`, and now from CSV."""
    lists = parquet_of(tmp_path / "l.parquet", x=[[1.0, 2.0], [3.0, 4.0]], y=[0, 1])
    examples, _ = read_examples(str(lists), features="x", labels="y")
    np.testing.assert_array_equal(examples.x, [[1, 2], [3, 4]])  # type: ignore[arg-type]
    examples, _ = read_examples(str(written(tmp_path, "a,b,y\n1,2,0\n3,4,1\n")), features="", labels="y")
    np.testing.assert_array_equal(examples.x, [[1, 2], [3, 4]])  # type: ignore[arg-type]
    ragged = parquet_of(tmp_path / "r.parquet", x=[[1.0], [3.0, 4.0]], y=[0, 1])
    with pytest.raises(DataError, match="lists of different lengths, first in row 2"):
        read_examples(str(ragged), features="x", labels="y")
    with pytest.raises(DataError, match=r"'b' has a missing value in row 1. Set data.features to auto"):
        read_examples(str(written(tmp_path, "a,b,y\n1,,0\n3,4,1\n")), features="", labels="y")
    with pytest.raises(DataError, match=r"no column 'pixel', which data.features names. Did you mean 'pixels'"):
        read_examples(str(parquet_of(tmp_path / "p.parquet", pixels=[[1.0]], y=[0])), features="pixel", labels="y")


def test_other_columns_are_arranged_by_name() -> None:
    held = (Column(name="b", kind="number"), Column(name="s", kind="category"), Column(name="a", kind="number"))
    x = {"numbers": np.array([[1, 2]], np.float32), "categories": np.array([["f"]], object)}
    wanted = (Column(name="a", kind="number"), Column(name="b", kind="boolean"))
    np.testing.assert_array_equal(arranged(x, held, wanted, "d"), [[2, 1]])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="d: there is no column 'c'"):
        arranged(x, held, (Column(name="c", kind="number"),), "d")
    coded = arranged(x, held, (Column(name="a", kind="category"),), "d")
    assert coded["categories"].tolist() == [["2"]]  # type: ignore[index]


def test_columns_travel_with_their_examples(csv: Path) -> None:
    examples, _ = read_examples(str(csv), features="auto", labels="diagnosis")
    back = load_examples(dump_examples(examples.rows(slice(0, 2))))
    assert back.columns == examples.columns
    assert isinstance(back.x, dict)
    assert back.x["categories"].tolist() == [["f", "first visit"], ["m", ""]]
    assert back.y.tolist() == ["malignant", "benign"]  # type: ignore[union-attr]
    assert isinstance(back, Examples)


def test_a_table_of_load() -> None:
    """`load` of model.py may return columns by name, with the label among them or next to them, or a DataFrame."""
    settings = {"features": "auto", "labels": "y", "ignore": (), "narrowed": False}
    columns = {"a": [1.0, np.nan], "s": ["f", "m"]}
    for loaded in ({**columns, "y": [0, 1]}, (columns, np.array([0, 1]))):
        table = table_of(loaded, settings, "load('x')")
        assert isinstance(table, Table)
        assert [column.kind for column in table.columns] == ["number", "category"]
        assert table.y.tolist() == [0, 1]
    assert table_of((np.ones((2, 2, 2)), np.ones(2)), settings, "load('x')") is None
    assert table_of({"train": (1, 2)}, settings, "load('x')") is None
