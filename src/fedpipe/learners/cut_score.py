"""Test the final network of split learning: activations of held-out rows from all parties, and one score."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from fedpipe.errors import CorruptError, DroppedError, FedpipeError
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.sealing import Seal
from fedpipe.learners.cut import TOP, bottom_name, holders, joined, part_of
from fedpipe.learners.downloads import fetched
from fedpipe.learners.framework import Arrays, Model
from fedpipe.learners.keras.cut import CutKeras
from fedpipe.learners.party import Held, label_model, parts_of, rows_of, test_batches
from fedpipe.learners.score import score_part
from fedpipe.rounds.cut import read_digests
from fedpipe.rounds.evaluation import NO_LABELS, Score
from fedpipe.rounds.parcels import (
    Meeting,
    exchange_of,
    leave,
    like,
    packed,
    reason_of,
    send,
    take,
    take_seal,
    unpacked,
)
from fedpipe.rounds.plan import Plan
from fedpipe.store import Store
from fedpipe.store.objects import get_bytes
from fedpipe.weights import Array

_SESSION = "score"
_LOOK = 0.1
"""Seconds between looks for activations."""


def score_party(store: Store, plan: Plan, party: str, digest: str, patience: float = 0.0) -> Score:
    """Send a party's activations of its test rows; at the label party, score the network with those of all.

    Args:
        store: the federation's store.
        plan: the run's plan.
        party: its name.
        digest: of the global weights.
        patience: seconds that the label party waits for activations, where all are asked at once.

    Raises:
        DataError, ModelError, CorruptError, DroppedError: the reason why the network cannot be tested.
    """
    meeting = Meeting(store, plan.federation.name, plan.run, _SESSION, 0, 1, digest, plan.definition.digest)
    try:
        return _scored(meeting, plan, party, digest, patience)
    except Exception as error:
        leave(meeting, party, error.what if isinstance(error, FedpipeError) else type(error).__name__)
        raise


def _scored(meeting: Meeting, plan: Plan, party: str, digest: str, patience: float) -> Score:
    store, cut = meeting.store, plan.federation.split
    assert cut is not None
    held = rows_of(store, plan, party)
    arrays = own_part(store, digest, party)
    own = _activations(store, plan, party, held, arrays)
    if party != cut.label_party:
        seal = _seal(meeting, party, cut.label_party)
        for number, values in enumerate(own):
            send(meeting, "test", number, party, cut.label_party, packed(values, cut.exchange), seal)
        return Score(learner=party, weights=digest, why=NO_LABELS)
    top, rows = label_model(store, plan), held.parts["test"]
    if not len(rows):
        return Score(learner=party, weights=digest, why="the test part is empty")
    assert held.y is not None
    found = []
    end = time.monotonic() + patience
    for name, shape in zip(plan.federation.feature_parties, top.inputs_in_order, strict=True):
        theirs = own if name == party else _received(meeting, plan, party, name, held, shape.row, end)
        found.append(np.concatenate(theirs))
    return score_part(top, plan, part_of(arrays, TOP), party, digest, top.examples(found, held.y[rows]))


def own_part(store: Store, digest: str, party: str) -> Arrays:
    """Return the weights of a party's parts. Raises CorruptError and NotFoundError."""
    mine = read_digests(store, digest).get(party)
    if mine is None:
        raise CorruptError(f"the global weights have no part of {party}")
    with tempfile.TemporaryDirectory() as folder:
        return fetched(store, mine, Path(folder) / "part", party)


def whole_weights(store: Store, digest: str) -> Arrays:
    """Return the weights of the whole network, from the parts of all parties. Raises CorruptError and StoreError."""
    found: Arrays = {}
    for party in read_digests(store, digest):
        found |= own_part(store, digest, party)
    return found


def part_to_export(store: Store, plan: Plan, digest: str, part: str) -> tuple[Model, Arrays]:
    """Return a part of the network as a model of its own, and its weights, which are read from its holder alone.

    Args:
        store: the federation's store.
        plan: the run's plan.
        digest: of the global weights.
        part: its name.

    Raises:
        ModelError, CorruptError, NotFoundError: why there is no such model.
    """
    federation, code = plan.federation, get_bytes(store, plan.code)
    party, adapter = holders(federation)[part], CutKeras(federation)
    arrays = part_of(own_part(store, digest, party), part)
    if part == TOP:
        return adapter.named_top(code, plan.code, federation.training), joined({part: arrays})
    return adapter.bottom(code, plan.code, party, federation.training), arrays


def _activations(store: Store, plan: Plan, party: str, held: Held, arrays: Arrays) -> list[Array]:
    """Return the activations of a party's test rows, batch by batch; none without features."""
    bottom = parts_of(store, plan, party).bottom
    if bottom is None or held.x is None:
        return []
    bottom.begin(part_of(arrays, bottom_name(party)), None, seed=0, rate=0.0)
    return [bottom.infer(held.x[rows]) for _, rows in test_batches(plan.federation, held.parts["test"])]


def _received(
    meeting: Meeting, plan: Plan, party: str, name: str, held: Held, row: tuple[int, ...], end: float
) -> list[Array]:  # fmt: skip
    """Return the activations of another party, batch by batch, if they come before the end of the wait."""
    cut, enrolled, found = plan.federation.split, read_enrolled(meeting.store), []
    assert cut is not None
    seal, reason = _seal(meeting, party, name), ""
    for number, rows in test_batches(plan.federation, held.parts["test"]):
        look = partial(take, meeting, "test", number, name, party, like(len(rows), row, cut.exchange), enrolled, seal)
        while (arrays := look()) is None and time.monotonic() < end and not reason:
            time.sleep(_LOOK)
            reason = reason_of(meeting, name, enrolled)
        if arrays is None:
            why = f": {reason}" if reason else ""
            raise DroppedError(f"{name} has not sent its activations of the test rows{why}")
        found.append(unpacked(arrays, f"activations of the test rows from {name}"))
    return found


def _seal(meeting: Meeting, party: str, other: str) -> Seal | None:
    """Return the seal between two parties, which published their keys in the training; None without identities."""
    exchange, enrolled = exchange_of(meeting, party), read_enrolled(meeting.store)
    if exchange is None:
        return None
    seal = take_seal(meeting, other, exchange, enrolled) if other in enrolled.learners else None
    if seal is None:
        raise DroppedError(f"{other} has not published its key of the exchange")
    return seal
