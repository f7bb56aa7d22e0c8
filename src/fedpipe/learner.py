"""What a learner does, whatever framework it uses, and how its work becomes an update."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy.typing as npt

from fedpipe import weights
from fedpipe.accounting import TrainingEvent
from fedpipe.ballots import find_vote, known_scores, publish_ballot
from fedpipe.enrolment import signed
from fedpipe.errors import (
    BudgetError,
    CorruptError,
    DataError,
    DroppedError,
    FedpipeError,
    ModelError,
    NotFoundError,
)
from fedpipe.manifests import Ballot, Dropped, Scores, Update
from fedpipe.objects import fetch_file, put_file
from fedpipe.plan import Plan
from fedpipe.privacy import Budget
from fedpipe.rounds import ANY_ROLL, Roll, drop, fetch_weights, find_part, find_update, publish_update, read_record
from fedpipe.signing import find_key
from fedpipe.store import Store

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
log = logging.getLogger("fedpipe")


class Trained(NamedTuple):
    """What training gives: new weights, how many examples they saw, metrics of the last epoch, optimizer state.

    `event` is the privacy event that happened; None when the training was not private.
    """

    weights: Arrays
    examples: int
    metrics: dict[str, float]
    optimizer: Arrays | None = None
    event: TrainingEvent | None = None


class Verdict(NamedTuple):
    """What a learner thinks of proposed weights: their scores, and a yes when they are strictly better."""

    scores: Scores
    approve: bool


class Learner(Protocol):
    """A data owner at work. It holds current weights, which `accept_weights` alone changes."""

    @property
    def planned(self) -> TrainingEvent | None:
        """The privacy event of one proposal; None for a learner that trains without differential privacy."""

    def accept_weights(self, weights: Arrays, scores: Scores | None = None) -> Scores:
        """Adopts these weights as the current ones, and scores them.

        Args:
            weights: the shared model's.
            scores: of these weights, when they are known or not wanted: nothing is measured then.

        Returns:
            Scores on the vote and the test part.
        """

    def propose_weights(self, *, seed: int, seconds: float, optimizer: Arrays | None) -> Trained:
        """Trains from the current weights on the train part; the current weights stay what they were.

        Args:
            seed: of shuffling and dropout; equal seeds give equal weights.
            seconds: after which the learner is too late.
            optimizer: the state that this learner's last accepted update left; None for a fresh one.

        Raises:
            DroppedError: why this learner cannot take part.
        """

    def test_weights(self, weights: Arrays) -> Verdict:
        """Scores proposed weights and compares them with the current ones, which stay."""

    def current_model(self, form: Literal["weights", "onnx"] = "weights") -> Arrays | bytes:
        """The current model: its weights by name, or as ONNX bytes."""


def seed_of(*parts: object) -> int:
    """A seed of 31 bits from a run's seed, a learner's name, a round: stable on every machine.

    >>> seed_of(0, "hospital-a", 1) == seed_of(0, "hospital-a", 1)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little") >> 1


def contribute(
    store: Store, plan: Plan, name: str, number: int, base: str, make_learner: Callable[[], Learner], *,
    roll: Roll = ANY_ROLL, seconds: float | None = None,
) -> Update | Dropped:  # fmt: skip
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
        roll: of the round's attempt.
        seconds: until the learner is too late; the deadline by default.
    """
    if found := find_part(store, name, plan.run, number):
        log.info("round %d: what %s did is already there", number, name)
        return found
    with tempfile.TemporaryDirectory() as folder:
        start = _fetched(store, base, Path(folder) / "base")
        optimizer = _last_optimizer(store, plan, name, number, Path(folder) / "optimizer")
        try:
            seconds = plan.federation.quorum.deadline if seconds is None else seconds
            return _offered(store, plan, name, number, base, start, optimizer, make_learner(), Path(folder), seconds)
        except (DroppedError, DataError, ModelError, CorruptError, NotFoundError, OSError) as error:
            dropped = _dropped(name, error)
            drop(store, plan.run, number, dropped, name=roll.note("dropped"))
            log.warning("round %d: %s is dropped: %s", number, name, dropped.why)
            return dropped


def _dropped(name: str, error: FedpipeError | OSError) -> Dropped:
    if isinstance(error, OSError):  # not of the store, whose errors are its own: this machine's disk is full
        return Dropped(learner=name, why=f"the learner's disk cannot be used: {error.strerror}")
    if isinstance(error, BudgetError):
        return Dropped(learner=name, why=error.what, code="DP_BUDGET_EXCEEDED", spent=error.spent)
    return Dropped(learner=name, why=error.what)


def _offered(
    store: Store, plan: Plan, name: str, number: int, base: str, start: Arrays, optimizer: Arrays | None,
    learner: Learner, folder: Path, seconds: float,
) -> Update:  # fmt: skip
    federation = plan.federation
    budget = _budget(store, plan, name, learner)
    wanted = federation.evaluation.every_round and not federation.vote  # a vote scores every candidate anyway
    tested = learner.accept_weights(start, None if wanted else Scores()).test
    trained = learner.propose_weights(
        seed=seed_of(federation.training.seed, name, number),
        seconds=seconds,
        optimizer=optimizer,
    )
    weights.check_finite(trained.weights)
    digest = weights.save(trained.weights, folder / "weights")
    spent = None
    if budget is not None:
        assert trained.event is not None
        spent = budget.charge(trained.event, run=plan.run, number=number, weights=digest)
    put_file(store, folder / "weights", digest, name, "proposals" if federation.proposers else "objects")
    kept = None
    if trained.optimizer is not None:
        kept = weights.save(trained.optimizer, folder / "optimizer")
        put_file(store, folder / "optimizer", kept, name)
    update = Update(
        federation=federation.name, run=plan.run, round=number, learner=name, base=base, weights=digest,
        size=(folder / "weights").stat().st_size, examples=trained.examples, metrics=trained.metrics,
        tested=tested, optimizer=kept, spent=spent,
    )  # fmt: skip
    key = find_key(name)
    return publish_update(store, signed(update, key) if key else update)


def _budget(store: Store, plan: Plan, name: str, learner: Learner) -> Budget | None:
    """The learner's privacy budget, checked: it allows one more training. None without differential privacy."""
    privacy = plan.federation.privacy_of(name)
    if privacy is None:
        return None
    if learner.planned is None:
        raise DroppedError(f"{name} has a privacy section, and this step trains without differential privacy")
    budget = Budget(store, name, privacy)
    budget.check(learner.planned)
    return budget


