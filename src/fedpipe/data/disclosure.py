"""Writes the statistics that learners disclose, and the schema of a run, to the store."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from msgspec.structs import replace

from fedpipe.data.schema import Schema
from fedpipe.data.settling import settle
from fedpipe.data.statistics import LARGEST_REPORT, MOST_VALUES, Report
from fedpipe.errors import DroppedError, InputError, RoundError
from fedpipe.federation.data import Iid
from fedpipe.federation.federation import Federation
from fedpipe.identity.enrolment import Enrolled, read_enrolled
from fedpipe.identity.statements import check_signed
from fedpipe.rounds.claims import Claims
from fedpipe.rounds.history import read_record, trained_head
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.received import Source, receive, usable
from fedpipe.rounds.releases import Leaving, reason_that_leaves
from fedpipe.store import Store, keys
from fedpipe.store.objects import decode, digest_of, encode, get_bytes, put_bytes

log = logging.getLogger("fedpipe")
LARGEST_SCHEMA = 64 * 2**20
"""Bytes of a schema that are read."""


def basis_of(federation: Federation, name: str, shards: Mapping[str, str]) -> str:
    """Returns the digest of all on which a learner's report depends: its data, and the settings that concern them."""
    data = replace(federation.data, uri="", secret="", shards=Iid())  # a shard's digest stands for both
    origin = federation.learner(name).data or shards.get(name, "")
    return digest_of(encode([data, origin, federation.training.seed, federation.privacy_of(name) is not None]))


def publish_report(store: Store, run: str, report: Report) -> Report:
    """Writes a learner's report, in the place of one that is out of date."""
    store.replace(keys.statistics(report.learner, run), encode(report))
    return report


def find_report(store: Store, learner: str, run: str, basis: str) -> Report | None:
    """Returns the report of a learner on this basis; None if there is none. One that is corrupt discloses nothing."""
    try:
        found = receive(_source(store, learner, run), Report, learner=learner)
    except DroppedError as error:
        return Report(learner=learner, why=f"its statistics cannot be used: {error.what}"[:500])
    return found if found is None or found.basis == basis else None


def own_report(store: Store, learner: str, run: str, basis: str) -> Report | None:
    """Returns this learner's report on this basis; None also if it cannot be used, so that it is made again."""
    found = usable(_source(store, learner, run), Report, learner=learner)
    return found if found is None or found.basis == basis else None


def _source(store: Store, learner: str, run: str) -> Source:
    return Source(store, run, keys.statistics(learner, run), "statistics", LARGEST_REPORT, MOST_VALUES)


def settle_schema(
    store: Store, federation: Federation, run: str, shards: Mapping[str, str], absent: Collection[str] = (),
    sizes: Mapping[str, Mapping[str, int]] | None = None,
) -> Schema | None:  # fmt: skip
    """Returns the schema of a run that begins: HEAD's if it continues from there, or that of the learners' reports.

    Args:
        store: the federation's store.
        federation: with the settings of its data.
        run: the run's name.
        shards: digests of the shards by learner.
        absent: learners whose reports do not count.
        sizes: examples in each part of the shards, by learner.

    Returns:
        None if the features are not a table.

    Raises:
        DataError: the reports and the federation file do not determine the schema.
        InputError: HEAD's schema has other columns than the federation file.
    """
    if not federation.data.is_table:
        return None
    if (schema := schema_of_head(store, federation)) is not None:
        return schema
    names = [learner.name for learner in federation.learners if learner.name not in absent]
    found = {name: find_report(store, name, run, basis_of(federation, name, shards)) for name in names}
    enrolled = read_enrolled(store)
    claims, place = Claims(sizes or {}, enrolled), f"{federation.name}/{run}"
    outcome = settle(federation, [_checked(report, enrolled, claims, place) for report in found.values() if report])
    missing = {name: "it has left no statistics" for name, report in found.items() if report is None}
    for name, why in sorted((outcome.left_out | missing).items()):
        log.warning("%s is left out of the statistics: %s", name, why)
    return outcome.schema


def _checked(report: Report, enrolled: Enrolled, claims: Claims, place: str) -> Report:
    """Returns a report, or the reason why it does not count: its signature, or more examples than there are."""
    try:
        if not report.why:
            check_signed(report, enrolled, place=place)
            claims.check(report.learner, "train", report.examples)
    except DroppedError as error:
        return Report(learner=report.learner, why=error.what)
    return report


def put_schema(store: Store, schema: Schema | None) -> str:
    """Writes a schema and returns its digest; empty without one."""
    return "" if schema is None else put_bytes(store, encode(schema))


def schema_of_head(store: Store, federation: Federation) -> Schema | None:
    """Returns the schema of HEAD's run if a new run continues from there; None for a fresh start.

    Raises:
        InputError: the federation file declares other columns.
    """
    head = trained_head(store) if federation.training.start == "head" else None
    begun = read_record(store, head.run, 0) if head else None
    if begun is None or not begun.schema:
        return None
    schema = _read(store, begun.schema)
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
    """Returns the schema of a run that has begun, which round 0 names; None if it has no table.

    Raises:
        RoundError: the run has not begun.
        CorruptError: the stored schema is not the named one.
    """
    if not plan.federation.data.is_table:
        return None
    begun = read_record(store, plan.run, 0)
    if begun is None or not begun.schema:
        raise RoundError(f"run {plan.run!r} has no schema yet: round 0 is not committed")
    return _read(store, begun.schema)


def _read(store: Store, digest: str) -> Schema:
    return decode(get_bytes(store, digest, limit=LARGEST_SCHEMA), Schema, where=f"schema {digest}")


def released_report(leaves: Leaving, report: Report) -> Report:
    """Returns the statistics that may leave a learner, without values of too few examples."""
    if report.why:
        return replace(report, why=reason_that_leaves(leaves, report.why))
    fewest = leaves.examples

    def enough(counts: Mapping[str, int]) -> dict[str, int]:
        return {name: count for name, count in counts.items() if count >= fewest}

    columns = tuple(replace(column, categories=enough(column.categories)) for column in report.columns)
    return replace(report, columns=columns, classes=enough(report.classes))
