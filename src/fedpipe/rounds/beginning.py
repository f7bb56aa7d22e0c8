"""Begin a run: make its plan, and round 0 with fresh weights or those of HEAD."""

from __future__ import annotations

import itertools
import logging
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from fedpipe import weights
from fedpipe.errors import CorruptError, InputError, ModelError, NotFoundError
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import split_code
from fedpipe.rounds.history import commit, is_settled, read_record, supersede, trained_head
from fedpipe.rounds.manifests import Head, Record
from fedpipe.rounds.plan import Plan, Port, Shards, bare_name, differences, read_plan
from fedpipe.rounds.protocol import check_spoken, common
from fedpipe.store import Store, keys
from fedpipe.store.objects import canonical, digest_of, fetch_file, put_file
from fedpipe.weights import Array, Layout

log = logging.getLogger("fedpipe")


def make_plan(
    run: str, federation: Federation, code: str, shards: Shards, inputs: tuple[Port, ...] = (), *, protocol: int = 0
) -> Plan:  # fmt: skip
    """Return the plan of a run. It does not depend on the store, the folders and the rounds per step.

    Args:
        run: its name.
        federation: with its run-time settings.
        code: the text of the user's file.
        shards: digests of the learners' shards and of the central test set.
        inputs: arrays of the features in them.
        protocol: the number that the run speaks; this version's own by default.
    """
    file, function = split_code(federation.model)
    local = msgspec.structs.replace(
        federation,
        store="store",
        model=f"{Path(file).name}:{function}",
        data=msgspec.structs.replace(federation.data, uri=bare_name(federation.data.uri)),
        training=msgspec.structs.replace(federation.training, rounds_per_step="all"),
    )
    return Plan(
        format=protocol or common(()), run=run, federation=local, code=digest_of(code.encode()), function=function,
        shards=shards.learners, test=shards.test or None, sizes=shards.sizes, inputs=inputs,
    )  # fmt: skip


def begin(store: Store, plan: Plan, initial: Callable[[], dict[str, Array]], schema: Callable[[], str] = str) -> Record:
    """Commit round 0 with fresh weights or those of HEAD, and make this plan that of the run's last try.

    A run of which nothing but round 0 is recorded begins again when its plan or HEAD has changed in the meantime.

    Args:
        store: the federation's store.
        plan: the run's plan.
        initial: makes fresh weights; their layout must be HEAD's when the run continues from there.
        schema: returns the digest of the schema of the run's table, after `initial`; empty without one.

    Raises:
        InputError: rounds of this name were made by another plan; the message says what changed.
        ModelError: HEAD's weights do not fit the model.
        ConflictError: another engine works on a run of this name, with another plan.
    """
    if (resumed := find_begun(store, plan)) is not None:
        return resumed
    earlier, digest = read_record(store, plan.run, 0), plan.definition.put(store)
    fresh = initial()
    layout = weights.layout_of(fresh)
    head = trained_head(store)
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
        format=plan.format,
        federation=plan.federation.name, run=plan.run, round=0, previous=head.ref if head else None, plan=digest,
        base=head.weights if head else None, weights=first, layout=digest_of(weights.head_bytes(layout)),
        schema=schema() or msgspec.UNSET,
    )  # fmt: skip
    begun = commit(store, record) if earlier is None else supersede(store, earlier, record)
    if begun.plan != digest:  # another engine was first
        _check_same(store, plan, begun)
    _put_current(store, plan)
    return begun


def resumes(store: Store, run: str, federation: Federation, code: str) -> bool:
    """Return whether this federation and this text of model.py continue a run, whatever its shards are."""
    found = read_record(store, run, 0)
    if found is None or not is_settled(store, run):
        return True
    try:
        earlier = read_plan(store, found.plan)
    except (CorruptError, NotFoundError):
        return False
    shards = Shards(learners=earlier.shards, test=earlier.test or "", sizes=earlier.sizes)
    return make_plan(run, federation, code, shards, protocol=earlier.format).definition.digest == found.plan


def protocol_of(store: Store, run: str, others: Iterable[int]) -> int:
    """Return the number that a run speaks: that of its start, or one that all known parties speak.

    Args:
        store: the federation's store.
        run: the run's name.
        others: the own numbers of other parties.

    Raises:
        RoundError: the run began with a number that this version does not speak.
    """
    begun = read_record(store, run, 0)
    if begun is None or not is_settled(store, run):
        return common(others)
    check_spoken(begun.format, "the coordinator")
    return begun.format


def find_begun(store: Store, plan: Plan) -> Record | None:
    """Return round 0 of a run that resumes with this plan, now that of its last try; None when the run has to begin.

    Raises:
        InputError: rounds of this name were made by another plan; the message says what changed.
    """
    found = read_record(store, plan.run, 0)
    if found is None:
        return None
    if is_settled(store, plan.run):
        _check_same(store, plan, found)
    else:
        head = trained_head(store)
        if found.plan != plan.definition.digest or found.previous != (head.ref if head else None):
            return None
    _put_current(store, plan)
    return commit(store, found)


def _put_current(store: Store, plan: Plan) -> None:
    """Write the plan of this try; its objects may have been deleted since the last one."""
    plan.put(store)
    plan.definition.put(store)
    key, data = keys.plan(plan.run), canonical(plan)
    blob = store.poll(key)
    if blob is None or blob.data != data:
        store.replace(key, data)


def _check_same(store: Store, plan: Plan, found: Record) -> None:
    definition = plan.definition
    if found.plan == definition.digest:
        return
    changed = differences(read_plan(store, found.plan), definition)
    raise InputError(
        f"run {plan.run!r} was made with other settings ({'; '.join(changed[:5])})",
        remedy=f"Use another run name, such as {free_name(store, plan.run)}: it continues from HEAD. "
        "Or restore the settings to resume this one.",
    )


def free_name(store: Store, run: str) -> str:
    """Return a name like this one that no run has: `run-2` after `run-1`."""
    taken = set(store.below(keys.RUNS).folders()) | {run}
    found = re.fullmatch(r"(.*)-(\d{1,6})", run)
    stem, number = (found[1], int(found[2])) if found else (run, 1)
    return next(name for k in itertools.count(number + 1) if (name := f"{stem[:33]}-{k}") not in taken)


def _check_fits(store: Store, head: Head, layout: Layout, path: Path) -> None:
    fetch_file(store, head.weights, path)
    with path.open("rb") as file:
        difference = layout.difference(weights.read_layout(weights.fetch_from(file), path.stat().st_size))
    if difference:
        raise ModelError(
            f"the weights at HEAD do not fit the model: {difference}",
            remedy="Restore the model, set training.start to fresh, or rename the federation.",
        )
