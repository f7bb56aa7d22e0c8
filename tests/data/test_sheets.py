from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from fedpipe.data.sheets import Sheet, read_sheet
from fedpipe.errors import DataError


def read(folder: Path, text: str | bytes, known: tuple[str, ...] = (), header: bool | None = None) -> Sheet:
    path = folder / "d.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_sheet(path, known=known, header=header)


TEN = "0,1,2,3,4,5,6,7,8,9"
TWO = "a,b\n1,x\n2,y\n"


@pytest.mark.parametrize(
    "text",
    [
        TWO, TWO.replace("\n", "\r\n"), TWO.replace("\n", "\r"), TWO.rstrip("\n"), "\n" + TWO.replace("\n", "\n\n"),
        TWO.replace(",", ";"), TWO.replace(",", "\t"), TWO.replace(",", "|"), TWO.replace(",", " , "),
        TWO.replace("\n", ",\n"), "a,b\n1,x,\n2,y,\n", '"a","b"\n"1","x"\n"2","y"\n',
        TWO.encode("utf-8-sig"), TWO.encode("utf-16"), b"\xfe\xff" + TWO.encode("utf-16-be"),
        "# written by R\n#\n" + TWO, "sep=;\n" + TWO.replace(",", ";"), ("sep=,\n" + TWO).encode("utf-8-sig"),
    ],
)  # fmt: skip
def test_the_same_table_in_many_forms(text: str | bytes, tmp_path: Path) -> None:
    sheet = read(tmp_path, text)
    assert sheet.names == ("a", "b")
    np.testing.assert_array_equal(sheet.parse("a", "number"), [1, 2])
    assert sheet.parse("b", "category").tolist() == ["x", "y"]


