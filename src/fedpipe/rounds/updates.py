"""Updates: published once by a learner, checked and collected by the coordinator."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedpipe.errors import (
    DroppedError,
    NotFoundError,
    WeightsError,
)
from fedpipe.identity.enrolment import Enrolled, read_enrolled
from fedpipe.identity.statements import check_signed
from fedpipe.rounds.claims import Claims
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import LARGEST, MOST_METRICS, Dropped, Record, Tested, Update, bounded
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.received import Source, check_printable, guarded, receive, usable
from fedpipe.rounds.roll import Roll, gather, is_of_try, publish_answer
from fedpipe.store import Store, keys
from fedpipe.store.objects import fetch_file
from fedpipe.weights import Layout, check_finite, fetch_from, read_layout, stream

log = logging.getLogger("fedpipe")


def fetch_weights(
    store: Store, digest: str, layout: Layout, path: Path, owner: str = "", kind: keys.Kind = "objects", run: str = ""
) -> None:
    """Fetch another party's weights to a file, if their size is the model's, and check them tensor by tensor.

    Args:
        store: the federation's store.
        digest: of the weights.
        layout: of the model.
        path: of the file.
        owner: the learner that made them; empty for aggregated weights.
        kind: the folder in which that learner keeps them.
        run: the run that reads them.

    Raises:
        WeightsError: they do not fit the model, are not finite, or the store refuses to give them.
        CorruptError: the bytes have another digest.
        NotFoundError: they are missing.
    """
    source = Source(store, run, keys.content(digest, owner, kind), "update")
    try:
        size = guarded(source, lambda: store.size(source.key))
        if size is None:
            raise NotFoundError("the weights are not in the store")
        if size != layout.size:
            raise WeightsError(
                f"the update does not fit the model: it has {size} bytes where the model has {layout.size}"
            )
        guarded(source, lambda: fetch_file(store, digest, path, owner, kind, limit=layout.size))
        if not path.exists():
            raise NotFoundError("the weights were removed while they were read")
    except DroppedError as error:
        raise WeightsError(error.what) from error
    with path.open("rb") as file:
        fetch = fetch_from(file)
        if difference := layout.difference(read_layout(fetch, layout.size, layout)):
            raise WeightsError(f"the update does not fit the model: {difference}")
        for name, array in stream(fetch, layout.size, layout):
            check_finite({name: array})


def publish_update(store: Store, update: Update) -> Update:
    """Write an update's manifest unless there is one, and return the stored one."""
    return publish_answer(_source(store, update.learner, update.run, update.round), update)


def _source(store: Store, learner: str, run: str, number: int) -> Source:
    return Source(store, run, keys.update(learner, run, number), "update")


def find_update(store: Store, learner: str, run: str, number: int) -> Update | None:
    """Return a learner's manifest for a round, or None. Raises DroppedError."""
    return receive(_source(store, learner, run, number), Update)


def own_update(store: Store, learner: str, run: str, number: int) -> Update | None:
    """Return this learner's manifest for a round; None also if it cannot be used, so that it trains again."""
    return usable(_source(store, learner, run, number), Update, learner=learner, run=run, round=number)


def find_part(store: Store, plan: Plan, learner: str, number: int, base: str) -> Update | Dropped | None:
    """Return a learner's update, or its absence from a committed round; None when it still has to train.

    A learner that was dropped from a committed round must not train for it again. The result would not be used, but a
    private training would spend budget.
    """
    update = own_update(store, learner, plan.run, number)
    if update is not None and is_of_try(update, plan.definition.digest, base):
        return update
    record = read_record(store, plan.run, number)
    return next((d for d in record.dropped if d.learner == learner), None) if record else None