def _fetched(store: Store, digest: str, path: Path, owner: str | None = None) -> Arrays:
    fetch_file(store, digest, path, owner)
    arrays = weights.load(path)
    path.unlink()
    return arrays


def _last_optimizer(store: Store, plan: Plan, name: str, number: int, path: Path) -> Arrays | None:
    """The optimizer state of this learner's last update in the run that was accepted, when it is to be kept."""
    if plan.federation.training.optimizer == "reset":
        return None
    for earlier in range(number - 1, 0, -1):
        update = find_update(store, name, plan.run, earlier)
        if update is None or update.optimizer is None:
            continue
        record = read_record(store, plan.run, earlier) if plan.federation.vote else None
        if record is None or record.accepted:
            return _fetched(store, update.optimizer, path, name)
    return None


def vote(
    store: Store, plan: Plan, name: str, number: int, base: str, candidate: str, owner: str,
    make_learner: Callable[[], Learner], *, roll: Roll = ANY_ROLL,
) -> Ballot | Dropped:  # fmt: skip
    """A learner's vote on a candidate: measure it, compare with the base, publish the ballot.

    A ballot that is already cast is not repeated, and the base is measured only when no earlier ballot tells. A
    learner that cannot vote leaves the reason and is absent; only a failing store or a corrupt base is an error.

    Args:
        store: the federation's store.
        plan: the run's plan.
        name: the learner.
        number: the round; in round 0 the base is scored, and there is nothing to vote on.
        base: digest of the weights that the round began with.
        candidate: digest of the proposed weights.
        owner: the learner that proposed them; empty for aggregated weights.
        make_learner: makes the learner, with its data, when there is work to do.
        roll: of the vote's attempt.
    """
    if found := find_vote(store, name, plan.run, number):
        log.info("round %d: what %s voted is already there", number, name)
        return found
    with tempfile.TemporaryDirectory() as folder:
        current = _fetched(store, base, Path(folder) / "base")
        try:
            ballot = _cast(store, plan, name, number, base, current, candidate, owner, make_learner(), Path(folder))
            return publish_ballot(store, ballot)
        except (DroppedError, DataError, ModelError, CorruptError, NotFoundError, OSError) as error:
            absent = _dropped(name, error)
            drop(store, plan.run, number, absent, name=roll.note("absent"))
            log.warning("round %d: %s does not vote: %s", number, name, absent.why)
            return absent


def _cast(
    store: Store, plan: Plan, name: str, number: int, base: str, current: Arrays, candidate: str, owner: str,
    learner: Learner, folder: Path,
) -> Ballot:  # fmt: skip
    known = learner.accept_weights(current, known_scores(store, name, plan.run, number, base))
    verdict, unfit = Verdict(known, approve=False), ""
    try:
        if number:
            fetch_weights(store, candidate, weights.layout_of(current), folder / "candidate", owner, "proposals")
            verdict = learner.test_weights(weights.load(folder / "candidate"))
    except (CorruptError, NotFoundError) as error:  # else one bad proposal would leave every vote below the quorum
        verdict, unfit = Verdict(Scores(), approve=False), error.what[:500]
        log.warning("round %d: %s votes no: %s", number, name, unfit)
    return Ballot(
        federation=plan.federation.name, run=plan.run, round=number, learner=name, base=base, candidate=candidate,
        approve=verdict.approve, current=known, proposed=verdict.scores, why=unfit,
    )  # fmt: skip
