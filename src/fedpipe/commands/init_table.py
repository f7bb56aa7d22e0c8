"""Writes a federation for tables: kinds of columns and the task are guessed from the data, and shown in the file."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedpipe.commands.init import Framework, write_texts
from fedpipe.data.alike import alike_note
from fedpipe.data.cells import fits, is_missing
from fedpipe.data.examples import in_order
from fedpipe.data.schema import LONGEST_NAME
from fedpipe.data.sheets import Sheet, unsupported
from fedpipe.data.tables import TABLES, check_named, guess_kind, label_values, read_columns
from fedpipe.errors import DataError, InputError
from fedpipe.federation.data import FileKind, Kind
from fedpipe.federation.names import SAFE_NAME

_MOST_NUMBERED, _MOST_NAMED = 20, 100
"""Most different whole numbers, and most different names, that count as classes."""
_FEWEST, _MOST_LEARNERS, _WIDEST = 10, 1000, 48
_MOST_TEXTS = 1000
"""Most different texts that are counted."""


class Guess(NamedTuple):
    """A guess about a column, with the reason or an example for the reader, and a doubt that a user must hear of."""

    name: str
    kind: FileKind
    remark: str
    doubt: str = ""


class Written(NamedTuple):
    """Holds the names of the files, and doubts about the guesses in them."""

    files: tuple[str, ...]
    doubts: tuple[str, ...]


class Task(NamedTuple):
    """The task of the model: to predict one of the classes, or a number if there are none."""

    label: str
    classes: tuple[str, ...]
    remark: str

    @property
    def template(self) -> str:
        """Returns the name of the template of model.py."""
        return "regression" if not self.classes else "binary" if len(self.classes) == 2 else "classes"


def init_table(
    folder: str | Path, files: Sequence[str | Path], label: str, *, learners: int = 0, by: str = "",
    framework: Framework = Framework.keras, force: bool = False,
) -> Written:  # fmt: skip
    """Writes federation.yaml and model.py for a table.

    Args:
        folder: created where it is missing.
        files: a .csv, .tsv, .parquet or .npz file that is dealt out to learners, or a file for each learner.
        label: the column to predict.
        learners: number of learners that one file is dealt out to; 0: one for each value of `by`, or 3.
        by: a column, such as the hospital, whose values stay together.
        framework: the framework of model.py.
        force: overwrites existing files.

    Returns:
        The names of the files, and doubts about the guesses.

    Raises:
        InputError: a file exists and `force` is not set, or the folder cannot be written.
        DataError: the data cannot be used; the message names file and column.
    """
    if not str(folder).strip():
        raise InputError("the folder's name is empty", remedy="Name a new or empty folder; `.` is the current one.")
    if len(files) > 1 and (learners or by):
        raise InputError("several files are one for each learner", remedy="Leave out --learners and --by.")
    folder = Path(folder)
    sheets = [_read(Path(file), label, by) for file in files]
    task = _task(sheets, label)
    guesses = _guesses(sheets, {label, by}, framework)
    if all(guess.kind == "ignore" for guess in guesses):
        where, remedy = str(files[0]), "Use a table with numbers, dates or categories."
        why = next((f": {guess.doubt.removesuffix('.')}" for guess in guesses if guess.doubt), "")
        raise DataError(f"no column can be used as a feature{why}", where=where, remedy=remedy)
    text = _federation(folder, [Path(file) for file in files], sheets, task, guesses, learners, by, framework)
    template = resources.files("fedpipe") / "templates" / "tables" / framework / f"{task.template}.py"
    write_texts(folder, {"federation.yaml": text, "model.py": template.read_text()}, force=force)
    labels = alike_note(task.classes, "classes")
    doubts = [f"column {label!r}: {labels}. Write them alike."] if labels else []
    for sheet in sheets:
        if count := sheet.names.count(""):
            columns = "a column" if count == 1 else f"{count} columns"
            doubts.append(
                f"{sheet.where} has {columns} without a name, {'which is' if count == 1 else 'which are'} left out."
            )
    return Written(("federation.yaml", "model.py"), (*doubts, *(guess.doubt for guess in guesses if guess.doubt)))


def _read(path: Path, label: str, by: str) -> Sheet:
    if path.suffix.lower() not in TABLES:
        raise unsupported(path, TABLES)
    sheet = read_columns(path, known=(label,))
    if not sheet.names:
        raise DataError("the table has no header", where=str(path), remedy="Add a first line with names of columns.")
    check_named(sheet, [label], "--label")
    check_named(sheet, [by] if by else [], "--by")
    if sheet.rows < _FEWEST:
        raise DataError(f"the table has {sheet.rows} rows", where=str(path), remedy=f"Use at least {_FEWEST}.")
    return sheet


def _task(sheets: Sequence[Sheet], label: str) -> Task:
    """Guesses the task from the labels. Raises DataError for labels that cannot be predicted."""
    parts = [label_values(sheet, label) for sheet in sheets]
    where, named = f"{sheets[0].where}: column {label!r}", any(part.dtype == object for part in parts)
    values = {str(value) if named else value for part in parts for value in part.tolist()}
    if len(values) < 2:
        what = f"all labels are {next(iter(values))!r}, so there is nothing to learn"
        raise DataError(what, where=where, remedy="Name another column with --label.")
    if named and len(values) > _MOST_NAMED:
        if flaw := _flaw(sheets, label, _Present(sheets, label), "number"):
            raise DataError(flaw.what, where=flaw.where, remedy="Correct the label, or remove the row.") from flaw
        what = f"the labels have {len(values)} different names, which is too many for classes"
        raise DataError(what, where=where, remedy="Name another column with --label, or group the labels.")
    if not named and (len(values) > _MOST_NUMBERED or not all(float(value).is_integer() for value in values)):
        low, high = min(values), max(values)
        return Task(label, (), f"a number from {low:g} to {high:g}, so this is a regression")
    classes = in_order(str(value) if named else str(int(value)) for value in values)
    if named and fits("date", classes):
        remedy = "Name another column with --label, or turn dates into classes or numbers."
        raise DataError(f"the labels are dates, such as {classes[0]}", where=where, remedy=remedy)
    return Task(label, tuple(classes), f"{len(classes)} classes")


def _guesses(sheets: Sequence[Sheet], other: set[str], framework: Framework) -> list[Guess]:
    """Guesses the columns of features, in the order of the first file."""
    found = []
    for name in sheets[0].names:
        if name in other or not name:
            continue
        if len(name) > LONGEST_NAME:
            found.append(Guess("", "ignore", "", f"the name {name[:40]!r}... is too long, so the column is left out."))
            continue
        lacking = [sheet.where for sheet in sheets if name not in sheet.names]
        guess = _guess_lacking(name, lacking) if lacking else _guess(sheets, name)
        if framework == Framework.numpy and guess.kind == "category":
            guess = Guess(name, "ignore", f"a category ({guess.remark}), which framework numpy does not take")
        found.append(guess)
    return found


def _guess_lacking(name: str, lacking: Sequence[str]) -> Guess:
    return Guess(name, "ignore", f"not in {lacking[0]}", f"{lacking[0]} lacks the column {name!r}, so it is left out.")


class _Present:
    """The cells of a column in all files that are not missing, read again at each iteration: they may be millions."""

    def __init__(self, sheets: Sequence[Sheet], name: str) -> None:
        self._cells = [sheet.cells(name) for sheet in sheets]
        self.count = sum(1 for _ in self)

    def __iter__(self) -> Iterator[Any]:
        return (cell for cells in self._cells for cell in cells if not is_missing(cell))

    def different(self, most: int = _MOST_TEXTS) -> set[str]:
        """Returns the different cells as texts, and no more of them than `most`."""
        found: set[str] = set()
        for cell in self:
            found.add(str(cell).strip())
            if len(found) == most:
                break
        return found


def _guess(sheets: Sequence[Sheet], name: str) -> Guess:
    try:
        kinds = {guess_kind(sheet, name) for sheet in sheets if not all(map(is_missing, sheet.cells(name)))}
    except DataError as error:
        return Guess(name, "ignore", error.what)
    if not kinds:
        return Guess(name, "ignore", "no values")
    present, kind = _Present(sheets, name), _common(kinds, sheets, name)
    different, rows = present.different(), sum(sheet.rows for sheet in sheets)
    example = str(next(iter(present)))[:40]
    missing = f", {rows - present.count} missing" if rows > present.count else ""
    if len(different) == 1:
        return Guess(name, "ignore", f"always {example}{missing}")
    is_number = re.fullmatch(r"(.*[_\W])?(id|no|nr|index|number|mrn)\W*", name.lower())
    if is_number and len(present.different(present.count)) == present.count:
        return Guess(name, "ignore", "a different value in each row, like a number of patients")
    if kind == "text":
        more = " or more" if len(different) == _MOST_TEXTS else ""
        remark = f"{len(different)}{more} different texts; table.encoded leaves texts out{missing}"
        return Guess(name, "ignore", remark, _nearly(sheets, name, present, "the column is left out"))
    if kind == "category":
        examples = ", ".join(sorted(different)[:4])
        doubt = _nearly(sheets, name, present, "the column is a category")
        if not doubt and (note := alike_note(sorted(different), "categories")):
            doubt = f"column {name!r}: {note}. Write them alike."
        return Guess(name, kind, f"{examples}{', ...' if len(different) > 4 else ''}{missing}", doubt)
    read = [sheet.read(name, kind) for sheet in sheets]
    style = "".join(f", {style}" for style in sorted({cells.style for cells in read} - {""}))
    if kind == "number":
        numbers = np.concatenate([cells.values for cells in read])
        if (largest := np.nanmax(np.abs(numbers))) > np.finfo(np.float32).max:
            doubt = f"column {name!r}: {largest:.4g} is too large for a model, so the column is left out. Scale it."
            return Guess(name, "ignore", f"numbers up to {largest:.4g}", doubt)
        return Guess(name, kind, f"{np.nanmin(numbers):.4g} to {np.nanmax(numbers):.4g}{style}{missing}")
    return Guess(name, kind, f"such as {example}{style}{missing}")


def _nearly(sheets: Sequence[Sheet], name: str, present: _Present, so: str) -> str:
    """Returns why a column is not one of numbers or dates, if most of its cells look like it."""
    for kind in _SHAPES:
        if error := _flaw(sheets, name, present, kind):
            return f"{error.where}: {error.what}, so {so}. {error.remedy or ''}".strip()
    return ""


def _flaw(sheets: Sequence[Sheet], name: str, present: _Present, kind: Kind) -> DataError | None:
    """Returns the error of the first cell that is not of a kind, if most cells look like it."""
    if sum(bool(re.fullmatch(_SHAPES[kind], str(cell).strip())) for cell in present) < 0.8 * present.count:
        return None
    for sheet in sheets:
        try:
            sheet.parse(name, kind)
        except DataError as error:
            return error
    return None


_LIKE_A_DATE = r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}([ T].*)?"
_LIKE_A_NUMBER = r"[<>≤≥~]? ?[+-]?[\d.,' ]*\d([eE][+-]?\d+)?( ?[^\d\s]{1,5})?"
_SHAPES: dict[Kind, str] = {"date": _LIKE_A_DATE, "number": _LIKE_A_NUMBER}


def _common(kinds: Collection[Kind], sheets: Sequence[Sheet], name: str) -> Kind:
    """Returns the kind that reads a column in all files."""
    if len(kinds) == 1:
        return next(iter(kinds))
    either: tuple[Kind, ...] = ("number", "boolean")
    for kind in either:
        if all(fits(kind, sheet.cells(name)) for sheet in sheets):
            return kind
    return "text" if "text" in kinds else "category"


def _federation(
    folder: Path, files: Sequence[Path], sheets: Sequence[Sheet], task: Task, guesses: Sequence[Guess], learners: int,
    by: str, framework: Framework,
) -> str:  # fmt: skip
    paths = [os.path.relpath(file.absolute(), folder.absolute()) for file in files]
    listed = [guess for guess in guesses if guess.name]
    width = min(_WIDEST, max(len(f"    {_plain(g.name)}: {g.kind}") for g in listed) + 2)
    features = [f"{f'    {_plain(g.name)}: {g.kind}':<{width - 1}} # {_line(g.remark)}" for g in listed]
    shards, names, smallest = _dealing(sheets, learners, by)
    holders = names if len(files) == 1 else [_name(file, k, files) for k, file in enumerate(files, 1)]
    holdout = 0.1 if len(files) == 1 else 0.0
    train = int(smallest * (1 - holdout) * 0.8)
    data = [f"  uri: {_plain(paths[0])}"] if len(files) == 1 else []
    own = [""] * len(holders) if len(files) == 1 else [f", data: {_plain(path)}" for path in paths]
    classes = f", classes: [{', '.join(map(_quoted, task.classes))}]" if task.classes else ""
    return "\n".join([
        "# A federation for tables, guessed from the data: correct what is wrong, then run `fedpipe check` and",
        "# `fedpipe run`. docs/tables.md explains tables, docs/federation.md describes every key.",
        f"name: {_slug(folder.absolute().name) or 'tables'}",
        "", "store: store", "model: model.py:build", f"framework: {framework}", "",
        "data:", *data,
        f"  labels: {_plain(task.label)}  # {_line(task.remark)}",
        "  features:  # number, boolean, date, category, text or ignore",
        *features,
        "  normalise: federated  # by means and deviations over all learners; none turns it off",
        *([f"  shards: {shards}"] if len(files) == 1 else []),
        "  parts: {train: 0.8, vote: 0.0, test: 0.2}", "",
        "learners:", *(f"  - {{name: {name}{place}}}" for name, place in zip(holders, own, strict=True)), "",
        "training:", "  rounds: 20", "  local_epochs: 2",
        f"  batch_size: {max(1, min(32, train // 4))}", "  seed: 1", "",
        f"evaluation: {{holdout: {holdout}}}",
        f"export: {{opset: 17{classes}}}", "",
    ])  # fmt: skip


def _dealing(sheets: Sequence[Sheet], learners: int, by: str) -> tuple[str, list[str], int]:
    """Returns the scheme, the learners' names, and the rows of the smallest learner."""
    rows = min(sheet.rows for sheet in sheets)
    if learners > _MOST_LEARNERS:
        raise InputError(f"{learners} learners are too many", remedy=f"Use at most {_MOST_LEARNERS}.")
    if not by:
        count = learners or 3
        if len(sheets) == 1 and rows < count * _FEWEST:
            remedy = f"Use at most {rows // _FEWEST} with --learners."
            raise DataError(f"{rows} rows are too few for {count} learners", where=sheets[0].where, remedy=remedy)
        scheme = "{by: iid, seed: 1}  # at random, in equal shares"
        return scheme, _numbered(count), rows // count if len(sheets) == 1 else rows
    keys = sheets[0].parse(by, "category")
    if (keys == "").any():
        row = int(np.argmax(keys == "")) + 1
        raise DataError(
            "the key is missing", where=f"{sheets[0].where}: column {by!r}, row {row}", remedy="Fill it in."
        )
    values, counts = np.unique(keys.astype(str), return_counts=True)
    count = learners or len(values)
    if len(values) < max(count, 2) or count > _MOST_LEARNERS:
        remedy = "Name another column with --by, or set --learners."
        raise DataError(f"{by!r} has {len(values)} values for {count} learners", where=sheets[0].where, remedy=remedy)
    scheme = f"{{by: key, column: {_quoted(by)}, seed: 1}}  # each of its {len(values)} values is at one learner"
    return scheme, _numbered(count), int(counts.min())


def _numbered(count: int) -> list[str]:
    return [f"learner-{number}" for number in range(1, count + 1)]


def _name(file: Path, position: int, files: Sequence[Path]) -> str:
    """Returns a learner's name from that of its file, if the files have different names."""
    names = [_slug(other.stem) for other in files]
    name = names[position - 1]
    return name if name and names.count(name) == 1 else f"learner-{position}"


def _slug(text: str) -> str:
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(c))
    name = re.sub(r"[^a-z0-9]+", "-", plain)[:40].strip("-")
    return name if re.fullmatch(SAFE_NAME, name) else ""


def _plain(text: str) -> str:
    """Returns text as a key or value of YAML, in quotes if it needs them."""
    is_word = text.lower() in ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
    return text if re.fullmatch(r"[A-Za-z_./][\w./-]*", text, re.ASCII) and not is_word else _quoted(text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _line(text: str) -> str:
    """Returns text that fits into a comment."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:100]
