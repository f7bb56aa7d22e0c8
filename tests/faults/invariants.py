"""Invariants that must hold after every fault."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from fedpipe.rounds.ballots import publish_ballot
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.closing import close_round, close_vote, proposal_of
from fedpipe.rounds.history import commit, history, precedes, read_head, read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.roll import Roll
from fedpipe.rounds.updates import publish_update
from fedpipe.store import MemoryStore, Store
from fedpipe.store.objects import encode, fetch_file, put_file
from tests.federations import fresh

Replay = Callable[[Store, Plan, Record], Record]
"""Plays a round again in a store that holds what its record names."""


def check(store: Store, plan: Plan, *, rounds: int, replay: Replay | None = None) -> list[Record]:
    """All invariants of a run that has come to its end.

    HEAD is one chain without gap or fork; every update counts once; no round is below the quorum; and a replay of what
    the records name gives the very bytes of the records.
    """
    records = history(store, plan.run)
    assert [record.round for record in records] == list(range(rounds + 1)), "the chain has a gap"
    _check_head(store, records)
    for record in records[1:]:
        _check_round(plan, record, records[record.round - 1])
    _check_replay(store, plan, records, replay or _replayed)
    return records


def _check_head(store: Store, records: list[Record]) -> None:
    found = read_head(store)
    accepted = [record for record in records if record.accepted and record.round]
    if not accepted:
        assert found is None, "HEAD is untrained"
        return
    assert found is not None
    assert found[0].ref == accepted[-1].ref, "HEAD is not the last accepted round"
    assert all(precedes(store, record.ref, found[0].ref) for record in records if record.accepted), "a fork"


def _check_round(plan: Plan, record: Record, previous: Record) -> None:
    federation = plan.federation
    assert record.base == previous.weights
    names = [update.learner for update in record.updates]
    assert len(names) == len(set(names)), "an update counts twice"
    assert not set(names) & {item.learner for item in record.dropped} or federation.proposers
    assert all((u.run, u.round, u.base) == (plan.run, record.round, record.base) for u in record.updates)
    if federation.proposers:
        assert len(names) <= 1
    else:
        assert len(names) >= federation.min_learners, "a round below the quorum"
    if record.outcome:
        assert len(record.ballots) >= federation.min_learners, "a vote below the quorum"


def _check_replay(store: Store, plan: Plan, records: list[Record], replay: Replay) -> None:
    """A store with nothing but what the records name, and the same functions: the same bytes."""
    again = MemoryStore()
    with tempfile.TemporaryDirectory() as folder:
        for record in records:
            if not record.round:
                assert encode(begin(again, plan, fresh)) == encode(record)
                continue
            kind = "proposals" if plan.federation.proposers else "objects"
            for update in record.updates:
                publish_update(again, update)
                if _spoiled(record):
                    continue
                path = Path(folder) / "weights"
                fetch_file(store, update.weights, path, update.learner, kind)
                put_file(again, path, update.weights, update.learner, kind)
            for ballot in record.ballots:
                publish_ballot(again, ballot)
            made = replay(again, plan, record)
            if _spoiled(record):  # how it was spoiled is not in the record, only what was found
                made = msgspec.structs.replace(made, dropped=record.dropped)
            assert encode(made) == encode(record), f"round {record.round} replays otherwise"


def _spoiled(record: Record) -> bool:
    """Whether voters accepted a proposal whose bytes were spoiled before they could be adopted."""
    return bool(record.proposer and record.candidate and record.dropped)


def _replayed(again: Store, plan: Plan, record: Record) -> Record:
    names = tuple(learner.name for learner in plan.federation.learners)
    dropped = {item.learner: item.why for item in record.dropped if not _spoiled(record)}
    assert record.base
    if not plan.federation.proposers:
        part = tuple(update.learner for update in record.updates)
        made = close_round(again, plan, record.round, record.base, Roll(part, excused=dropped))
        if not plan.federation.vote:
            return made
        assert made.round == record.round
    else:
        previous = read_record(again, plan.run, record.round - 1)
        assert previous
        made = proposal_of(again, plan, previous, Roll((), excused=dropped))
    _vote_again(again, plan, record, made, names)
    found = read_record(again, plan.run, record.round)
    assert found is not None
    return found


def _vote_again(again: Store, plan: Plan, record: Record, made: Record, names: tuple[str, ...]) -> None:
    previous = read_record(again, plan.run, record.round - 1)
    assert previous
    if plan.federation.proposers and made.candidate is None:
        commit(again, made)
        return
    absent = {item.learner: item.why for item in record.absent}
    candidate = msgspec.structs.replace(made, candidate=made.candidate or made.weights)
    close_vote(again, plan, previous, candidate, Roll(names, excused=absent))
