"""A party of a split network: its rows, in the common order, and its parts of the network."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from fedpipe.data.columns import Columns, Wanted, columns_of, read_columns_of
from fedpipe.data.shards import Indices, split
from fedpipe.errors import DataError, DroppedError
from fedpipe.federation.federation import Federation
from fedpipe.learners.aligned import Kept, check_kept, digest_of_ids, read_kept
from fedpipe.learners.cut import Bottom, Top, held_by
from fedpipe.learners.framework import Arrays
from fedpipe.learners.keras.cut import CutKeras, KerasTop
from fedpipe.learners.reading import own_place
from fedpipe.learners.user_code import described, is_stop, load_code
from fedpipe.rounds.aligned import find_aligned
from fedpipe.rounds.floors import check_floors
from fedpipe.rounds.history import read_record
from fedpipe.rounds.plan import Plan, RunPlace, read_plan
from fedpipe.store import Store
from fedpipe.store.objects import get_bytes
from fedpipe.weights import Array

WIDER = 4
"""Training batches in a batch of a test."""


class Held(NamedTuple):
    """The rows of a party, all parts of them in the common order.

    Args:
        x: features; None at a party without.
        y: labels, of the label party.
        parts: the places of the rows of each part.
        order: a digest of the rows' ids.
    """

    x: Array | None
    y: Array | None
    parts: Mapping[str, Indices]
    order: bytes = bytes(32)


class Parts(NamedTuple):
    """The parts of the network that a party holds."""

    bottom: Bottom | None = None
    top: Top | None = None


def read_rows(federation: Federation, party: str, module: ModuleType | None) -> Columns:
    """Read a party's file, or call `load` of the user's file for it, which returns arrays by name. Raises DataError."""
    cut = federation.split
    assert cut is not None
    data, holds_labels = federation.data, party == cut.label_party
    wanted = Wanted(
        data.features if party in federation.feature_parties and isinstance(data.features, str) else "",
        data.labels if holds_labels else "", cut.ids, "" if holds_labels else data.labels,
    )  # fmt: skip
    own, load = own_place(federation, party), getattr(module, "load", None)
    if load is None:
        return read_columns_of(own, wanted)
    try:
        loaded: Any = load(own)
    except BaseException as error:
        if is_stop(error):
            raise
        raise DataError(
            f"load({own!r}) fails, because {described(error)}", where="model.py", remedy="Correct it, or the path."
        ) from error
    if not isinstance(loaded, Mapping):
        raise DataError(
            f"load({own!r}) returns {type(loaded).__name__}, not arrays by name", where="model.py",
            remedy='Return a dict, such as {"x": features, "y": labels}.',
        )  # fmt: skip
    return columns_of(loaded, wanted, f"load({own!r})")


def held_rows(federation: Federation, party: str, module: ModuleType | None, kept: Kept | None = None) -> Held:
    """Read a party's rows and split them, as every party does.

    Args:
        federation: the federation.
        party: its name.
        module: the user's file, whose `load` may read the rows.
        kept: the rows that are common to all; None for all rows.

    Raises:
        DataError: the rows cannot be used.
    """
    return arranged(federation, party, read_rows(federation, party, module), kept)


def arranged(federation: Federation, party: str, columns: Columns, kept: Kept | None = None) -> Held:
    """Split the rows that a party has read; see `held_rows`."""
    training = federation.training
    if kept is not None and columns.ids is not None:
        check_kept(kept, columns.ids, federation.learner(party).data)
        columns = Columns(*(None if array is None else array[kept.places] for array in columns))
    parts = split(columns.rows, federation.data.parts, [training.seed, 4])
    if len(parts["train"]) < training.batch_size:
        raise DataError(
            f"there are {len(parts['train'])} train rows, fewer than a batch of {training.batch_size}",
            where=federation.learner(party).data, remedy="Lower the batch size, or give the parties more rows.",
        )  # fmt: skip
    return Held(columns.x, columns.y, parts, digest_of_ids(() if columns.ids is None else columns.ids))


def test_batches(federation: Federation, rows: Indices) -> Iterator[tuple[int, Indices]]:
    """Yield the batches of a test: their numbers, and the places of their rows."""
    size = federation.training.batch_size * WIDER
    return ((number, rows[first : first + size]) for number, first in enumerate(range(0, len(rows), size)))


def parts_of(store: Store, plan: Plan, party: str) -> Parts:
    """Return a party's parts of the network. Raises ModelError and CorruptError."""
    federation = plan.federation
    cut, adapter, code = federation.split, CutKeras(federation), get_bytes(store, plan.code)
    assert cut is not None
    bottom = top = None
    if party in federation.feature_parties:
        bottom = adapter.bottom(code, plan.code, party, federation.training)
    if party == cut.label_party:
        top = adapter.top(code, plan.code, federation.training)
    return Parts(bottom, top)


def label_model(store: Store, plan: Plan) -> KerasTop:
    """Return the top of a network as a model that measures activations. Raises ModelError and CorruptError."""
    return CutKeras(plan.federation).top(get_bytes(store, plan.code), plan.code, plan.federation.training)


def make_party(place: RunPlace, party: str) -> tuple[Held, Parts]:
    """Make a party; a process reads its rows once.

    Raises:
        DataError, ModelError, CorruptError, DroppedError: why the party cannot take part.
    """
    store, plan = _opened(place)
    return _read_once(place, party, _kept_digest(store, plan, party)), parts_of(store, plan, party)


def rows_of(store: Store, plan: Plan, party: str) -> Held:
    """Return a party's rows in a run: the common ones, if the parties found them. Raises as `make_party`."""
    check_floors(plan, party)
    digest = _kept_digest(store, plan, party)
    kept = read_kept(store, party, digest) if digest else None
    return held_rows(plan.federation, party, load_code(get_bytes(store, plan.code), plan.code), kept)


def own_ids(store: Store, plan: Plan, party: str) -> Array:
    """Return the ids of a party's rows. Raises as `make_party`."""
    check_floors(plan, party)
    found = read_rows(plan.federation, party, load_code(get_bytes(store, plan.code), plan.code)).ids
    assert found is not None
    return found


def _kept_digest(store: Store, plan: Plan, party: str) -> str:
    """Return the digest of a party's common rows; empty if all parties have the same rows."""
    assert plan.federation.split is not None
    if plan.federation.split.align == "same":
        return ""
    first = read_record(store, plan.run, 0)
    found = find_aligned(store, plan, first.weights, party) if first else None
    if found is None:
        raise DroppedError("it has not found its common rows in this run", remedy="Begin another run.", lasting=True)
    return found.personal


@functools.lru_cache(maxsize=4)
def _opened(place: RunPlace) -> tuple[Store, Plan]:
    store = place.open()
    return store, read_plan(store, place.plan)


@functools.lru_cache(maxsize=8)
def _read_once(place: RunPlace, party: str, _kept: str) -> Held:
    return rows_of(*_opened(place), party)


def first_weights(store: Store, plan: Plan, party: str) -> Arrays:
    """Return the first weights of a party's parts."""
    adapter, training = CutKeras(plan.federation), plan.federation.training
    whole = adapter.build(get_bytes(store, plan.code), plan.code, "", training)
    return held_by(whole.initial_weights(training.seed), plan.federation, party)