@pytest.mark.parametrize("text", ["1,2\n3,4\n", "1;2\n3;4\n", "1,2,\n3,4,\n", "# drawn twice\n1,2\n3,4\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_table_without_a_header_keeps_its_first_row(text: str, mark: bytes, tmp_path: Path) -> None:
    sheet = read(tmp_path, mark + text.encode())
    assert sheet.names == ()
    assert [list(cells) for cells in sheet.columns] == [["1", "3"], ["2", "4"]]


@pytest.mark.parametrize(
    ("text", "known", "header", "named"),
    [
        ("1,,NA,2024-01-31,true\n", (), None, False),
        ("1,x\n2,y\n", (), None, True),
        ("1,x\n2,y\n", (), False, False),
        ("0,1\n5,6\n", ("0", "1"), None, True),
        ("0,1\n5,6\n", ("a", "b"), True, True),
        ("0,1\n", (), None, False),
        ("a,0,1\n7,5,6\n", (), None, True),
        ("0,1,2\n5,6,7\n", (), None, False),
        (f"{TEN}\n", (), None, False),
        ("# a,b\n1,3\n2,4\n", (), None, True),
        ("# a,b\n1,x\n2,y\n", ("b",), None, True),
    ],
)
def test_whether_the_first_row_is_a_header(
    text: str, known: tuple[str, ...], header: bool | None, named: bool, tmp_path: Path
) -> None:
    assert bool(read(tmp_path, text, known, header).names) is named


def test_cells_keep_separators_and_line_breaks_in_quotes(tmp_path: Path) -> None:
    sheet = read(tmp_path, 'a,b\n"1, or\n2","say ""x"""\n3,y\n')
    assert list(sheet.cells("a")) == ["1, or\n2", "3"]
    assert list(sheet.cells("b")) == ['say "x"', "y"]
    assert list(sheet.lines or ()) == [2, 4]
    with pytest.raises(DataError, match=r"d\.csv: column 'b', row 2 \(line 4\): 'y' is not a number"):
        read(tmp_path, 'a,b\n"1, or\n2",3\n3,y\n').parse("b", "number")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        ("\n\n", "the table is empty"),
        ("a,b\n", "has a header, a, b, but no rows. Add rows"),
        ("1,2\n3\n", r"row 2 \(line 2\) has 1 cells, not 2 as the first row has"),
        ("a,b\n1,2\n\n3,4,5\n", r"row 2 \(line 4\) has 3 cells, not 2 as the header has"),
        ("a,b,a\n1,2,3\n", "names more than once: 'a'. Give each column a name"),
        ("a,b\n1,caf\xe9\n".encode("latin-1"), "line 2 is not text in UTF-8, because of the byte 0xe9. Save the file"),
        ("a,b\n1,2\n".encode("utf-16-le"), "line 1 contains a zero byte"),
        ('a,b\n1,2\n3,"4\n5,6\n', "the row that begins at line 3 cannot be read, because unexpected end of data"),
        ('a,b\n1,"2"x\n', "the row that begins at line 2 cannot be read"),
        (f"{TEN}\n{TEN}\n", r"the first row, 0, 1, 2\.\.\., may be a header or an example. Choose with --header"),
        (f",{TEN}\n7,{TEN}\n", "may be a header or an example"),
        ("1,2,3,4,5,6,7,8,9,10\n1,1,1,1,1,1,1,1,1,1\n", "may be a header or an example"),
    ],
)  # fmt: skip
def test_tables_that_are_refused(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as raised:
        read(tmp_path, text)
    assert raised.value.remedy


def test_there_is_no_such_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no column 'c'\. Its columns are a, b"):
        read(tmp_path, TWO).cells("c")


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    with contextlib.suppress(DataError):
        sheet = read(tmp_path_factory.getbasetemp(), data)
        assert {len(cells) for cells in sheet.columns} == {sheet.rows}


def test_parquet_gives_typed_cells_without_the_index_of_pandas(tmp_path: Path) -> None:
    columns = {
        "a": pa.array([1, None, 3]), " b ": pa.array([0.5, float("nan"), None]), "c": pa.array([True, None, False]),
        "d": pa.array(["x", None, "y"]).dictionary_encode(), "e": pa.array([2, None, 0], pa.date32()),
        "f": pa.array([0, 86_400_000_000, None], pa.timestamp("us")), "__index_level_0__": pa.array([7, 8, 9]),
    }  # fmt: skip
    parquet.write_table(pa.table(columns), tmp_path / "d.parquet")
    sheet = read_sheet(tmp_path / "d.parquet")
    assert sheet.names == ("a", "b", "c", "d", "e", "f")
    np.testing.assert_array_equal(sheet.parse("a", "number"), [1, np.nan, 3])
    np.testing.assert_array_equal(sheet.parse("b", "number"), [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(sheet.parse("c", "boolean"), [1, np.nan, 0])
    assert sheet.parse("d", "category").tolist() == ["x", "", "y"]
    assert sheet.parse("a", "category").tolist() == ["1", "", "3"]
    np.testing.assert_array_equal(sheet.parse("e", "date"), [2, np.nan, 0])
    np.testing.assert_array_equal(sheet.parse("f", "date"), [0, 1, np.nan])
    with pytest.raises(DataError, match=r"column 'd', row 1: 'x' is not a number"):
        sheet.parse("d", "number")


def test_parquet_files_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="the Parquet file cannot be read, because"):
        read_sheet(tmp_path / "d.parquet")
    with pytest.raises(DataError, match="there is no such file"):
        read_sheet(tmp_path / "absent.parquet")
    parquet.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="the table is empty"):
        read_sheet(tmp_path / "d.parquet")
    parquet.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([1])], ["a", "a"]), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="more than once: 'a'"):
        read_sheet(tmp_path / "d.parquet")


def test_names_and_categories_from_word_processors_are_plain_text(tmp_path: Path) -> None:
    """No-break spaces, line breaks and zero-width spaces do not cost a learner its statistics."""
    sheet = read(tmp_path, '"height\u00a0(cm)","a\nb\u200b"\n1,"not\u00a0known"\n2,"two\nlines"\n')
    assert sheet.names == ("height (cm)", "a b")
    assert sheet.parse("a b", "category").tolist() == ["not known", "two lines"]
    parquet.write_table(pa.table({"height\u00a0(cm)": [1.0], "c\td": ["x\u00ady"]}), tmp_path / "d.parquet")
    sheet = read_sheet(tmp_path / "d.parquet")
    assert sheet.names == ("height (cm)", "c d")
    assert sheet.parse("c d", "category").tolist() == ["x y"]
    assert sheet.parse("c d", "text").tolist() == ["x\u00ady"]  # a text stays as it is


