"""Settles the schema of a table from the learners' statistics, and brings examples into its form."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from msgspec.structs import replace

from fedpipe.aggregation import outliers
from fedpipe.data.cells import printable
from fedpipe.data.examples import Examples
from fedpipe.data.schema import MOST_CLASSES, NUMERIC, Column, LabelKind, Schema
from fedpipe.data.statistics import ColumnReport, ColumnSummary, Numbers, Report, flaw_of, merged, summary_of
from fedpipe.data.tables import arranged
from fedpipe.data.trees import Array
from fedpipe.errors import DataError
from fedpipe.federation.data import Kind
from fedpipe.federation.federation import Federation
from fedpipe.rounds.received import cleaned

T = TypeVar("T")


class Settled(NamedTuple):
    """Holds a schema, the summaries of its columns, and the learners without statistics, with the reasons."""

    schema: Schema
    columns: tuple[ColumnSummary, ...]
    left_out: dict[str, str]


def settle(federation: Federation, reports: Sequence[Report]) -> Settled:
    """Settles the schema of a federation's table. The order of the reports does not matter.

    Args:
        federation: with the declared kinds and categories, and the names of classes.
        reports: of the learners that answered. One that contradicts itself or the others is left out.

    Raises:
        DataError: the reports and the federation file do not determine kinds, categories or classes.
    """
    left_out: dict[str, str] = {}
    disclosed = _disclosed(federation, sorted(reports, key=lambda report: report.learner), left_out)
    kinds = _kinds(federation, disclosed)
    if not kinds:
        raise DataError(
            f"no learner discloses statistics, so the kinds of columns are unknown{_reasons(left_out)}",
            where="data.features",
            remedy="Declare the columns, such as {age: number, sex: category}, or lower data.statistics.floor.",
        )
    columns, summaries = [], []
    for name, kind in kinds.items():
        own = _without_outliers([column for report in disclosed for column in report.columns if column.name == name])
        summary = summary_of(own, kind) if own else ColumnSummary(name, kind, 0, None, (), {})
        columns.append(_column(federation, summary, disclosed))
        summaries.append(summary)
    labels, classes = _classes(federation, disclosed)
    targets = [report.target for report in disclosed if report.target and not classes]
    targets = [target for target, is_odd in zip(targets, _outliers(targets), strict=True) if not is_odd]
    mean, deviation = _moments(federation, merged(targets) if targets else None)
    schema = Schema(
        columns=tuple(columns), label=federation.data.labels, labels=labels, classes=classes, mean=mean,
        deviation=deviation, statistics=bool(disclosed),
    )  # fmt: skip
    return Settled(schema, tuple(summaries), left_out)


def _reasons(left_out: dict[str, str]) -> str:
    return f" ({'; '.join(f'{name}: {why}' for name, why in left_out.items())[:300]})" if left_out else ""


def _disclosed(federation: Federation, reports: Sequence[Report], left_out: dict[str, str]) -> list[Report]:
    """Returns the reports that count: consistent ones, with the columns, kinds and labels that most have.

    A single learner cannot end a run by its report. When it reads its data as the schema says, it drops out by itself.
    """
    kept = []
    for report in reports:
        if report.why:
            left_out[report.learner] = cleaned(report.why)
        elif flaw := flaw_of(report):
            left_out[report.learner] = f"its statistics are refused: {flaw}"
        else:
            kept.append(report)
    declared = frozenset(federation.data.kinds)
    names = declared or _most(kept, lambda report: frozenset(column.name for column in report.columns))
    for report in kept:
        if odd := sorted({column.name for column in report.columns} ^ (names or frozenset())):
            left_out[report.learner] = f"it has other columns than most: only one side has {odd[0]!r}"
    classes = set(federation.class_names)
    named = _most(_left(kept, left_out), lambda report: report.labels == "names")
    for report in _left(kept, left_out):
        if (report.labels == "names") != named:
            left_out[report.learner] = f"its labels are {'numbers' if named else 'names'}, unlike those of most"
        elif classes and (unknown := sorted(set(report.classes) - classes)):
            left_out[report.learner] = f"its label {unknown[0]!r} is not among the classes {', '.join(sorted(classes))}"
    for name in sorted(names or ()) if not declared else ():
        _leave_out_other_kinds(name, _left(kept, left_out), left_out)
    _leave_out_most_names(federation, _left(kept, left_out), left_out)
    return _left(kept, left_out)


_MOST_NAMES = 2**23
"""Most characters of all categories and classes in a schema, which every step reads."""


def _leave_out_most_names(federation: Federation, reports: Sequence[Report], left_out: dict[str, str]) -> None:
    """Leaves out the learner with the most names that nobody else has, until those of the others fit in a schema."""
    named = {report.learner: _undeclared_names(federation, report) for report in reports}
    while named:
        counts = Counter(name for own in named.values() for name in own)
        classes = sum(1 for column, _ in counts if not column)
        if classes <= MOST_CLASSES and sum(len(name) for _, name in counts) <= _MOST_NAMES:
            return
        only = {learner: sum(counts[name] == 1 for name in own) for learner, own in named.items()}
        most = max(named, key=lambda learner: (only[learner], learner))
        left_out[most] = "with its categories and classes, the schema would be too large"
        del named[most]


def _undeclared_names(federation: Federation, report: Report) -> set[tuple[str, str]]:
    """Returns the categories of a report by column, and its classes, where the federation file does not name them."""
    found = {
        (column.name, value)
        for column in report.columns
        if not federation.data.categories_of(column.name)
        for value in column.categories
    }
    return found if federation.class_names else found | {("", value) for value in report.classes}


def _left(reports: Sequence[Report], left_out: Mapping[str, str]) -> list[Report]:
    return [report for report in reports if report.learner not in left_out]


def _most(reports: Sequence[Report], value: Callable[[Report], T]) -> T | None:
    """Returns the value of most reports; of two with equally many, the one with more examples."""
    votes: dict[T, tuple[int, int]] = {}
    for report in reports:
        count, examples = votes.get(value(report), (0, 0))
        votes[value(report)] = (count + 1, examples + report.examples)
    return max(votes, key=lambda choice: (*votes[choice], str(choice)), default=None)


_ALIKE: dict[Kind, str] = {"number": "number", "boolean": "number", "date": "date", "category": "text", "text": "text"}
"""Guessed kinds that differ by chance: two learners may see few or many different texts, or only 0 and 1."""


def _leave_out_other_kinds(name: str, reports: Sequence[Report], left_out: dict[str, str]) -> None:
    """Leaves out the learners whose guess of a column's kind differs from that of most; those without values agree."""
    guesses = {report.learner: guess for report in reports if (guess := _guess(report, name))}
    most = _most([report for report in reports if report.learner in guesses], lambda r: _ALIKE[guesses[r.learner]])
    for learner, guess in guesses.items():
        if _ALIKE[guess] != most:
            left_out[learner] = f"its column {name!r} looks like the kind {guess}, unlike that of most"