def check_update(
    update: Update, *, federation: str, run: str, number: int, learner: str, base: str, plan: str | None = None
) -> None:
    """Check that a manifest belongs to this round, that its numbers are finite, and that its names can be shown.

    Raises:
        DroppedError: the reason why the learner is dropped.
    """
    expected = {"federation": federation, "run": run, "round": number, "learner": learner, "base": base}
    for name, value in expected.items():
        if getattr(update, name) != value:
            raise DroppedError(f"the update's {name} is {getattr(update, name)}, the round's is {value}")
    if None not in (update.plan, plan) and update.plan != plan:
        raise DroppedError("the update belongs to an earlier try of the run, with other settings")
    numbers = [*update.metrics.values(), *(update.tested.metrics.values() if update.tested else ())]
    if not all(abs(v) <= LARGEST for v in numbers):
        raise DroppedError("a metric of the update is not finite, or too large")
    check_printable("update", [*update.metrics, *(update.tested.metrics if update.tested else ())])


def read_valid(store: Store, plan: Plan, previous: Record, enrolled: Enrolled, learner: str) -> Update | None:
    """Return a learner's update if it belongs to the next round, is signed, and claims no more than it has.

    Raises:
        DroppedError: the reason why the learner is dropped.
    """
    number = previous.round + 1
    update = find_update(store, learner, plan.run, number)
    if update is not None:
        check_update(
            update, federation=plan.federation.name, run=plan.run, number=number, learner=learner,
            base=previous.weights, plan=previous.plan,
        )  # fmt: skip
        _check_entitled(update, plan, enrolled)
    return update


def _check_entitled(update: Update, plan: Plan, enrolled: Enrolled) -> None:
    """Check that an enrolled learner signed an update, and that it claims no more than it has. Raises DroppedError."""
    check_signed(update, enrolled)
    Claims.of(plan, enrolled).check_update(update)


def find_offered(
    store: Store, plan: Plan, previous: Record, enrolled: Enrolled, learner: str, size: int, kind: keys.Kind
) -> Update | None:
    """Return a learner's update for the next round if it is valid and its weights are there, with this size."""
    try:
        update = read_valid(store, plan, previous, enrolled, learner)
        if update is None or update.size != size:
            return None
        source = Source(store, plan.run, keys.content(update.weights, learner, kind), "update")
        return update if guarded(source, lambda: store.size(source.key)) == size else None
    except DroppedError as error:
        log.warning("round %d: the update of %s does not count: %s", previous.round + 1, learner, error.what)
        return None


def collect(
    store: Store, plan: Plan, previous: Record, roll: Roll, offered: Mapping[str, Update] = {}
) -> tuple[list[Update], list[Dropped]]:
    """Return the valid updates of the next round and the learners without one, both sorted by name.

    Args:
        store: the federation's store.
        plan: the run's plan.
        previous: the record of the round before.
        roll: the learners whose answers count.
        offered: updates that were read and checked already, by an earlier enrolment.
    """
    enrolled = read_enrolled(store)

    def read(learner: str) -> Update | None:
        update = offered.get(learner)
        if update is None:
            return read_valid(store, plan, previous, enrolled, learner)
        _check_entitled(update, plan, enrolled)  # its learner may have been revoked meanwhile
        return update

    return gather(store, plan.run, previous.round + 1, roll, read, name="dropped", otherwise="no update")


def mean_metrics(updates: list[Update]) -> dict[str, float]:
    """Return the means of the updates' metrics, weighted by examples: sums first, then divided.

    Private trainings report no metrics. Of the other updates, only metrics that most of them have count, so that no
    single learner takes a metric from the others.
    """
    return _mean_of([u for u in updates if u.metrics])


def mean_tested(tests: Iterable[Tested | None]) -> dict[str, float]:
    """Return the means of test results, weighted by examples; only metrics that most of them have."""
    return _mean_of([test for test in tests if test])


def _mean_of(measured: Sequence[Update | Tested]) -> dict[str, float]:
    counts = Counter(name for m in measured for name in m.metrics)
    names = sorted(name for name, count in counts.items() if 2 * count > len(measured))[:MOST_METRICS]
    return bounded({name: _mean(name, [m for m in measured if name in m.metrics]) for name in names})


def _mean(name: str, measured: Sequence[Update | Tested]) -> float:
    return math.fsum(m.metrics[name] * m.examples for m in measured) / sum(m.examples for m in measured)
