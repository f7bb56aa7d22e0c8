"""Contribute to a round as a learner: train, write the weights, publish the update."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedpipe import weights
from fedpipe.aggregation.encoding import encode
from fedpipe.errors import DroppedError
from fedpipe.identity.statements import signed_by
from fedpipe.learners.downloads import fetched
from fedpipe.learners.dropping import LOCAL, left_out
from fedpipe.learners.framework import Arrays, seed_of
from fedpipe.learners.learner import Learner, Trained, log
from fedpipe.learners.personal import Kept
from fedpipe.rounds.budget import Budget
from fedpipe.rounds.floors import released_here
from fedpipe.rounds.history import read_record
from fedpipe.rounds.ledger import find_marks
from fedpipe.rounds.manifests import Dropped, Scores, Tested, Update
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.roll import ANY_ROLL, Roll
from fedpipe.rounds.updates import find_part, own_update, publish_update
from fedpipe.store import Store
from fedpipe.store.objects import put_file


def contribute(
    store: Store, plan: Plan, name: str, number: int, base: str, make_learner: Callable[[], Learner], *,
    roll: Roll = ANY_ROLL, seconds: float | None = None,
) -> Update | Dropped:  # fmt: skip
    """Contribute to a round: train from the base, write the weights, publish the manifest.

    Work that is already published is not repeated. A learner that cannot take part leaves the reason and is dropped,
    whatever its data, code or machine raise.
    Only a failing store or a corrupt base is an error, so that the step is retried.

    Args:
        store: the federation's store.
        plan: the run's plan.
        name: the learner.
        number: the round, from 1.
        base: digest of the global weights that the round begins with.
        make_learner: makes the learner, with its data, when there is work to do.
        roll: the roll of the round's attempt.
        seconds: the time after which the learner is too late; the deadline by default.
    """
    if found := find_part(store, plan, name, number, base):
        log.info("round %d: the work of %s is already done", number, name)
        return found
    with tempfile.TemporaryDirectory() as folder:
        try:
            start = fetched(store, base, Path(folder) / "base")
            optimizer = last_optimizer(store, plan, name, number, Path(folder) / "optimizer")
        except LOCAL as error:
            return left_out(store, plan, name, number, error, roll.note("dropped"))
        try:
            seconds = plan.federation.quorum.deadline if seconds is None else seconds
            return _offered(store, plan, name, number, base, start, optimizer, make_learner(), Path(folder), seconds)
        except (Exception, SystemExit) as error:
            return left_out(store, plan, name, number, error, roll.note("dropped"))


def _offered(
    store: Store, plan: Plan, name: str, number: int, base: str, start: Arrays, optimizer: Arrays | None,
    learner: Learner, folder: Path, seconds: float,
) -> Update:  # fmt: skip
    federation = plan.federation
    budget = budget_of(store, plan, name, number, learner)
    tested, trained = trained_from(plan, name, number, start, optimizer, learner, seconds)
    sent, kept_back = _encoded(plan, name, number, start, trained)
    digest = weights.save(sent, folder / "weights")
    spent, ledger = None, None
    if budget is not None:
        assert trained.event is not None
        spent = budget.charge(trained.event, run=plan.run, number=number, weights=digest)
        ledger = budget.head
    put_file(store, folder / "weights", digest, name, "proposals" if federation.proposers else "objects")
    kept = None
    if trained.optimizer is not None:
        kept = weights.save(trained.optimizer, folder / "optimizer")
        put_file(store, folder / "optimizer", kept, name)
    personal = kept_back.save(store, name, folder)
    update = Update(
        format=plan.format,
        federation=federation.name, run=plan.run, round=number, learner=name, base=base, weights=digest,
        size=(folder / "weights").stat().st_size, examples=trained.examples, metrics=trained.metrics,
        plan=plan.definition.digest, tested=tested, optimizer=kept, personal=personal, spent=spent, ledger=ledger,
    )  # fmt: skip
    return publish_update(store, signed_by(released_here(update), name))


def _encoded(plan: Plan, name: str, number: int, start: Arrays, trained: Trained) -> tuple[Arrays, Kept]:
    """Return what a learner sends after a training, and what it keeps."""
    exchange = plan.federation.training.exchange
    if exchange is None:
        return trained.weights, trained.kept
    random = np.random.default_rng(seed_of(plan.federation.training.seed, name, number, "exchange"))
    update, residual = encode(exchange, trained.weights, start, trained.kept.residual, random)
    return update, trained.kept._replace(residual=residual)


def trained_from(
    plan: Plan, name: str, number: int, start: Arrays, optimizer: Arrays | None, learner: Learner, seconds: float
) -> tuple[Tested | None, Trained]:
    """Test the weights of a base if the federation wants it, and train from them.

    Returns:
        The test of the base, and the training's result, whose weights are finite.
    """
    federation = plan.federation
    wanted = federation.evaluation.every_round and not federation.vote  # a vote scores every candidate anyway
    tested = learner.accept_weights(start, None if wanted else Scores()).test
    seed = seed_of(federation.training.seed, name, number)
    trained = learner.propose_weights(seed=seed, seconds=seconds, optimizer=optimizer)
    weights.check_finite(trained.weights)
    return tested, trained


def budget_of(store: Store, plan: Plan, name: str, number: int, learner: Learner) -> Budget | None:
    """Return the privacy budget if it allows another training; None without differential privacy."""
    privacy = plan.federation.privacy_of(name)
    if privacy is None:
        return None
    if learner.planned is None:
        raise DroppedError(
            f"{name} has a privacy section, but this step trains without differential privacy", lasting=True
        )
    budget = Budget(store, name, privacy, find_marks(store, plan.run, number, name))
    budget.check(learner.planned)
    return budget


def last_optimizer(store: Store, plan: Plan, name: str, number: int, path: Path) -> Arrays | None:
    """Return the optimizer state of this learner's last accepted update in the run, if the state is kept."""
    if plan.federation.training.optimizer == "reset":
        return None
    for earlier in range(number - 1, 0, -1):
        update = own_update(store, name, plan.run, earlier)
        if update is None or update.optimizer is None:
            continue
        record = read_record(store, plan.run, earlier) if plan.federation.vote else None
        if record is None or record.accepted:
            return fetched(store, update.optimizer, path, name)
    return None