def _guess(report: Report, name: str) -> Kind | None:
    column = next(column for column in report.columns if column.name == name)
    return column.kind if column.missing < report.examples else None


def _kinds(federation: Federation, reports: Sequence[Report]) -> dict[str, Kind]:
    """Returns the kinds by column, in the order of the first report."""
    declared = federation.data.kinds
    if not reports:
        return declared
    if declared:
        return {column.name: declared[column.name] for column in reports[0].columns}
    return {column.name: _kind(column.name, reports) for column in reports[0].columns}


def _kind(name: str, reports: Sequence[Report]) -> Kind:
    """Returns the kind of a column that learners have guessed alike."""
    guesses = {guess for report in reports if (guess := _guess(report, name))}
    if guesses == {"number", "boolean"}:
        return "number"
    if guesses == {"category", "text"}:
        return _most([r for r in reports if _guess(r, name)], lambda report: _guess(report, name)) or "text"
    return next(iter(guesses), "number")


_OUTLIER = 100.0
"""Numbers whose root mean square exceeds that of most learners so many times do not count."""


def _without_outliers(columns: Sequence[ColumnReport]) -> list[ColumnReport]:
    """Returns the reports of a column, without numbers that are far larger than those of most learners.

    They would make the column constant for all others. As with updates, at least three others are needed to compare.
    """
    given = [column.numbers for column in columns if column.numbers]
    odd = {id(numbers) for numbers, is_odd in zip(given, _outliers(given), strict=True) if is_odd}
    return [replace(column, numbers=None) if id(column.numbers) in odd else column for column in columns]


def _outliers(given: Sequence[Numbers]) -> list[bool]:
    """Returns for each summary whether its values are far larger than those of most."""
    norms = {str(place): math.hypot(numbers.mean, numbers.deviation) for place, numbers in enumerate(given)}
    refused = outliers(norms, _OUTLIER)
    return [place in refused for place in norms]


def _column(federation: Federation, summary: ColumnSummary, reports: Sequence[Report]) -> Column:
    """Returns a column of the schema."""
    name, kind = summary.name, summary.kind
    examples = sum(report.examples for report in reports)
    if examples and summary.missing >= examples:
        raise DataError(
            f"the column {name!r} has no values at any learner",
            where="data.features",
            remedy="Add it to data.ignore, or leave it out of data.features.",
        )
    missing = bool(summary.missing) or not examples
    if kind in NUMERIC:
        mean, deviation = _moments(federation, summary.numbers)
        style = summary.styles[0] if len(summary.styles) == 1 else ""
        return Column(name=name, kind=kind, missing=missing, mean=mean, deviation=deviation, style=style)
    if kind == "text":
        return Column(name=name, kind=kind, missing=missing)
    declared = tuple(map(printable, federation.data.categories_of(name)))
    categories = declared or tuple(sorted(summary.categories))
    if not categories:
        raise DataError(
            f"no learner discloses categories of the column {name!r}",
            where="data.features",
            remedy=f"Declare them: {name}: {{kind: category, categories: [...]}}. Or declare it as text.",
        )
    return Column(name=name, kind=kind, missing=missing, categories=categories)


