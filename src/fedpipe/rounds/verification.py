"""Recompute a secure round from what its record names, and from nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedpipe.errors import CorruptError, FedpipeError, NotFoundError, StoreUnavailableError
from fedpipe.rounds.history import record_layout
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.secure_lists import LIST
from fedpipe.rounds.secure_sums import SecureClosing
from fedpipe.secure.messages import Bundle, Members, Reveals
from fedpipe.store import Store, keys, open_store
from fedpipe.store.objects import canonical, decode, fetch_file, get_bytes, put_file


def recomputed(store: Store, plan: Plan, previous: Record, record: Record, folder: Path) -> Record:
    """Return the record of a secure round, computed again in an empty store from lists and masked vectors.

    Args:
        store: the federation's store, which is only read.
        plan: the run's plan.
        previous: the record of the round before.
        record: of the round.
        folder: an empty one.

    Raises:
        CorruptError: a list or a vector has changed.
        StoreError: one is missing.
        RoundError: they give no sum.
    """
    assert record.secure
    bundle = decode(get_bytes(store, record.secure.keys, limit=LIST), Bundle, where="keys")
    members = decode(get_bytes(store, record.secure.members, limit=LIST), Members, where="members")
    reveals = decode(get_bytes(store, record.secure.reveals, limit=LIST), Reveals, where="reveals")
    empty = open_store(f"file://{folder / 'store'}")
    for number, (digest, owner, kind) in enumerate(_needed(previous, members)):
        path = folder / str(number)
        fetch_file(store, digest, path, owner, kind)
        put_file(empty, path, digest, owner, kind)
        path.unlink()
    closing = SecureClosing(empty, plan, previous, record_layout(empty, previous), members.session)
    return closing.summed(bundle, members, reveals)


def _needed(previous: Record, members: Members) -> Iterator[tuple[str, str | None, keys.Kind]]:
    yield previous.weights, None, "objects"
    for digest in previous.state.values():
        yield digest, None, "coordinator"
    for learner, digest in members.vectors.items():
        yield digest, learner, "objects"


def flaw_of_round(store: Store, plan: Plan, previous: Record, record: Record, folder: Path) -> str:
    """Return why a secure round does not follow from its parts; empty if it does, to the last bit.

    Raises:
        NotFoundError: an object is missing, for instance because it was pruned.
        StoreUnavailableError: the store does not answer.
    """
    try:
        found = recomputed(store, plan, previous, record, folder)
    except (NotFoundError, StoreUnavailableError):
        raise
    except CorruptError as error:
        return f"an object has changed: {error.what}"
    except FedpipeError as error:
        return error.what
    if found.weights != record.weights:
        return f"its parts give the weights {found.weights}, not {record.weights}"
    return "" if canonical(found) == canonical(record) else "its parts give another record"