TIMES: dict[str, tuple[pa.Array, list[float]]] = {
    **{
        f"a moment in {unit}": (
            pa.array([0, None, 43_200 * factor + (unit == "ns")], pa.timestamp(unit)),
            [0, np.nan, 0.5],
        )
        for unit, factor in {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}.items()
    },
    "with a zone": (pa.array([86_400_000_000_001], pa.timestamp("ns", "Asia/Tokyo")), [1]),
    "days": (pa.array([-719_162, 2_932_896], pa.int32()).cast(pa.date32()), [-719_162, 2_932_896]),
    "the last moment": (pa.array([253_402_300_799], pa.timestamp("s")), [2_932_897 - 1 / 86_400]),
}


@pytest.mark.parametrize(("column", "days"), TIMES.values(), ids=TIMES.keys())
def test_times_of_every_precision(column: pa.Array, days: list[float], tmp_path: Path) -> None:
    """pandas writes nanoseconds, which Python's own times do not have."""
    parquet.write_table(pa.table({"a": column}), tmp_path / "d.parquet")
    sheet = read_sheet(tmp_path / "d.parquet")
    np.testing.assert_allclose(sheet.parse("a", "date"), days, rtol=1e-15)
    assert sheet.parse("a", "category")[0] == str(sheet.cells("a")[0].isoformat())


LATIN = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xe9"))
UNREADABLE: dict[str, tuple[pa.Array, str]] = {
    "a moment too late": (pa.array([0, None, 253_402_300_800], pa.timestamp("s")), "row 3: the date is not between"),
    "a moment too early": (pa.array([-(2**60)], pa.timestamp("us")), "row 1: the date is not between the years 1 and"),
    "a day too late": (pa.array([2_932_897], pa.int32()).cast(pa.date32()), "row 1: the date is not between"),
    "times of the day": (pa.array([1, 2], pa.time64("ns")), "has the type time, not a date"),
    "durations": (pa.array([1, 2], pa.duration("ns")), "has the type timedelta, not a date"),
    "text in Latin-1": (LATIN, "a cell cannot be read, because 'utf-8' codec.* Convert the column"),
}


@pytest.mark.parametrize(("column", "message"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_cells_that_python_cannot_hold(column: pa.Array, message: str, tmp_path: Path) -> None:
    """Other columns can be read: a table often has some that nobody uses."""
    parquet.write_table(pa.table({"a": column, "b": range(len(column))}), tmp_path / "d.parquet")
    sheet = read_sheet(tmp_path / "d.parquet")
    assert sheet.parse("b", "number").tolist() == list(range(len(column)))
    with pytest.raises(DataError, match=f"d.parquet: column 'a'.*{message}"):
        sheet.parse("a", "date")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1\x15\x04", "is a Parquet file, whatever its name says. Rename it to .parquet"),
        (b"PK\x03\x04\x14\x00", "is a zip file, as .xlsx, .ods and .npz are, .* Save the sheet as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1", "is an Excel file, .* Save the sheet as CSV"),
        (b"\x1f\x8b\x08\x00", "is a packed file, .* Unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS, .* `git lfs pull`"),
        (b"<!DOCTYPE html>\n<html>", "is a web page, .* Download the table itself"),
        (b'{"a": [1, 2]}', "is a JSON file, .* Save its rows as CSV"),
        (b'[{"a": 1}]', "is a JSON file, .* Save its rows as CSV"),
        (b'[\n  {"a": 1}\n]', "is a JSON file, .* Save its rows as CSV"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_files_of_another_format_than_their_name_says(
    content: bytes, message: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"d{suffix}"
    path.write_bytes(content)
    if content.startswith(b"PAR1") and suffix == ".parquet":
        message = "Parquet file size is 6 bytes"
    with pytest.raises(DataError, match=f"d{suffix}: the .*{message}"):
        read_sheet(path)
