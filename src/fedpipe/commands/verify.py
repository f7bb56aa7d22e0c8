"""Verifies a run: recomputes its secure sums, or checks the statements of parties about their common rows."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import NamedTuple

from fedpipe.commands.opened import StoreGiven, check_runs, open_federation
from fedpipe.errors import CorruptError, DroppedError, InputError
from fedpipe.federation.sources import Source
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.statements import check_signed
from fedpipe.rounds.aligned import contradiction
from fedpipe.rounds.history import history
from fedpipe.rounds.manifests import Aligned
from fedpipe.rounds.plan import Plan, current_plan
from fedpipe.rounds.verification import flaw_of_round
from fedpipe.store import Store


class VerifiedRound(NamedTuple):
    """A round whose sum was recomputed, bit for bit: its number, its members, and the digest of its weights."""

    round: int
    learners: int
    weights: str


class VerifiedRows(NamedTuple):
    """A party's rows, as it stated them: how many it has, how many are common to all, and how many are dropped."""

    learner: str
    rows: int
    common: int
    dropped: int


def verify(source: Source, run: str, *, store: StoreGiven = None) -> list[VerifiedRound] | list[VerifiedRows]:
    """Recomputes the secure sums of a run, bit for bit, from what its records name.

    Where the parties of a cut network found their common rows, it checks their signed statements instead.

    Args:
        source: the federation file, or its content.
        run: the run's name, or its start.
        store: a store to use instead of the federation's.

    Raises:
        NotFoundError: there is no such run.
        InputError: the run has neither secure sums nor common rows.
        CorruptError: a round does not follow from its parts, or the parties contradict each other.
        StoreError: an object cannot be read.
    """
    opened, _ = open_federation(source, store)
    (run,) = check_runs(opened, [run])
    records = history(opened, run)
    plan = current_plan(opened, run, records[0].plan)
    if found := next((record.aligned for record in records if record.aligned), None):
        return _verified_rows(opened, plan, found)
    verified = []
    for previous, record in itertools.pairwise(records):
        if not record.secure:
            continue
        with tempfile.TemporaryDirectory() as folder:
            flaw = flaw_of_round(opened, plan, previous, record, Path(folder))
        if flaw:
            raise CorruptError(
                f"round {record.round} cannot be verified: {flaw}",
                where=opened.uri,
                remedy="Do not use this model. `fedpipe repair` shows what can be restored.",
            )
        verified.append(VerifiedRound(record.round, len(record.secure.learners), record.weights))
    if not verified:
        raise InputError(
            f"run {run!r} has no secure sums to verify, and no common rows", where=opened.uri,
            remedy="Add algorithm.secure to the file, or algorithm.align for a cut network.",
        )  # fmt: skip
    return verified


def _verified_rows(store: Store, plan: Plan, found: tuple[Aligned, ...]) -> list[VerifiedRows]:
    enrolled = read_enrolled(store)
    what = contradiction({one.learner: one for one in found})
    for one in found:
        try:
            check_signed(one, enrolled)
        except DroppedError as error:
            what = what or f"{one.learner}: {error.what}"
        if (one.run, one.federation) != (plan.run, plan.federation.name):
            what = what or f"the statement of {one.learner} belongs to another run"
    if what:
        raise CorruptError(
            f"the common rows cannot be verified: {what}", where=store.uri, remedy="Do not use this model."
        )
    return [VerifiedRows(one.learner, one.rows, one.common, one.dropped) for one in found]
