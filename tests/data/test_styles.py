"""Decimal commas and dates of other countries are read where the whole column agrees, and only there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.data.cells import fits, parse_cells, read_cells
from fedpipe.data.schema import Kind, Style
from fedpipe.errors import DataError

NAN = float("nan")
DAY = 19723  # 2024-01-01 in days since 1970-01-01


@pytest.mark.parametrize(
    ("kind", "cells", "style", "values"),
    [
        ("number", ["61,5", "", "-2", "+0,25", "1,5e2", " 7,0 "], "decimal comma", [61.5, NAN, -2, 0.25, 150, 7]),
        ("number", ["1.234,5", "1.234", "12.345.678"], "decimal comma", [1234.5, 1234, 12345678]),
        ("number", ["1,234", "1,5"], "decimal comma", [1.234, 1.5]),
        ("number", ["0,125"], "decimal comma", [0.125]),
        ("number", ["1234,567"], "decimal comma", [1234.567]),
        ("number", [None, "2,5", 3], "decimal comma", [NAN, 2.5, 3]),
        ("number", ["1.5", "2"], "", [1.5, 2]),
        ("date", ["31.12.2023", "NA", "1.1.2024"], "day first", [DAY - 1, NAN, DAY]),
        ("date", ["01.02.2024"], "day first", [DAY + 31]),
        ("date", ["02.01.2024 06:00"], "day first", [DAY + 1.25]),
        ("date", ["31/12/2023", "01/02/2024"], "day first", [DAY - 1, DAY + 31]),
        ("date", ["12-31-2023", "1-2-2024"], "month first", [DAY - 1, DAY + 1]),
        ("date", ["2024-01-01"], "", [DAY]),
    ],
)
def test_columns_that_agree(kind: Kind, cells: list[Any], style: Style, values: list[float]) -> None:
    read = read_cells(kind, cells, where="d.csv")
    assert read.style == style
    np.testing.assert_allclose(read.values, values)
    assert fits(kind, cells)


@pytest.mark.parametrize(
    ("kind", "cells", "message"),
    [
        ("number", ["1,234", "5,678"], "row 1: '1,234' is not a number. Write thousands without a separator"),
        ("number", ["1", "1,234,567"], "row 2: '1,234,567' is not a number. Write thousands"),
        ("number", ["2,5", "1.5"], "row 1: '2,5' is not a number. Write decimals with a point"),
        ("number", ["2,5", "1.234"], "row 1: '2,5' is not a number. Write decimals with a point"),
        ("number", ["2,5", "many"], "row 1: '2,5' is not a number"),
        ("number", ["2,5", "1.23,4"], "row 1: '2,5' is not a number"),
        (
            "date",
            ["01/02/2024", "03/04/2024"],
            "row 1: '01/02/2024' is not a date. Write dates as YYYY-MM-DD: this col",
        ),
        ("date", ["31/12/2023", "12/31/2023"], "row 1: '31/12/2023' is not a date"),
        ("date", ["31.12.2023", "30/12/2023"], "row 1: '31.12.2023' is not a date"),
        ("date", ["31.12.2023", "2024-01-01"], "row 1: '31.12.2023' is not a date"),
        ("date", ["12.31.2023"], "row 1: '12.31.2023' is not a date"),
        ("date", ["1.12.2023", "31.2.2023"], "row 2: '31.2.2023' is not a date, because day is out of range"),
        ("date", ["31.12.2023 25:00"], "row 1: '31.12.2023 25:00' is not a date, because hour must be in 0..23"),
    ],
)
def test_columns_that_can_be_read_in_several_ways_are_named(kind: Kind, cells: list[Any], message: str) -> None:
    with pytest.raises(DataError) as raised:
        parse_cells(kind, cells, where="d.csv")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "cells", "known", "values"),
    [
        ("number", ["1,234"], "decimal comma", [1.234]),
        ("number", ["61.5", "1.234"], "decimal comma", [61.5, 1.234]),
        ("number", ["7"], "decimal comma", [7]),
        ("date", ["01/02/2024"], "day first", [DAY + 31]),
        ("date", ["01/02/2024"], "month first", [DAY + 1]),
        ("date", ["2024-01-01"], "day first", [DAY]),
        ("date", ["13/01/2024"], "month first", [DAY + 12]),
    ],
)
def test_the_style_of_the_training_decides(kind: Kind, cells: list[str], known: Style, values: list[float]) -> None:
    np.testing.assert_allclose(parse_cells(kind, cells, where="d.csv", style=known), values)


def test_thousands_and_decimals_are_not_confused() -> None:
    """A model of a column with decimal commas does not take 1.234, which is 1234 there, for 1.234."""
    with pytest.raises(DataError, match=r"'1\.234' may have thousands or decimals"):
        parse_cells("number", ["12", "1.234"], where="d.csv", style="decimal comma")


@given(st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 4)), min_size=1))
def test_decimal_commas_mean_what_points_mean(numbers: list[float]) -> None:
    texts = [f"{number:f}" for number in numbers]
    found = parse_cells("number", [text.replace(".", ",") for text in texts], where="d.csv")
    np.testing.assert_array_equal(found, parse_cells("number", texts, where="d.csv"))


@given(st.lists(st.dates().filter(lambda day: day.year > 999), min_size=1))
def test_dates_with_dots_mean_what_iso_dates_mean(days: list[Any]) -> None:
    found = parse_cells("date", [f"{day.day}.{day.month}.{day.year}" for day in days], where="d.csv")
    np.testing.assert_array_equal(found, parse_cells("date", days, where="d.csv"))
