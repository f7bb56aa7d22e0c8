"""What a learner does, whatever framework it uses, and how its work becomes an update."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from fedpipe import weights
from fedpipe.errors import CorruptError, DataError, DroppedError, ModelError, NotFoundError
from fedpipe.objects import fetch_file, put_file
from fedpipe.plan import Plan
from fedpipe.rounds import Dropped, Tested, Update, drop, find_update, publish_update
from fedpipe.store import Store

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
log = logging.getLogger("fedpipe")


class Trained(NamedTuple):
    """What training gives: new weights, how many examples they saw, metrics of the last epoch, optimizer state."""

    weights: Arrays
    examples: int
    metrics: dict[str, float]
    optimizer: Arrays | None = None


class Learner(Protocol):
    """A data owner at work. Neither act changes the weights that it is given."""

    def train(self, weights: Arrays, *, seed: int, seconds: float, optimizer: Arrays | None) -> Trained:
        """Trains from these weights on the train part.

        Args:
            weights: the global weights of the round.
            seed: of shuffling and dropout; equal seeds give equal weights.
            seconds: after which the learner is too late.
            optimizer: the state that this learner's last update left; None for a fresh one.

        Raises:
            DroppedError: why this learner cannot take part.
        """

    def test(self, weights: Arrays) -> Tested | None:
        """Tests these weights on the test part; None when that part is empty."""


def seed_of(*parts: object) -> int:
    """A seed of 31 bits from a run's seed, a learner's name, a round: stable on every machine.

    >>> seed_of(0, "hospital-a", 1) == seed_of(0, "hospital-a", 1)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little") >> 1


def contribute(
    store: Store, plan: Plan, name: str, number: int, base: str, make_learner: Callable[[], Learner]
) -> Update | Dropped:
    """A learner's part of a round: train from the base, write the weights, publish the manifest.

    Work that is already published is not repeated. A learner that cannot take part leaves the reason and is dropped;
    only a failing store or a corrupt base is an error, so that the step is tried again.

    Args:
        store: the federation's store.
        plan: the run's plan.
        name: the learner.
        number: the round, from 1.
        base: digest of the global weights that the round begins with.
        make_learner: makes the learner, with its data, when there is work to do.
    """
    if found := find_update(store, name, plan.run, number):
        log.info("round %d: the update of %s is already there", number, name)
        return found
    with tempfile.TemporaryDirectory() as folder:
        start = _fetched(store, base, Path(folder) / "base")
        optimizer = _last_optimizer(store, plan, name, number, Path(folder) / "optimizer")
        try:
            return _offered(store, plan, name, number, base, start, optimizer, make_learner(), Path(folder))
        except (DroppedError, DataError, ModelError, CorruptError, NotFoundError) as error:
            drop(store, name, plan.run, number, error.what)
            log.warning("round %d: %s is dropped: %s", number, name, error.what)
            return Dropped(learner=name, why=error.what)


def _offered(
    store: Store, plan: Plan, name: str, number: int, base: str, start: Arrays, optimizer: Arrays | None,
    learner: Learner, folder: Path,
) -> Update:  # fmt: skip
    federation = plan.federation
    tested = learner.test(start) if federation.evaluation.every_round else None
    trained = learner.train(
        start,
        seed=seed_of(federation.training.seed, name, number),
        seconds=federation.quorum.deadline,
        optimizer=optimizer,
    )
    weights.check_finite(trained.weights)
    digest = weights.save(trained.weights, folder / "weights")
    put_file(store, folder / "weights", digest, name)
    kept = None
    if trained.optimizer is not None:
        kept = weights.save(trained.optimizer, folder / "optimizer")
        put_file(store, folder / "optimizer", kept, name)
    return publish_update(
        store,
        Update(
            federation=federation.name, run=plan.run, round=number, learner=name, base=base, weights=digest,
            size=(folder / "weights").stat().st_size, examples=trained.examples, metrics=trained.metrics,
            tested=tested, optimizer=kept,
        ),
    )  # fmt: skip


def _fetched(store: Store, digest: str, path: Path, owner: str | None = None) -> Arrays:
    fetch_file(store, digest, path, owner)
    arrays = weights.load(path)
    path.unlink()
    return arrays


def _last_optimizer(store: Store, plan: Plan, name: str, number: int, path: Path) -> Arrays | None:
    """The optimizer state of this learner's latest update in the run, when it is to be kept."""
    if plan.federation.training.optimizer == "reset":
        return None
    for earlier in range(number - 1, 0, -1):
        update = find_update(store, name, plan.run, earlier)
        if update is not None and update.optimizer is not None:
            return _fetched(store, update.optimizer, path, name)
    return None
