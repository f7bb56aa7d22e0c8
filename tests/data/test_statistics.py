"""Statistics of several parts against NumPy on their union, and reports that contradict themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fedpipe.data.schema import Column
from fedpipe.data.statistics import (
    ColumnReport,
    Numbers,
    Report,
    flaw_of,
    merged,
    numbers_of,
    quantile,
    report_of,
    summary_of,
)
from fedpipe.federation.data import StatisticsSettings

OPEN = StatisticsSettings(floor=1, rare=1)
VALUES = st.floats(-1e12, 1e12, allow_nan=False) | st.sampled_from([0.0, 1e12, 1e12 + 1, -1e-9])


@st.composite
def splits(draw: Any) -> list[np.ndarray[Any, Any]]:
    """Values, cut into parts at any places."""
    values = np.array(draw(st.lists(VALUES, min_size=1, max_size=200)))
    cuts = draw(st.lists(st.integers(0, len(values)), max_size=5).map(sorted))
    return [part for part in np.split(values, cuts) if len(part)]


@given(splits())
def test_any_split_has_the_moments_of_the_union(parts: list[np.ndarray[Any, Any]]) -> None:
    whole = np.concatenate(parts)
    found = merged([numbers for part in parts if (numbers := numbers_of(part, OPEN))])
    assert found.count == len(whole)
    assert (found.minimum, found.maximum) == (whole.min(), whole.max())
    scale = np.abs(whole).max() or 1.0
    assert found.mean == pytest.approx(whole.mean(), abs=1e-9 * scale)
    assert found.deviation == pytest.approx(whole.std(), abs=1e-7 * scale)


def test_a_small_deviation_far_from_zero_survives() -> None:
    """Sums of squares would lose it: 1e9 squared has no digits left for 1."""
    values = 1e9 + np.random.default_rng(0).standard_normal(1000)
    found = merged([numbers for part in np.split(values, 4) if (numbers := numbers_of(part, OPEN))])
    assert found.deviation == pytest.approx(values.std(), rel=1e-6)


@given(splits(), st.floats(0, 1))
def test_the_rank_of_a_quantile_is_wrong_by_at_most_one_bin_of_each_part(
    parts: list[np.ndarray[Any, Any]], share: float
) -> None:
    whole = np.sort(np.concatenate(parts))
    numbers = [numbers for part in parts if (numbers := numbers_of(part, StatisticsSettings(floor=1, rare=3)))]
    found = quantile(numbers, share)
    allowed = sum(
        max((n for low, high, n in zip(p.bounds, p.bounds[1:], p.counts, strict=False) if low <= found <= high), default=0)
        for p in numbers
    ) + 1e-6 * len(whole) + 1  # fmt: skip
    below, upto = np.searchsorted(whole, found, "left"), np.searchsorted(whole, found, "right")
    assert below - allowed <= share * len(whole) <= upto + allowed


def test_quantiles_of_many_values_are_close() -> None:
    generator = np.random.default_rng(1)
    parts = [generator.normal(k, 1 + k, 1000) for k in range(4)]
    numbers = [n for part in parts if (n := numbers_of(part, StatisticsSettings()))]
    whole = np.sort(np.concatenate(parts))
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        rank = np.searchsorted(whole, quantile(numbers, share)) / len(whole)
        assert abs(rank - share) < 1 / 64


def table(count: int) -> tuple[Any, Any, tuple[Column, ...]]:
    columns = (Column(name="age", kind="number"), Column(name="sex", kind="category"))
    ages = np.arange(count, dtype=np.float32)
    ages[0] = np.nan
    sexes = np.array(["f", "m"] * (count // 2), object)
    sexes[:2] = ["", "x"]
    x = {"numbers": ages[:, None], "categories": sexes[:, None]}
    return x, np.array(["a", "b"] * (count // 2), object), columns


def test_a_report_says_what_it_may_and_no_more() -> None:
    x, y, columns = table(20)
    report = report_of("h", x, y, columns, StatisticsSettings(floor=10, rare=3))
    assert (report.examples, report.labels, report.classes) == (20, "names", {"a": 10, "b": 10})
    age, sex = report.columns
    assert age.numbers is not None
    assert (age.missing, age.numbers.count, age.numbers.mean, age.numbers.maximum) == (1, 19, 10.0, 19.0)
    assert min(age.numbers.counts) >= 3
    assert (sex.missing, sex.categories) == (1, {"f": 9, "m": 9})  # "x" occurs once, so it is not disclosed
    assert flaw_of(report) == ""


def test_below_the_floor_and_with_privacy_nothing_leaves() -> None:
    x, y, columns = table(8)
    small = report_of("h", x, y, columns, StatisticsSettings(floor=10))
    assert small == Report(learner="h", why="it has fewer train examples than data.statistics.floor, which is 10")
    x, y, columns = table(20)
    private = report_of("h", x, y, columns, StatisticsSettings(), private=True)
    assert (private.examples, private.columns, private.classes) == (0, (), {})
    assert "differential privacy" in private.why


def test_a_column_of_few_values_is_withheld() -> None:
    columns = (Column(name="age", kind="number"),)
    ages = np.full((20, 1), np.nan, np.float32)
    ages[:5] = 1
    report = report_of("h", ages, np.zeros(20, np.int64), columns, StatisticsSettings(floor=10))
    assert report.columns == (ColumnReport(name="age", kind="number", missing=15),)


def test_summaries_do_not_depend_on_order() -> None:
    reports = []
    for seed in range(3):
        values = np.random.default_rng(seed).normal(seed, 1, 50)
        reports.append(ColumnReport(name="a", kind="number", missing=seed, numbers=numbers_of(values, OPEN)))
    forth, back = summary_of(reports), summary_of(reports[::-1])
    assert (forth.missing, back.missing) == (3, 3)
    assert forth.numbers is not None
    assert back.numbers is not None
    assert forth.numbers.mean == pytest.approx(back.numbers.mean, rel=1e-12)
    assert forth.quantiles == pytest.approx(back.quantiles, rel=1e-9)


GOOD = Numbers(count=4, mean=2.5, squares=5.0, minimum=1.0, maximum=4.0, bounds=(1.0, 2.5, 4.0), counts=(2, 2))
FLAWS = {
    "infinite": replace(GOOD, maximum=float("inf")),
    "nan": replace(GOOD, mean=float("nan")),
    "mean": replace(GOOD, mean=9.0),
    "variance": replace(GOOD, squares=100.0),
    "negative": replace(GOOD, squares=-1.0),
    "count": replace(GOOD, count=50),
    "bins": replace(GOOD, counts=(2, 3)),
    "bounds": replace(GOOD, bounds=(1.0, 5.0, 4.0)),
    "range": replace(GOOD, bounds=(0.0, 2.5, 4.0)),
    "huge": replace(GOOD, mean=1e300, minimum=-1e301, maximum=1e301),
}


@pytest.mark.parametrize("name", FLAWS)
def test_flaws_of_numbers(name: str) -> None:
    def reported(numbers: Numbers) -> Report:
        column = ColumnReport(name="age", kind="number", missing=0, numbers=numbers)
        return Report(learner="h", examples=10, columns=(column,))

    assert flaw_of(reported(GOOD)) == ""
    assert flaw_of(reported(FLAWS[name])).startswith("the column 'age' has")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (ColumnReport(name="a", kind="number", missing=11), "misses more values"),
        (ColumnReport(name="a", kind="category", missing=9, categories={"x": 2}), "counts exceed"),
        (ColumnReport(name="a", kind="category", missing=0, categories={"\x1b[2J": 2}), "not text"),
        (ColumnReport(name="a\n", kind="number", missing=0), "control characters"),
        (ColumnReport(name="a", kind="text", missing=0, numbers=GOOD), "not number-like"),
    ],
)
def test_other_flaws(column: ColumnReport, message: str) -> None:
    assert message in flaw_of(Report(learner="h", examples=10, columns=(column,)))


def test_flaws_of_a_whole_report() -> None:
    column = ColumnReport(name="a", kind="number", missing=0)
    assert "same name" in flaw_of(Report(learner="h", examples=10, columns=(column, column)))
    assert "no columns" in flaw_of(Report(learner="h", examples=10))
    assert "labels" in flaw_of(Report(learner="h", examples=3, columns=(column,), classes={"x": 4}))
