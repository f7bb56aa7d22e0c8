"""Contribute to a secure sum as a learner: train, mask the update, upload the masked vector."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedpipe.errors import DroppedError
from fedpipe.learners.contribute import budget_of, trained_from
from fedpipe.learners.downloads import fetched
from fedpipe.learners.dropping import LOCAL, left_out
from fedpipe.learners.framework import Arrays
from fedpipe.learners.learner import Learner, Trained, log
from fedpipe.rounds.manifests import Dropped, Tested
from fedpipe.rounds.masked import digest_of_file, largest_examples, vector_of
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.roll import Roll
from fedpipe.secure.masks import Masks
from fedpipe.secure.messages import MOST_METRICS, TEST
from fedpipe.secure.party import Orders
from fedpipe.secure.vector import Counts, scale_of
from fedpipe.store import Store
from fedpipe.store.objects import put_file
from fedpipe.weights import layout_of


class MaskedFile(NamedTuple):
    """The object of a masked vector: its digest, its size, the names of the metrics in it, and the learner's ledger.

    `ledger` is the head of the privacy ledger with this training, whose entry has the number `trainings`.
    """

    digest: str
    size: int
    metrics: tuple[str, ...]
    trainings: int = 0
    ledger: str | None = None


def contribute_masked(
    store: Store, plan: Plan, name: str, number: int, base: str, make_learner: Callable[[], Learner], orders: Orders, *,
    roll: Roll, seconds: float,
) -> MaskedFile | Dropped:  # fmt: skip
    """Train from the base, and upload nothing but the masked vector.

    A learner that cannot take part leaves the reason and is dropped, as in `contribute`. A private training is charged
    to the learner's ledger before its vector is uploaded.

    Args:
        store: the federation's store.
        plan: the run's plan.
        name: the learner.
        number: the round, from 1.
        base: digest of the global weights that the round begins with.
        make_learner: makes the learner, with its data.
        orders: mask the vector; they are used for this vector alone.
        roll: the roll of the round's attempt.
        seconds: the time after which the learner is too late.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            start = fetched(store, base, Path(folder) / "base")
        except LOCAL as error:
            return left_out(store, plan, name, number, error, roll.note("dropped"))
        try:
            learner = make_learner()
            budget = budget_of(store, plan, name, number, learner)
            tested, trained = trained_from(plan, name, number, start, None, learner, seconds)
            path = Path(folder) / "vector"
            metrics = write_masked(plan, start, trained, tested, orders, path)
            made = MaskedFile(digest_of_file(path), path.stat().st_size, metrics)
            if budget is not None:
                assert trained.event is not None
                spent = budget.charge(trained.event, run=plan.run, number=number, weights=made.digest)
                target = spent.target_epsilon
                log.info("round %d: %s has spent epsilon %.4g of %g", number, name, spent.epsilon, target)
                made = made._replace(trainings=spent.events, ledger=budget.head)
        except (Exception, SystemExit) as error:
            return left_out(store, plan, name, number, error, roll.note("dropped"))
        put_file(store, path, made.digest, name)
        return made


def write_masked(
    plan: Plan, start: Arrays, trained: Trained, tested: Tested | None, orders: Orders, path: Path
) -> tuple[str, ...]:
    """Write the object of a masked vector, and return the names of the metrics in it.

    Args:
        plan: the run's plan.
        start: the weights of the base.
        trained: the result of the training.
        tested: the test of the base, if there was one.
        orders: mask the vector.
        path: of the file.

    Raises:
        WeightsError: a weight is NaN or infinite.
        DroppedError: the learner has more examples than any may have.
    """
    secure = plan.federation.secure
    assert secure is not None
    private = any(plan.federation.privacy_of(learner.name) for learner in plan.federation.learners)
    found = {} if private else _leaving(trained.metrics, orders)  # if those of one stay, all must do without
    if tested:
        found |= {f"{TEST}{name}": value for name, value in _leaving(tested.metrics, orders).items()}
    found = dict(list(found.items())[:MOST_METRICS])
    counts = Counts(trained.examples, tested.examples if tested else 0, 0, found)
    vector = vector_of(plan, layout_of(start), tuple(sorted(found)), orders.bound)
    names = [tensor.name for tensor in vector.tensors]
    factor = _weight(plan, trained.examples) * scale_of(start, trained.weights, names, secure.norm)
    random = np.random.Generator(np.random.SFC64(secrets.randbits(128)))
    chunks = vector.encode(start, trained.weights, factor, counts, random)
    with path.open("wb") as file:
        file.write(orders.preamble)
        Masks(orders.terms, vector.grid.width, vector.grid.dtype).write(chunks, file.write)
    return vector.metrics


def _leaving(metrics: Mapping[str, float], orders: Orders) -> dict[str, float]:
    return {name: metrics[name] for name in sorted(metrics) if orders.metrics is None or name in orders.metrics}


def _weight(plan: Plan, examples: int) -> float:
    """Return how much an update counts, relative to the largest one that is possible."""
    largest = largest_examples(plan)
    if not largest:
        return 1.0
    if examples > largest:
        raise DroppedError(
            f"it has {examples} train examples, but its weight is relative to {largest}: raise algorithm.most_examples",
            lasting=True,
        )
    return examples / largest
