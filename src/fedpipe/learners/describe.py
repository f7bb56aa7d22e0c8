"""Describe a learner's table before the first round: its statistics leave it, its rows do not."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np
from msgspec.structs import replace

from fedpipe.data.disclosure import basis_of, own_report, publish_report, released_report
from fedpipe.data.examples import Examples
from fedpipe.data.statistics import Report, report_of
from fedpipe.errors import CorruptError, DataError, ModelError, NotFoundError
from fedpipe.federation.federation import Federation
from fedpipe.identity.statements import signed_by
from fedpipe.learners.learner import log
from fedpipe.learners.parts import Part
from fedpipe.learners.reading import raw_parts
from fedpipe.rounds.floors import read_floors
from fedpipe.store import Store


def describe(
    store: Store, federation: Federation, run: str, name: str, shards: Mapping[str, str], module: ModuleType | None
) -> Report:
    """Publish the statistics of a learner's train part, or the reason why there are none.

    Args:
        store: the federation's store.
        federation: with the settings of its data.
        run: the run's name.
        name: the learner.
        shards: digests of the shards by learner.
        module: the user's file, whose `load` may read the data; None without one.
    """
    basis = basis_of(federation, name, shards)
    if found := own_report(store, name, run, basis):
        log.info("the statistics of %s are already there", name)
        return found
    try:
        report = described(federation, name, raw_parts(store, federation, shards, name, module))
    except (DataError, ModelError, CorruptError, NotFoundError, OSError) as error:
        report = Report(learner=name, why=f"its data cannot be read: {error}"[:500])
    if report.why:
        log.warning("%s discloses no statistics: %s", name, report.why)
    leaves = read_floors().leaves
    report = replace(report, basis=basis)
    signed = signed_by(released_report(leaves, report) if leaves else report, name, place=f"{federation.name}/{run}")
    return publish_report(store, run, signed)


def described(federation: Federation, name: str, parts: Mapping[str, Part]) -> Report:
    """Return the report on a learner's train part, as it was read. Raises DataError."""
    part = parts.get("train")
    private = federation.privacy_of(name) is not None
    if not isinstance(part, Examples) or not part.columns:
        raise DataError(
            f"the data of {name} are not a table with columns", remedy="Return columns by name from load of model.py."
        )
    assert isinstance(part.y, np.ndarray)
    return report_of(name, part.x, part.y, part.columns, federation.data.statistics, private=private)