def _moments(federation: Federation, numbers: Numbers | None) -> tuple[float, float]:
    """Returns mean and deviation for the normalisation; 0 and 1 without one."""
    if numbers is None or federation.data.normalise == "none":
        return 0.0, 1.0
    constant = numbers.deviation <= _SMALLEST * max(1.0, abs(numbers.mean))
    return numbers.mean, 1.0 if constant else numbers.deviation


_SMALLEST = 1e-7
"""Deviations below this share of the mean are rounding errors of float32: the column is constant."""


def _classes(federation: Federation, reports: Sequence[Report]) -> tuple[LabelKind, tuple[str, ...]]:
    """Returns the kind of the labels, and the names of classes."""
    kinds, given = {report.labels for report in reports}, federation.class_names
    if "names" in kinds or (not reports and given):
        names = sorted({name for report in reports for name in report.classes})
        if not given and not 1 < len(names) <= MOST_CLASSES:
            raise DataError(
                f"the labels in {federation.data.labels!r} have {len(names)} known names"
                f"{f', {names[0]!r}' if names else ''}, but a classifier needs at least two",
                where="data.labels",
                remedy="Name another column, or name the classes in export.classes.",
            )
        return "names", given or tuple(names)
    if "quantity" in kinds and not given:
        return "quantity", ()
    return ("names", given) if given and all(name.lstrip("-").isdecimal() for name in given) else ("whole", given)


def settled(examples: Examples, schema: Schema | None, classes: Sequence[str] = (), *, where: str = "") -> Examples:
    """Brings examples, as they were read, into the form that a model takes: columns in order, labels as numbers.

    Args:
        examples: of a table, or arrays.
        schema: of the table; None for arrays.
        classes: names of the classes, for labels that are text in an array.
        where: the origin of the examples, for messages.

    Raises:
        DataError: a column is missing, or a label is none of the classes.
    """
    if schema is None or not examples.columns:
        if isinstance(examples.y, np.ndarray) and examples.y.dtype == object:
            return replace_labels(examples, _numbered(examples.y, classes, where))
        return examples
    x = arranged(examples.x, examples.columns, schema.columns, where)
    assert isinstance(examples.y, np.ndarray)
    return Examples(x, labels_of(examples.y, schema, where), examples.weight)


def replace_labels(examples: Examples, y: Array) -> Examples:
    """Returns examples with other labels."""
    return Examples(examples.x, y, examples.weight, examples.columns)


def labels_of(y: Array, schema: Schema, where: str) -> Array:
    """Returns labels as the schema has them: numbers of classes, whole numbers, or quantities. Raises DataError."""
    if schema.labels == "names":
        return _numbered(y, schema.classes, where, schema.label)
    if y.dtype == object:
        what = f"the labels are text, such as {y[0]!r}, but nobody discloses names of classes"
        raise DataError(what, where=where, remedy="Name the classes in export.classes.")
    if schema.labels == "quantity":
        return y.astype(np.float32)
    if (odd := np.flatnonzero(y != np.floor(y))).size:
        what = f"the label {y[odd[0]]:g} in column {schema.label!r} is not a whole number, but those of others are"
        raise DataError(what, where=where, remedy="Correct it, or name the classes in export.classes.")
    return y.astype(np.int64)


def _numbered(y: Array, classes: Sequence[str], where: str, column: str = "") -> Array:
    """Returns the numbers of classes for their names; for whole numbers these are their digits.

    The rows of a table are in parts already, so a message has its column, and no number of a row.
    """
    if not classes:
        raise DataError(
            f"the labels are text, such as {y.reshape(-1)[0]!r}, and the classes have no names",
            where=where,
            remedy="Name the classes in export.classes, or number them from 0.",
        )
    numbers = {name: number for number, name in enumerate(classes)}
    flat = [value if isinstance(value, str) else _digits(value) for value in y.reshape(-1).tolist()]
    unknown = next(((row, value) for row, value in enumerate(flat) if value not in numbers), None)
    if unknown is not None:
        raise DataError(
            f"the label {unknown[1]!r} in {f'column {column!r}' if column else f'row {unknown[0] + 1}'} is none of the "
            f"classes {', '.join(classes)[:200]}",
            where=where,
            remedy="Correct it, or name all classes in export.classes.",
        )
    return np.array([numbers[value] for value in flat], np.int64).reshape(y.shape)


def _digits(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def with_kinds(schema: Schema) -> dict[str, Kind]:
    """Returns the kinds by column, with which a learner reads its own file."""
    return {column.name: column.kind for column in schema.columns}
