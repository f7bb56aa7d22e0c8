"""Look at the rows of a split network's parties, as far as this machine reaches them, before a run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedpipe.data.columns import Columns
from fedpipe.data.examples import Examples
from fedpipe.errors import DataError, FedpipeError, ModelError
from fedpipe.federation.federation import Federation
from fedpipe.learners.aligned import Kept, in_common_order
from fedpipe.learners.check import check_compared
from fedpipe.learners.cut import Bottom
from fedpipe.learners.keras.cut import CutKeras
from fedpipe.learners.own_data import few_of, is_here
from fedpipe.learners.party import Held, arranged, read_rows
from fedpipe.learners.user_code import described, load_code
from fedpipe.rounds.aligned import NO_COMMON
from fedpipe.store.objects import digest_of
from fedpipe.weights import Array

SAME_ROWS = "Set algorithm.align to intersection, or sort the files of all parties by id and keep only common rows."
"""The remedy for parties with different rows."""
_FEW = 32
"""Rows of a party on which its bottom is tried."""


def check_parties(federation: Federation, code: str) -> list[tuple[str, str]]:
    """Read the rows of each party as far as this machine reaches them, and try the network on a few.

    Returns:
        Each party, and its rows or the reason why they are not read here.

    Raises:
        DataError: a party's rows are on this machine and cannot be used, or are not those of another.
        ModelError: the network cannot be used on them.
    """
    data, cut = code.encode(), federation.split
    assert cut is not None
    digest, found, known = digest_of(data), dict[str, str](), dict[str, Held]()
    module, read = load_code(data, digest), dict[str, Columns]()
    places = {learner.name: f"learners[{i}].data, {learner.name}" for i, learner in enumerate(federation.learners)}
    for learner in federation.learners:
        if learner.at == "site":
            continue
        try:
            read[learner.name] = read_rows(federation, learner.name, module)
        except FedpipeError as error:
            if is_here(learner.data):
                raise _unusable(error, places[learner.name]) from error
            found[learner.name] = f"not read: {error.what}"
    kept = _common(federation, read) if cut.align == "intersection" else {}
    for name, columns in read.items():
        try:
            known[name] = arranged(federation, name, columns, kept.get(name))
        except FedpipeError as error:
            raise _unusable(error, places[name]) from error
        if cut.align == "same":
            _check_same(known, places[name])
        parts = ", ".join(f"{len(rows)} {part}" for part, rows in known[name].parts.items())
        common = f"; {len(kept[name].places)} of {columns.rows} rows are common to all" if name in kept else ""
        found[name] = parts + common
    _try(federation, data, digest, known)
    return [(learner.name, found[learner.name]) for learner in federation.learners if learner.name in found]


def _unusable(error: FedpipeError, where: str) -> DataError:
    place = f"{error.where}: " if error.where else ""
    return DataError(f"the data cannot be used: {place}{error.what}", where=where, remedy=error.remedy)


def _common(federation: Federation, read: Mapping[str, Columns]) -> dict[str, Kept]:
    """Return the common rows of all parties, if this machine reaches all their files. Raises DataError without any."""
    ids = {name: columns.ids for name, columns in read.items() if columns.ids is not None}
    if len(ids) < len(federation.learners):
        return {}
    common = set.intersection(*(set(texts.tolist()) for texts in ids.values()))
    if not common:
        raise DataError("no id is common to all parties", where="algorithm.ids", remedy=NO_COMMON)
    chosen = {
        name: np.flatnonzero(np.fromiter((text in common for text in texts), bool, len(texts)))
        for name, texts in ids.items()
    }
    return {name: in_common_order(places, ids[name]) for name, places in chosen.items()}


def _check_same(known: Mapping[str, Held], where: str) -> None:
    """Check that the last party has the rows of the first. Raises DataError."""
    (first, one), *_, (_, other) = [*known.items(), *known.items()]
    counts = [sum(map(len, held.parts.values())) for held in (one, other)]
    if counts[0] != counts[1]:
        raise DataError(f"there are {counts[1]} rows, but {first} has {counts[0]}", where=where, remedy=SAME_ROWS)
    if one.order != other.order:
        raise DataError(f"the ids are not those of {first}, in the same order", where=where, remedy=SAME_ROWS)


def _try(federation: Federation, code: bytes, digest: str, known: Mapping[str, Held]) -> None:
    """Try the parts on a few rows that are known, and the network if those of all parties are. Raises ModelError."""
    adapter, training, cut = CutKeras(federation), federation.training, federation.split
    assert cut is not None
    x = {name: held.x for name, held in known.items() if held.x is not None}
    for name, rows in x.items():
        _check_activations(name, adapter.bottom(code, digest, name, training), rows[:_FEW])
    if len(known) < len(federation.learners):
        return
    labels = known[cut.label_party].y
    assert labels is not None
    few = few_of(Examples(next(iter(x.values())) if len(x) == 1 else dict(x), labels))
    whole = adapter.build(code, digest, "", training)
    check_compared(federation, whole.check_examples(few.x, few.y))


def _check_activations(party: str, bottom: Bottom, x: Array) -> None:
    """Check that a bottom makes activations of rows: as many, and finite ones. Raises ModelError."""
    shown = f'bottom("{party}")'
    try:
        found = bottom.infer(x)
    except ModelError as error:
        what = f"{shown} does not fit its rows: {error.what}"
        raise ModelError(what, where="model.py", remedy=error.remedy) from error
    except Exception as error:
        what = f"{shown} fails on its rows, because {described(error)}"
        raise ModelError(what, where="model.py", remedy="Correct its layers, or the rows.") from error
    if len(found) != len(x):
        raise ModelError(
            f"{shown} makes {len(found)} rows of activations from {len(x)} rows", where="model.py",
            remedy="Return one row for each row.",
        )  # fmt: skip
    if not np.isfinite(found).all():
        raise ModelError(
            f"the activations of {shown} are not finite", where="model.py",
            remedy="Check its layers, and that the features are not too large.",
        )  # fmt: skip
