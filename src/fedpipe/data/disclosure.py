"""Writes the statistics that learners disclose, and the schema of a run, once to the store."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fedpipe.data.schema import Schema
from fedpipe.data.settling import settle
from fedpipe.data.statistics import LARGEST_REPORT, Report
from fedpipe.errors import CorruptError, InputError, RoundError
from fedpipe.federation.federation import Federation
from fedpipe.rounds.history import read_head, read_record
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.roll import cleaned
from fedpipe.store import Store, keys
from fedpipe.store.objects import decode, digest_of, encode, find, publish

log = logging.getLogger("fedpipe")
LARGEST_SCHEMA = 64 * 2**20
"""Bytes of a schema that are read."""


def publish_report(store: Store, run: str, report: Report) -> Report:
    """Writes a learner's report unless it exists, and returns the stored one."""
    return publish(store, keys.statistics(report.learner, run), report, limit=LARGEST_REPORT)


def find_report(store: Store, learner: str, run: str) -> Report | None:
    """Returns the report of a learner; None if there is none. One that cannot be read discloses nothing."""
    try:
        found = find(store, keys.statistics(learner, run), Report, limit=LARGEST_REPORT)
    except CorruptError as error:
        return Report(learner=learner, why=f"its statistics cannot be read: {cleaned(error.what)}"[:500])
    if found is not None and found.learner != learner:
        return Report(learner=learner, why="its statistics name another learner")
    return found


def settle_schema(store: Store, federation: Federation, run: str, learners: Sequence[str] = ()) -> Schema | None:
    """Writes the schema of a run once, and returns it: HEAD's if the run continues from there, or the learners'.

    Args:
        store: the federation's store.
        federation: with the settings of its data.
        run: the run's name.
        learners: those whose reports count; all by default.

    Returns:
        None if the features are not a table.

    Raises:
        DataError: the reports and the federation file do not determine the schema.
        InputError: HEAD's schema has other columns than the federation file.
    """
    if not federation.data.is_table:
        return None
    if found := find(store, keys.schema(run), Schema, limit=LARGEST_SCHEMA):
        return found
    schema = schema_of_head(store, federation)
    if schema is None:
        names = learners or [learner.name for learner in federation.learners]
        reports = [report for name in names if (report := find_report(store, name, run))]
        outcome = settle(federation, reports)
        for name, why in sorted(outcome.left_out.items()):
            log.warning("%s is left out of the statistics: %s", name, why)
        schema = outcome.schema
    return publish(store, keys.schema(run), schema, limit=LARGEST_SCHEMA)


def schema_of_head(store: Store, federation: Federation) -> Schema | None:
    """Returns the schema of HEAD's run if a new run continues from there; None for a fresh start.

    Raises:
        InputError: the federation file declares other columns.
    """
    current = read_head(store) if federation.training.start == "head" else None
    begun = read_record(store, current[0].run, 0) if current else None
    if current is None or begun is None or not begun.schema:
        return None
    schema = _read(store, current[0].run, begun.schema)
    kinds, declared = {column.name: column.kind for column in schema.columns}, federation.data.kinds
    if (declared and declared != kinds) or schema.label != federation.data.labels:
        odd = sorted(name for name in declared | kinds if declared.get(name) != kinds.get(name))
        raise InputError(
            f"the data of HEAD have other columns than data.features{f', such as {odd[0]!r}' if odd else ''}",
            where="data.features",
            remedy="Restore them, set training.start to fresh, or rename the federation.",
        )
    return schema


def schema_of(store: Store, plan: Plan) -> Schema | None:
    """Returns the schema of a run that has begun, as its round 0 has pinned it; None if it has no table.

    Raises:
        RoundError: the run has not begun.
        CorruptError: the stored schema is not the pinned one.
    """
    if not plan.federation.data.is_table:
        return None
    begun = read_record(store, plan.run, 0)
    if begun is None or not begun.schema:
        raise RoundError(f"run {plan.run!r} has no schema yet: round 0 is not committed")
    return _read(store, plan.run, begun.schema)


def _read(store: Store, run: str, digest: str) -> Schema:
    key = keys.schema(run)
    data = store.read(key, limit=LARGEST_SCHEMA).data
    if digest_of(data) != digest:
        raise CorruptError("the schema is not the one that round 0 names", where=f"{store.uri}/{key}")
    return decode(data, Schema, where=key)


def digest_of_schema(schema: Schema | None) -> str:
    """Returns the digest of a schema; empty without one."""
    return "" if schema is None else digest_of(encode(schema))
