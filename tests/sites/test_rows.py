"""The part of a site's data that its policy allows, and nothing else, is there for the process that trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpipe.codec import converted
from fedpipe.data.tables import read_columns
from fedpipe.errors import DataError
from fedpipe.sites.policy import Policy
from fedpipe.sites.rows import narrowed

ROWS = [("61", "f", "yes", "4711", "1"), ("17", "m", "yes", "4712", "0"), ("45", "m", "no", "4713", "1"),
        ("", "f", "yes", "4714", "0"), ("70", "", "yes", "4715", "1")]  # fmt: skip
NAMES = ("age", "sex", "consent", "patient", "outcome")


def write(path: Path) -> Path:
    columns = {name: [row[place] for row in ROWS] for place, name in enumerate(NAMES)}
    if path.suffix in (".csv", ".tsv"):
        separator = "\t" if path.suffix == ".tsv" else ","
        path.write_text("\n".join(separator.join(row) for row in (NAMES, *ROWS)) + "\n")
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        table = {**columns, "age": [float(age) if age else None for age in columns["age"]]}
        parquet.write_table(pyarrow.table(table), path)
    else:
        ages = [float(age or "nan") for age in columns["age"]]
        others = {name: np.array(values) for name, values in columns.items() if name != "age"}
        np.savez(path, age=ages, picture=np.arange(20).reshape(5, 2, 2), **others)
    return path


def policy(path: Path, **more: Any) -> Policy:
    return converted({"data": str(path), **more}, Policy)


@pytest.fixture(params=[".csv", ".tsv", ".parquet", ".npz"])
def data(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return write(tmp_path / f"patients{request.param}")


ALLOWED = {"age": "number", "outcome": "category"}


def read(path: Path) -> dict[str, list[Any]]:
    sheet = read_columns(path, known=NAMES)
    return {name: [str(value) for value in sheet.cells(name)] for name in sheet.names}


def test_other_columns_and_rows_are_not_there(data: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    rows = {"consent": {"one_of": ["yes"]}, "age": {"at_least": 18}}
    made = narrowed(policy(data, columns=ALLOWED, rows=rows), tmp_path / "scratch")
    assert made.rows == 2
    assert made.path == str(tmp_path / "scratch" / data.name)
    found = read(Path(made.path))
    assert sorted(found) == ["age", "outcome"]
    assert [float(age) for age in found["age"]] == [61, 70]
    assert found["outcome"] == ["1", "1"]
    assert b"4711" not in Path(made.path).read_bytes()


def test_without_limits_the_data_are_not_copied(data: Path, tmp_path: Path) -> None:
    if data.suffix == ".npz":
        return
    assert narrowed(policy(data), tmp_path) == (str(data), 5)


def test_an_array_of_pictures_is_filtered_with_the_others(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    path = write(tmp_path / "x.npz")
    given = policy(path, columns={"picture": "number", "outcome": "category"}, rows={"age": {"at_most": 50}})
    made = narrowed(given, tmp_path / "scratch")
    with np.load(made.path) as file:
        assert sorted(file.files) == ["outcome", "picture"]
        assert file["picture"].tolist() == np.arange(20).reshape(5, 2, 2)[[1, 2]].tolist()


def test_a_column_that_is_missing(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no column 'ages', which the policy names\. Did you mean 'age'\?"):
        narrowed(policy(data, columns={"ages": "number"}), tmp_path)
    with pytest.raises(DataError, match="there is no column 'consnt'"):
        narrowed(policy(data, rows={"consnt": {"one_of": ["yes"]}}), tmp_path)


def test_a_column_of_another_kind(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'sex'.*'f'|'f'.*'sex'"):
        narrowed(policy(data, columns={"sex": "number"}), tmp_path)


def test_too_few_rows(data: Path, tmp_path: Path) -> None:
    given = policy(data, rows={"consent": {"one_of": ["no"]}}, least_examples=2)
    with pytest.raises(
        DataError, match=r"there are 1 rows that the policy allows, and it needs 2\. Add data, or lower"
    ):
        narrowed(given, tmp_path)


def test_formats_without_columns(tmp_path: Path) -> None:
    (tmp_path / "images.h5").write_bytes(b"x")
    assert narrowed(policy(tmp_path / "images.h5"), tmp_path).rows is None
    with pytest.raises(DataError, match="columns, rows and least_examples need a file of this machine"):
        narrowed(policy(tmp_path / "images.h5", least_examples=1), tmp_path)
