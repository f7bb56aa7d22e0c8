"""A learner's four acts, whatever framework it uses: here with a linear model in NumPy."""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
import pytest

from fedpipe import weights
from fedpipe.data.examples import Examples
from fedpipe.data.parts import put_shard
from fedpipe.errors import DroppedError, ModelError
from fedpipe.learners.assembly import make_learner, plan_model
from fedpipe.learners.contribute import contribute
from fedpipe.learners.framework import Arrays
from fedpipe.learners.learner import ModelLearner
from fedpipe.learners.vote import vote
from fedpipe.registry.export import run_onnx
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.manifests import Dropped, Scores, Update
from fedpipe.rounds.plan import Plan, RunPlace
from fedpipe.rounds.roll import find_dropped
from fedpipe.store import MemoryStore, keys, open_store
from tests.federations import PlusOneLearner, make_federation
from tests.federations import make_plan as plans
from tests.learners.contract import X, Y
from tests.models import LINEAR, make_plan

PARTS = {"train": Examples(X[:40], Y[:40]), "vote": Examples(X[40:50], Y[40:50]), "test": Examples(X[50:], Y[50:])}
NOBODY: dict[str, Any] = {}


def plan_of(store: MemoryStore, shards: dict[str, str] = NOBODY, vote: Any = None, **training: Any) -> Plan:
    algorithm = {"name": "averaging"} if vote is None else {"name": "collective", "vote": vote}
    chosen = make_federation(
        ("a", "b"), framework="numpy", training={"rounds": 1, "batch_size": 8, **training}, algorithm=algorithm
    )
    return make_plan(store, chosen, LINEAR, shards=shards)


def made(store: MemoryStore, parts: Any = PARTS, **more: Any) -> tuple[ModelLearner, Arrays]:
    """A learner, and the weights that a run would begin with."""
    plan = plan_of(store, **more)
    model = plan_model(store, plan)
    return ModelLearner(model, plan.federation, parts), model.initial_weights(0)


def propose(learner: ModelLearner, start: Arrays, **more: Any) -> Any:
    learner.accept_weights(start, Scores())
    return learner.propose_weights(**{"seed": 1, "seconds": 60.0, "optimizer": None, **more})


class TestATraining:
    def test_gives_weights_examples_and_the_metrics_of_the_last_epoch(self, store: MemoryStore) -> None:
        logged: list[list[dict[str, float]]] = []
        plan = plan_of(store, local_epochs=3)
        learner = ModelLearner(plan_model(store, plan), plan.federation, PARTS, on_epochs=logged.append)
        found = propose(learner, plan_model(store, plan).initial_weights(0))
        assert found.examples == 40
        assert found.metrics == logged[0][-1]
        assert len(logged[0]) == 3
        assert found.optimizer is found.event is learner.planned is None

    def test_continues_with_a_kept_optimizer(self, store: MemoryStore) -> None:
        learner, start = made(store, optimizer="keep")
        assert propose(learner, start).optimizer.keys() == start.keys()

    @pytest.mark.parametrize(
        ("parts", "count"), [({}, 0), ({"train": Examples(X[:3], Y[:3])}, 3)], ids=["no part", "a small one"]
    )
    def test_needs_a_batch(self, store: MemoryStore, parts: Any, count: int) -> None:
        with pytest.raises(DroppedError, match=f"the train part has {count} examples, fewer than a batch of 8"):
            propose(*made(store, parts))


class TestScores:
    def test_are_means_of_the_test_part(self, store: MemoryStore) -> None:
        learner, start = made(store)
        tested = learner.accept_weights(start).test
        assert tested is not None
        assert tested.examples == 10
        accuracy = np.mean(np.argmax(X[50:] @ start["kernel"] + start["bias"], axis=1) == Y[50:])
        assert tested.metrics["accuracy"] == pytest.approx(accuracy)

    def test_of_an_empty_part_are_none(self, store: MemoryStore) -> None:
        learner, start = made(store, {**PARTS, "test": Examples(X[:0], Y[:0])})
        assert learner.accept_weights(start) == Scores()

    def test_that_are_known_are_not_measured_again(self, store: MemoryStore) -> None:
        learner, start = made(store)
        known = learner.accept_weights(start)
        assert learner.accept_weights(start, known) is known


