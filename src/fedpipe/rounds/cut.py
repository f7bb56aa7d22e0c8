"""Close a round of split learning: the record names the part of every party.

The global weights of a run hold the digest of each party's object and no numbers of the network. So HEAD moves as ever,
and a part stays with its party and those whom the party lets read it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
from msgspec import UNSET, UnsetType

from fedpipe import weights
from fedpipe.errors import CorruptError, DroppedError
from fedpipe.identity.enrolment import Enrolled
from fedpipe.rounds.aligned import all_aligned
from fedpipe.rounds.history import commit, read_record
from fedpipe.rounds.manifests import Aligned, Record, Update
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.received import Source, guarded
from fedpipe.rounds.roll import Roll, check_quorum
from fedpipe.rounds.updates import collect, read_valid
from fedpipe.store import Store, keys
from fedpipe.store.objects import get_bytes, put_bytes
from fedpipe.weights import Array

log = logging.getLogger("fedpipe")
RULE = "split"
"""The rule in the records of split learning."""


def index_of(digests: Mapping[str, str]) -> dict[str, Array]:
    """Return the global weights of a run: the digest of each party's object, as 32 numbers.

    >>> index_of({"alice": "sha256:" + "0f" * 32})["alice"][:3]
    array([15, 15, 15], dtype=uint8)
    """
    return {party: np.frombuffer(bytes.fromhex(digest[7:]), np.uint8) for party, digest in digests.items()}


def read_digests(store: Store, digest: str) -> dict[str, str]:
    """Return the digest of each party's object, from the digest of the global weights. Raises CorruptError."""
    found = {}
    for party, numbers in weights.loads(get_bytes(store, digest)).items():
        if (numbers.dtype, numbers.shape) != (np.dtype(np.uint8), (32,)):
            raise CorruptError(f"the global weights have no digest for {party!r}")
        found[party] = f"sha256:{numbers.tobytes().hex()}"
    return found


def close_cut(store: Store, plan: Plan, previous: Record, roll: Roll) -> Record:
    """Commit a round of split learning, which needs the parts of all parties.

    Args:
        store: the federation's store.
        plan: the run's plan.
        previous: the record of the round before.
        roll: the parties that the round asked.

    Raises:
        QuorumError: a party has left no part; nothing is committed.
    """
    number, federation = previous.round + 1, plan.federation
    if found := read_record(store, plan.run, number):
        log.info("round %d is already committed", number)
        return commit(store, found)
    updates, dropped = collect(store, plan, previous, roll)
    check_quorum(number, len(updates), dropped, federation.min_learners, all_needed=True)
    assert federation.split is not None
    labels = next(update for update in updates if update.learner == federation.split.label_party)
    index = index_of({update.learner: update.weights for update in updates})
    record = Record(
        format=plan.format,
        federation=federation.name, run=plan.run, round=number, previous=previous.parent, plan=previous.plan,
        base=previous.weights, weights=put_bytes(store, weights.dumps(index)), layout=previous.layout, rule=RULE,
        updates=tuple(updates), metrics=dict(labels.metrics), aligned=_aligned(store, plan, previous),
    )  # fmt: skip
    return commit(store, record)


def _aligned(store: Store, plan: Plan, previous: Record) -> tuple[Aligned, ...] | UnsetType:
    assert plan.federation.split is not None
    if previous.round or plan.federation.split.align == "same":
        return UNSET
    return all_aligned(store, plan, previous.weights)


def is_joined(store: Store, plan: Plan, previous: Record, enrolled: Enrolled, party: str) -> bool:
    """Return whether a party has left a valid part for the next round."""
    try:
        update = read_valid(store, plan, previous, enrolled, party)
        return update is not None and _is_there(store, plan.run, update)
    except DroppedError as error:
        log.warning("round %d: the part of %s does not count: %s", previous.round + 1, party, error.what)
        return False


def _is_there(store: Store, run: str, update: Update) -> bool:
    source = Source(store, run, keys.content(update.weights, update.learner), "update")
    return guarded(source, lambda: store.size(source.key)) == update.size
