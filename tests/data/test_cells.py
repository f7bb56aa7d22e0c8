from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.data.cells import MISSING, fits, parse_cells
from fedpipe.data.schema import NUMERIC, Kind
from fedpipe.errors import DataError

NAN = float("nan")


@pytest.mark.parametrize(
    ("kind", "cells", "values"),
    [
        ("number", ["63", " 7.5 ", "1e3", "-.5", 3, True, Decimal("2.5"), np.float32(1.5)],
         [63, 7.5, 1000, -0.5, 3, 1, 2.5, 1.5]),
        ("number", [*MISSING, None, NAN, np.float32("nan"), Decimal("sNaN")], [NAN] * (len(MISSING) + 4)),
        ("boolean", ["true", "Yes", "T", "1", True, np.bool_(True), 1.0], [1] * 7),
        ("boolean", ["FALSE", "no", " f", "0", False, np.bool_(False), 0], [0] * 7),
        ("boolean", ["", None, "NA"], [NAN] * 3),
        ("date", ["1970-01-03", "1969-12-31", "1970-01-02T12:00", "1970-01-02 12:00:00+02:00", "1970-01-02T00:00:00Z"],
         [2, -1, 1.5, 1 + 10 / 24, 1]),
        ("date", [date(1970, 1, 3), datetime(1970, 1, 2, 12), np.datetime64("1970-01-03"), np.datetime64("NaT"), None],
         [2, 1.5, 2, NAN, NAN]),
    ],
)  # fmt: skip
def test_cells_that_become_numbers(kind: Kind, cells: list[Any], values: list[float]) -> None:
    found = parse_cells(kind, cells, where="d.csv")
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, values)


def test_cells_that_become_strings() -> None:
    categories = parse_cells("category", ["f", " m ", "?", None, NAN, 2, 2.0, "2.0", True, b"x", "1.05"], where="")
    assert categories.dtype == object
    assert categories.tolist() == ["f", "m", "", "", "", "2", "2", "2", "True", "x", "1.05"]
    assert parse_cells("text", [" as it is ", "2.0", "null"], where="").tolist() == [" as it is ", "2.0", ""]


@pytest.mark.parametrize(
    ("kind", "cell", "what", "remedy"),
    [
        ("number", "abc", "'abc' is not a number", "declare the column as category"),
        ("number", "1,234", "'1,234' is not a number", "thousands without a separator, and decimals with a point"),
        ("number", "1 234", "'1 234' is not a number", "Write thousands without a separator"),
        ("number", "1_000", "'1_000' is not a number", "Correct the cell"),
        ("number", "12%", "'12%' is not a number", "without the sign %"),
        ("number", "70 kg", "'70 kg' is not a number", "without a unit"),
        ("number", "yes", "'yes' is not a number", "Declare the column as boolean"),
        ("number", "2024-01-31", "is not a number", "Declare the column as date"),
        ("number", "1e400", "'1e400' is too large for a number", "leave it empty"),
        ("number", 10**400, "is too large for a number", "leave it empty"),
        pytest.param("number", 10**5000, "type int is too large for a number", "leave it empty", id="digits"),
        ("number", "-inf", "'-inf' is infinite", "leave it empty"),
        ("number", [1], "has the type list, not a number", "Convert the column"),
        ("boolean", "maybe", "'maybe' is not a boolean", "Use true and false"),
        ("boolean", 2, "2 is not a boolean", "Use true and false"),
        ("date", "03/04/2024", "'03/04/2024' is not a date", "does not show whether the day or the month is first"),
        ("date", "31.02.2024", "'31.02.2024' is not a date, because day is out of range", "Correct the date"),
        ("date", "2024-02-30", "because day is out of range", "Correct the date"),
        ("date", 5, "has the type int, not a date", "YYYY-MM-DD"),
        ("text", [1], "has the type list, not text", "Convert the column"),
        ("category", b"\xff", "is not text in UTF-8", "Encode texts in UTF-8"),
    ],
)
def test_a_cell_of_another_kind_is_named_with_a_remedy(kind: Kind, cell: Any, what: str, remedy: str) -> None:
    with pytest.raises(DataError) as raised:
        parse_cells(kind, ["", cell], where="d.csv", column="age", lines=[2, 5])
    assert raised.value.where == "d.csv: column 'age', row 2 (line 5)"
    assert what in raised.value.what
    assert remedy in (raised.value.remedy or "")
    assert not fits(kind, [cell])


@given(st.text(max_size=20), st.sampled_from(["number", "boolean", "date", "category", "text"]))
def test_any_text_is_parsed_or_refused(text: str, kind: Kind) -> None:
    if fits(kind, [text]):
        value = parse_cells(kind, [text], where="")[0]
        assert isinstance(value, float) and not np.isinf(value) if kind in NUMERIC else isinstance(value, str)