class TestVotes:
    """The ballot is strict, and only accepting changes the current weights."""

    def test_an_equal_score_is_a_no_and_a_better_one_a_yes(self, store: MemoryStore) -> None:
        learner, start = made(store, vote={}, local_epochs=20)
        scores = learner.accept_weights(start)
        assert not learner.test_weights(start).approve
        proposed = learner.propose_weights(seed=1, seconds=60, optimizer=None)
        verdict = learner.test_weights(proposed.weights)
        assert verdict.approve
        assert verdict.scores.vote.metrics["loss"] < scores.vote.metrics["loss"]  # type: ignore[union-attr]
        assert weights.digest_of(learner.current_model()) == weights.digest_of(start)  # type: ignore[arg-type]
        assert learner.accept_weights(proposed.weights) == verdict.scores
        assert not learner.test_weights(start).approve

    def test_the_criterion_may_be_a_metric(self, store: MemoryStore) -> None:
        learner, start = made(store, vote={"criterion": "accuracy", "minimise": False}, local_epochs=20)
        better = propose(learner, start).weights
        scores = learner.accept_weights(start)
        verdict = learner.test_weights(better)
        before, after = (s.vote.metrics["accuracy"] for s in (scores, verdict.scores))  # type: ignore[union-attr]
        assert after > before
        assert verdict.approve
        learner.accept_weights(better)
        assert not learner.test_weights(start).approve

    def test_a_criterion_that_is_not_measured(self, store: MemoryStore) -> None:
        learner, start = made(store, vote={"criterion": "auc", "minimise": False})
        with pytest.raises(
            ModelError, match=r"'auc' is neither the loss nor a compiled metric\. Valid: accuracy, loss"
        ):
            learner.accept_weights(start)

    def test_only_the_first_batches_of_the_vote_part(self, store: MemoryStore) -> None:
        learner, start = made(store, vote={"batches": 1})
        found = learner.accept_weights(start).vote
        assert found is not None
        assert found.examples == 8
        scores = X[40:48] @ start["kernel"] + start["bias"]
        loss = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(8), Y[40:48]]
        assert found.metrics["loss"] == pytest.approx(loss.mean(), rel=1e-5)

    def test_a_vote_part_below_a_batch(self, store: MemoryStore) -> None:
        learner, start = made(store, {**PARTS, "vote": Examples(X[:3], Y[:3])}, vote={})
        with pytest.raises(DroppedError, match="the vote part has 3 examples, fewer than a batch of 8"):
            learner.accept_weights(start)


def test_the_current_model_as_onnx(store: MemoryStore) -> None:
    learner, start = made(store)
    learner.accept_weights(start, Scores())
    data = learner.current_model("onnx")
    assert isinstance(data, bytes)
    (found,) = run_onnx(data, X)
    scores = X @ start["kernel"] + start["bias"]
    np.testing.assert_allclose(found, np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True), atol=1e-6)


def test_an_update_from_shard_to_store(store: MemoryStore) -> None:
    """With event files for TensorBoard of a training, and without when the federation file wants none."""
    _, digest = put_shard(store, "a", PARTS)
    plan = plan_of(store, {"a": digest, "b": digest}, local_epochs=2)
    base = begin(store, plan, lambda: plan_model(store, plan).initial_weights(0)).weights
    update = contribute(store, plan, "a", 1, base, lambda: make_learner(store, plan, "a", 1))
    assert isinstance(update, Update)
    assert update.tested is not None
    (key,) = store.keys("learners/a/runs/r1/1/tensorboard")
    assert key.endswith("events.out.tfevents.r1")
    assert store.read(key).data.count(b"epoch_accuracy") == 2
    dropped = contribute(store, plan, "b", 1, base, lambda: make_learner(store, plan, "b", 1))
    assert isinstance(dropped, Dropped)  # the shard is a's: b cannot read it
    assert keys.answer("b", plan.run, 1, "dropped") in store.keys()
    quiet = plan_of(store, {"a": digest}, tensorboard=False)
    propose(make_learner(store, quiet, "a", 2), plan_model(store, quiet).initial_weights(0))
    assert not list(store.keys("learners/a/runs/r1/2/"))


def test_a_session_reads_its_examples_once() -> None:
    """The shard is gone after the first round, and the learner works on."""
    uri = "memory://kept-parts"
    store = open_store(uri).below("tiny")
    _, digest = put_shard(store, "a", PARTS)
    plan = plan_of(store, {"a": digest})  # type: ignore[arg-type]
    place = RunPlace(store=uri, federation="tiny", run="r1", plan=plan.put(store))
    make_learner(store, plan, "a", 1, place=place)
    for key in list(store.keys("learners/a/")):
        store.delete(key)
    start = plan_model(store, plan).initial_weights(0)
    assert propose(make_learner(store, plan, "a", 2, place=place), start).examples == 40


@pytest.mark.parametrize("act", ["train", "vote"])
def test_a_learner_whose_disk_cannot_hold_the_model_is_dropped(store: MemoryStore, act: str) -> None:
    """It says so at once; a step that ends with an error would be repeated, and its round would wait."""
    plan = plans(make_federation(("a", "b"), algorithm={"name": "collective"}))
    record = begin(store, plan, lambda: {"w": np.zeros(100_000, np.float32)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        if act == "train":
            found: Any = contribute(store, plan, "a", 1, record.weights, lambda: PlusOneLearner(1))
        else:
            found = vote(store, plan, "a", 1, record.weights, record.weights, "b", lambda: PlusOneLearner(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found == Dropped(learner="a", why="the learner's disk cannot be used: File too large")
    note = "dropped" if act == "train" else "absent"
    assert find_dropped(store, "a", plan.run, 1, name=note) == found
