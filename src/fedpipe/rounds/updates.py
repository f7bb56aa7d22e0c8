"""Updates: published once by a learner, checked and collected by the coordinator."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from fedpipe.errors import (
    DroppedError,
    NotFoundError,
    WeightsError,
)
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.statements import check_signed, signed
from fedpipe.rounds.claims import Claims
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Dropped, Tested, Update
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.roll import MANIFEST, Roll, gather, is_of_try, publish_answer
from fedpipe.store import Store, keys
from fedpipe.store.objects import fetch_file, find
from fedpipe.weights import Layout, check_finite, fetch_from, read_layout, stream

__all__ = [
    "check_signed", "check_update", "collect", "fetch_weights", "find_part", "find_update", "mean_metrics",
    "mean_tested", "publish_update", "signed",
]  # fmt: skip


def fetch_weights(
    store: Store, digest: str, layout: Layout, path: Path, owner: str = "", kind: keys.Kind = "objects"
) -> None:
    """Fetch another party's weights to a file, if their size is the model's, and check them tensor by tensor.

    Args:
        store: the federation's store.
        digest: of the weights.
        layout: of the model.
        path: of the file.
        owner: the learner that made them; empty for aggregated weights.
        kind: the folder in which that learner keeps them.

    Raises:
        WeightsError: they do not fit the model, or are not finite.
        CorruptError: the bytes have another digest.
        NotFoundError: they are missing.
    """
    size = store.size(keys.content(digest, owner, kind))
    if size is None:
        raise NotFoundError("the weights are not in the store")
    if size != layout.size:
        raise WeightsError(f"the update does not fit the model: it has {size} bytes where the model has {layout.size}")
    fetch_file(store, digest, path, owner, kind)
    with path.open("rb") as file:
        fetch = fetch_from(file)
        if difference := layout.difference(read_layout(fetch, layout.size)):
            raise WeightsError(f"the update does not fit the model: {difference}")
        for name, array in stream(fetch, layout.size):
            check_finite({name: array})


def publish_update(store: Store, update: Update) -> Update:
    """Write an update's manifest unless there is one, and return the stored one."""
    return publish_answer(store, keys.update(update.learner, update.run, update.round), update)


def find_update(store: Store, learner: str, run: str, number: int) -> Update | None:
    """Return a learner's manifest for a round, or None. Raises CorruptError."""
    return find(store, keys.update(learner, run, number), Update, limit=MANIFEST)


def find_part(store: Store, plan: Plan, learner: str, number: int, base: str) -> Update | Dropped | None:
    """Return a learner's update, or its absence from a committed round; None when it still has to train.

    A learner that was dropped from a committed round must not train for it again. The result would not be used, but a
    private training would spend budget.
    """
    update = find_update(store, learner, plan.run, number)
    if update is not None and is_of_try(update, plan.definition.digest, base):
        return update
    record = read_record(store, plan.run, number)
    return next((d for d in record.dropped if d.learner == learner), None) if record else None


def check_update(
    update: Update, *, federation: str, run: str, number: int, learner: str, base: str, plan: str | None = None
) -> None:
    """Check that a manifest belongs to this round and that its numbers are finite.

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
    if not all(math.isfinite(v) for v in numbers):
        raise DroppedError("a metric of the update is NaN or infinite")


def collect(
    store: Store, *, federation: str, run: str, number: int, base: str, roll: Roll, plan: str | None = None,
    of: Plan | None = None,
) -> tuple[list[Update], list[Dropped]]:  # fmt: skip
    """Return the valid updates of a round and the learners without one, both sorted by name.

    `plan` is the digest of the run's definition; with `of`, its plan, numbers of examples are checked too.
    """
    enrolled = read_enrolled(store)
    claims = Claims(of.sizes, enrolled) if of else None

    def read(learner: str) -> Update | None:
        update = find_update(store, learner, run, number)
        if update is not None:
            check_update(update, federation=federation, run=run, number=number, learner=learner, base=base, plan=plan)
            check_signed(update, enrolled)
            if claims:
                claims.check_update(update)
        return update

    return gather(store, run, number, roll, read, name="dropped", otherwise="no update")


def mean_metrics(updates: list[Update]) -> dict[str, float]:
    """Return the means of the updates' metrics, weighted by examples: sums first, then divided.

    Private trainings report no metrics. Of the other updates, only metrics that all of them have count.
    """
    return _mean_of([u for u in updates if u.metrics])


def mean_tested(tests: Iterable[Tested | None]) -> dict[str, float]:
    """Return the means of test results, weighted by examples; only metrics that all of them have."""
    return _mean_of([test for test in tests if test])


def _mean_of(measured: Sequence[Update | Tested]) -> dict[str, float]:
    names = set.intersection(*(set(m.metrics) for m in measured)) if measured else set()
    total = sum(m.examples for m in measured)
    return {n: math.fsum(m.metrics[n] * m.examples for m in measured) / total for n in sorted(names)}
