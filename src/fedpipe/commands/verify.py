"""Verifies the secure sums of a run: recomputes each from the masked vectors and the revealed secrets."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import NamedTuple

from fedpipe.commands.opened import StoreGiven, check_runs, open_federation
from fedpipe.errors import CorruptError, InputError
from fedpipe.federation.sources import Source
from fedpipe.rounds.history import history
from fedpipe.rounds.plan import current_plan
from fedpipe.rounds.verification import flaw_of_round


class VerifiedRound(NamedTuple):
    """A round whose sum was recomputed, bit for bit: its number, its members, and the digest of its weights."""

    round: int
    learners: int
    weights: str


def verify(source: Source, run: str, *, store: StoreGiven = None) -> list[VerifiedRound]:
    """Recomputes the secure sums of a run, bit for bit, from what its records name.

    Args:
        source: the federation file, or its content.
        run: the run's name, or its start.
        store: a store to use instead of the federation's.

    Raises:
        NotFoundError: there is no such run.
        InputError: the run has no secure sums.
        CorruptError: a round does not follow from its parts.
        StoreError: an object cannot be read.
    """
    opened, _ = open_federation(source, store)
    (run,) = check_runs(opened, [run])
    records = history(opened, run)
    plan = current_plan(opened, run, records[0].plan)
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
            f"run {run!r} has no secure sums to verify", where=opened.uri, remedy="Add algorithm.secure to the file."
        )
    return verified
