"""Begin a run: make its plan, and round 0 with fresh weights or those of HEAD."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from fedpipe import weights
from fedpipe.errors import InputError, ModelError
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import split_code
from fedpipe.rounds.history import commit, read_head, read_record
from fedpipe.rounds.manifests import Head, Record
from fedpipe.rounds.plan import Plan, Port, Shards, differences, read_plan
from fedpipe.store import Store
from fedpipe.store.objects import digest_of, fetch_file, put_file
from fedpipe.weights import Array, Layout

log = logging.getLogger("fedpipe")


def make_plan(run: str, federation: Federation, code: str, shards: Shards, inputs: tuple[Port, ...] = ()) -> Plan:
    """Return the plan of a run. It does not depend on the store, the folders and the rounds per step.

    Args:
        run: its name.
        federation: with its run-time settings.
        code: the text of the user's file.
        shards: digests of the learners' shards and of the central test set.
        inputs: arrays of the features in them.
    """
    file, function = split_code(federation.model)
    local = msgspec.structs.replace(
        federation,
        store="store",
        model=f"{Path(file).name}:{function}",
        data=msgspec.structs.replace(federation.data, uri=re.sub(r".*/", "", federation.data.uri)),
        training=msgspec.structs.replace(federation.training, rounds_per_step="all"),
    )
    return Plan(
        run=run, federation=local, code=digest_of(code.encode()), function=function,
        shards=shards.learners, test=shards.test or None, inputs=inputs,
    )  # fmt: skip


def begin(store: Store, plan: Plan, initial: Callable[[], dict[str, Array]], schema: str = "") -> Record:
    """Commit round 0 with fresh weights or those of HEAD.

    Args:
        store: the federation's store.
        plan: the run's plan.
        initial: makes fresh weights; their layout must be HEAD's when the run continues from there.
        schema: digest of the schema of the run's table; empty without one.

    Raises:
        InputError: the run's name was used with another plan; the message says what changed.
        ModelError: HEAD's weights do not fit the model.
    """
    if found := read_record(store, plan.run, 0):
        _check_same(store, plan, found)
        return commit(store, found)
    digest = plan.put(store)
    fresh = initial()
    layout = weights.layout_of(fresh)
    current = read_head(store)
    head = current[0] if current else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        if head is not None and plan.federation.training.start == "head":
            _check_fits(store, head, layout, path)
            first = head.weights
            log.info("run %s continues from round %d of run %s", plan.run, head.round, head.run)
        else:
            first = weights.save(fresh, path)
            put_file(store, path, first)
    record = Record(
        federation=plan.federation.name, run=plan.run, round=0, previous=head.ref if head else None, plan=digest,
        base=head.weights if head else None, weights=first, layout=digest_of(weights.head_bytes(layout)),
        schema=schema or msgspec.UNSET,
    )  # fmt: skip
    return commit(store, record)


def _check_same(store: Store, plan: Plan, found: Record) -> None:
    if found.plan == plan.digest:
        return
    changed = differences(read_plan(store, found.plan), plan)
    raise InputError(
        f"run {plan.run!r} was made with other settings ({'; '.join(changed[:5])})",
        remedy="Choose another run name: it continues from HEAD. Or restore the settings to resume this one.",
    )


def _check_fits(store: Store, head: Head, layout: Layout, path: Path) -> None:
    fetch_file(store, head.weights, path)
    with path.open("rb") as file:
        difference = layout.difference(weights.read_layout(weights.fetch_from(file), path.stat().st_size))
    if difference:
        raise ModelError(
            f"the weights at HEAD do not fit the model: {difference}",
            remedy="Restore the model, set training.start to fresh, or rename the federation.",
        )
