from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpipe import weights
from fedpipe.data.examples import Examples
from fedpipe.data.parts import put_shard
from fedpipe.errors import DataError, DroppedError, ModelError
from fedpipe.federation.federation import Federation
from fedpipe.frameworks import frameworks
from fedpipe.learners.contribute import contribute
from fedpipe.learners.keras.evaluation import evaluate, score_learner
from fedpipe.learners.keras.events import event_file
from fedpipe.learners.keras.learner import KerasLearner, make_keras_learner, parts_of, plan_model
from fedpipe.registry.export import run_onnx
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.manifests import Dropped, Scores, Update
from fedpipe.rounds.roll import learner_key
from fedpipe.store import MemoryStore
from tests.federations import make_federation
from tests.models import DENSE, RICH, make_plan

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype(np.float32)
Y = np.argmax(X[:, :3], axis=1)
PARTS = {"train": Examples(X[:40], Y[:40]), "vote": Examples(X[40:50], Y[40:50]), "test": Examples(X[50:], Y[50:])}


def federation(**training: Any) -> Federation:
    return make_federation(("a", "b"), training={"rounds": 1, "batch_size": 8, **training})


def learner(store: MemoryStore, parts: Any = PARTS, code: str = DENSE, **training: Any) -> tuple[KerasLearner, Any]:
    plan = make_plan(store, federation(**training), code)
    model = plan_model(store, plan)
    model.reset(0)
    return KerasLearner(model, plan.federation, parts), model.weights()


def trained(made: tuple[KerasLearner, Any], **more: Any) -> Any:
    made[0].accept_weights(made[1], Scores())
    return made[0].propose_weights(**{"seed": 1, "seconds": 60.0, "optimizer": None, **more})


def test_training_gives_weights_examples_and_metrics(store: MemoryStore) -> None:
    found = trained(learner(store, local_epochs=3))
    assert found.examples == 40
    assert found.metrics.keys() == {"loss", "accuracy"}
    assert found.optimizer is None


def test_one_step_against_the_formula(store: MemoryStore) -> None:
    """Softmax regression, one batch: w - rate * gradient, computed with NumPy."""
    parts = {"train": Examples(X[:8], Y[:8])}
    made = learner(store, parts, local_steps=1)
    found = trained(made)
    kernel, bias = made[1]["sequential/dense/kernel"], made[1]["sequential/dense/bias"]
    scores = X[:8] @ kernel + bias
    soft = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    error = (soft - np.eye(3)[Y[:8]]) / 8
    np.testing.assert_allclose(found.weights["sequential/dense/kernel"], kernel - 0.5 * X[:8].T @ error, atol=1e-6)
    np.testing.assert_allclose(found.weights["sequential/dense/bias"], bias - 0.5 * error.sum(axis=0), atol=1e-6)


def test_equal_seeds_give_equal_bytes(store: MemoryStore) -> None:
    made = learner(store, local_epochs=2)
    first = weights.digest_of(trained(made).weights)
    assert weights.digest_of(trained(made, seed=2).weights) != first
    assert weights.digest_of(trained(made).weights) == first


def test_a_given_learning_rate_counts(store: MemoryStore) -> None:
    small = trained(learner(store, learning_rate=1e-9))
    made = learner(store, learning_rate=1e-9)
    np.testing.assert_allclose(small.weights["sequential/dense/kernel"], made[1]["sequential/dense/kernel"], atol=1e-6)


def test_local_steps_count_batches_beyond_one_epoch(store: MemoryStore) -> None:
    made = learner(store, local_steps=12)  # 40 examples are 5 batches
    found = trained(made)
    assert made[0]._model.keras.optimizer.iterations.numpy() == 12
    assert found.examples == 40


def test_the_optimizer_is_kept_when_told(store: MemoryStore) -> None:
    code = DENSE.replace("SGD(0.5)", "SGD(0.5, momentum=0.9)")
    made = learner(store, code=code, optimizer="keep")
    first = trained(made)
    assert first.optimizer is not None
    kept, fresh = trained(made, optimizer=first.optimizer), trained(made)
    assert weights.digest_of(kept.weights) != weights.digest_of(fresh.weights)
    assert weights.digest_of(fresh.weights) == weights.digest_of(first.weights)


def test_class_weights_and_callbacks_reach_keras(store: MemoryStore) -> None:
    plain = trained(learner(store))
    weighted = trained(learner(store, fit={"class_weight": {"0": 10.0, "1": 1.0, "2": 1.0}}))
    assert weights.digest_of(plain.weights) != weights.digest_of(weighted.weights)
    made = learner(
        store, local_epochs=50, callbacks={"EarlyStopping": {"monitor": "loss", "min_delta": 100.0, "patience": 0}}
    )
    trained(made)
    assert made[0]._model.keras.optimizer.iterations.numpy() == 10  # two epochs of five batches


class TestVotes:
    """KerasLearner's four acts: the ballot is strict, and only accepting changes the current weights."""

    def made(self, store: MemoryStore, parts: Any = PARTS, **vote: Any) -> tuple[KerasLearner, Any]:
        algorithm = {"name": "collective", "vote": vote}
        chosen = make_federation(
            ("a", "b"), training={"rounds": 1, "batch_size": 8, "local_epochs": 20}, algorithm=algorithm
        )
        model = plan_model(store, make_plan(store, chosen))
        model.reset(0)
        return KerasLearner(model, chosen, parts), model.weights()

    def test_an_equal_score_is_a_no_and_a_better_one_a_yes(self, store: MemoryStore) -> None:
        learner, start = self.made(store)
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
        learner, start = self.made(store, criterion="accuracy", minimise=False)
        learner.accept_weights(start, Scores())
        better = learner.propose_weights(seed=1, seconds=60, optimizer=None).weights
        scores = learner.accept_weights(start)
        verdict = learner.test_weights(better)
        before, after = (s.vote.metrics["accuracy"] for s in (scores, verdict.scores))  # type: ignore[union-attr]
        assert verdict.approve == (after > before)
        learner.accept_weights(better)
        assert not learner.test_weights(start).approve

    def test_a_criterion_that_is_not_compiled(self, store: MemoryStore) -> None:
        learner, start = self.made(store, criterion="auc", minimise=False)
        with pytest.raises(
            ModelError, match=r"'auc' is neither the loss nor a compiled metric\. Valid: accuracy, loss"
        ):
            learner.accept_weights(start)

    def test_batches_of_the_vote_part(self, store: MemoryStore) -> None:
        """The first batch of eight, against the formula by NumPy."""
        learner, start = self.made(store, batches=1)
        found = learner.accept_weights(start).vote
        assert found is not None
        assert found.examples == 8
        scores = X[40:48] @ start["sequential/dense/kernel"] + start["sequential/dense/bias"]
        loss = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(8), Y[40:48]]
        assert found.metrics["loss"] == pytest.approx(loss.mean(), rel=1e-5)

    def test_a_vote_part_below_a_batch(self, store: MemoryStore) -> None:
        learner, start = self.made(store, {**PARTS, "vote": Examples(X[:3], Y[:3])})
        with pytest.raises(DroppedError, match="the vote part has 3 examples, fewer than a batch of 8"):
            learner.accept_weights(start)

    def test_the_current_model_as_onnx(self, store: MemoryStore) -> None:
        learner, start = self.made(store)
        learner.accept_weights(start, Scores())
        data = learner.current_model("onnx")
        assert isinstance(data, bytes)
        (found,) = run_onnx(data, X)
        scores = X @ start["sequential/dense/kernel"] + start["sequential/dense/bias"]
        np.testing.assert_allclose(found, np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True), atol=1e-6)

    def test_known_scores_are_not_measured_again(self, store: MemoryStore) -> None:
        learner, start = self.made(store)
        known = learner.accept_weights(start)
        assert learner.accept_weights(start, known) is known


class TestDropped:
    def test_too_late(self, store: MemoryStore) -> None:
        with pytest.raises(DroppedError, match="late: training took longer than the deadline of 0 s"):
            trained(learner(store), seconds=0.0)

    def test_fewer_examples_than_a_batch(self, store: MemoryStore) -> None:
        with pytest.raises(DroppedError, match="has 3 examples, fewer than a batch of 8"):
            trained(learner(store, {"train": Examples(X[:3], Y[:3])}))

    def test_no_train_part(self, store: MemoryStore) -> None:
        with pytest.raises(DroppedError, match="has 0 examples"):
            trained(learner(store, {}))

    def test_a_loss_that_explodes(self, store: MemoryStore) -> None:
        parts = {"train": Examples(X[:40] * 1e30, Y[:40].astype(np.float32))}
        code = DENSE.replace('"sparse_categorical_crossentropy", metrics=["accuracy"]', '"mse"').replace(
            'Dense(3, activation="softmax")', "Dense(1)"
        )
        with pytest.raises(DroppedError, match="lower the learning rate"):
            trained(learner(store, parts, code))

    def test_data_that_keras_refuses(self, store: MemoryStore) -> None:
        with pytest.raises(DroppedError, match="training failed: "):
            trained(learner(store, {"train": Examples(X[:40, :3], Y[:40])}))


def test_a_test_gives_means_and_changes_nothing(store: MemoryStore) -> None:
    made = learner(store)
    tested = made[0].accept_weights(made[1]).test
    assert tested is not None
    assert tested.examples == 10
    kernel, bias = made[1]["sequential/dense/kernel"], made[1]["sequential/dense/bias"]
    accuracy = np.mean(np.argmax(X[50:] @ kernel + bias, axis=1) == Y[50:])
    assert tested.metrics["accuracy"] == pytest.approx(accuracy)
    assert learner(store, {**PARTS, "test": Examples(X[:0], Y[:0])})[0].accept_weights(made[1]).test is None


class TestOwnData:
    def own(self, store: MemoryStore, uri: str, code: str = DENSE) -> KerasLearner:
        content = {"rounds": 1, "batch_size": 8}
        made = make_federation(("b",), learners=[{"name": "a", "data": uri}, {"name": "b"}], training=content)
        return make_keras_learner(store, make_plan(store, made, code), "a", "a")

    def test_a_file(self, store: MemoryStore, tmp_path: Path) -> None:
        np.savez(tmp_path / "own.npz", x=X, y=Y)
        assert self.own(store, str(tmp_path / "own.npz"))._size("train") == 48

    def test_what_load_returns(self, store: MemoryStore) -> None:
        code = (
            DENSE + "\ndef load(uri):\n    import numpy as np\n    return np.ones((int(uri), 4)), np.zeros(int(uri))\n"
        )
        made = self.own(store, "20", code)
        assert {part: made._size(part) for part in ("train", "vote", "test")} == {"train": 16, "vote": 2, "test": 2}

    def test_a_dataset(self, store: MemoryStore) -> None:
        code = DENSE + (
            "\ndef load(uri):\n    import numpy as np, tensorflow as tf\n"
            "    return tf.data.Dataset.from_tensor_slices((np.ones((30, 4), 'float32'), np.zeros(30)))\n"
        )
        made = self.own(store, "x", code)
        assert made._size("train") == 24
        assert made.accept_weights(made._model.weights()).test.examples == 3  # type: ignore[union-attr]
        assert made.propose_weights(seed=1, seconds=60, optimizer=None).examples == 24

    def test_a_load_that_fails_names_the_reason(self, store: MemoryStore) -> None:
        with pytest.raises(DataError, match=r"load\('x'\) fails: OSError: gone"):
            self.own(store, "x", DENSE + "\ndef load(uri):\n    raise OSError('gone')\n")

    def test_what_is_no_data(self) -> None:
        with pytest.raises(DataError, match=r"is int, not \(x, y\)"):
            parts_of(3, federation(), "a")

    def test_a_table_of_parts_is_taken_as_it_is(self) -> None:
        parts = parts_of({"train": (X, Y), "test": (X[:5], Y[:5])}, federation(), "a")
        assert len(parts["train"].y) == 60
        assert set(parts) == {"train", "test"}

    def test_a_dataset_of_unknown_length(self) -> None:
        tensorflow, _ = frameworks()
        endless = tensorflow.data.Dataset.from_tensor_slices((X, Y)).filter(lambda x, y: True)
        with pytest.raises(DataError, match="no known length"):
            parts_of(endless, federation(), "a")


def test_an_update_from_shard_to_store(store: MemoryStore) -> None:
    _, digest = put_shard(store, "a", PARTS)
    plan = make_plan(store, federation(), shards={"a": digest})
    model = plan_model(store, plan)
    base = begin(store, plan, model.weights).weights
    folder = f"learners/a/runs/{plan.run}/1/tensorboard"
    update = contribute(store, plan, "a", 1, base, lambda: make_keras_learner(store, plan, "a", "a", folder))
    assert isinstance(update, Update)
    assert update.tested is not None
    events = list(store.keys(folder))
    assert len(events) == 1
    plan_b = make_plan(store, federation(), shards={"a": digest, "b": digest})
    dropped = contribute(store, plan_b, "b", 1, base, lambda: make_keras_learner(store, plan_b, "b", "b"))
    assert isinstance(dropped, Dropped)  # the shard is a's: b cannot read it
    assert learner_key("b", plan.run, 1, "dropped") in store.keys()


def test_event_files_are_read_by_tensorflow(tmp_path: Path) -> None:
    tensorflow, _ = frameworks()
    from tensorflow.core.util.event_pb2 import Event

    (tmp_path / "events").write_bytes(event_file([(0, {"epoch_loss": 2.0}), (1, {"epoch_loss": 1.0})]))
    events = [Event.FromString(r.numpy()) for r in tensorflow.data.TFRecordDataset(str(tmp_path / "events"))]
    assert events[0].file_version == "brain.Event:2"
    assert [(e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in events[1:]] == [
        (0, "epoch_loss", 2.0),
        (1, "epoch_loss", 1.0),
    ]


class TestEvaluation:
    def test_federated_metrics_are_those_of_all_data_together(self, store: MemoryStore) -> None:
        """Sums first, then divided: exact for a loss, an accuracy and even an AUC over uneven learners."""
        labels = (X[:, 0] > 0).astype(np.float32)
        sizes = {"a": slice(0, 7), "b": slice(7, 60)}
        shards = {
            k: put_shard(store, k, {"train": Examples(X, labels), "test": Examples(X[s], labels[s])})[1]
            for k, s in sizes.items()
        }
        plan = make_plan(store, federation(), RICH, shards=shards)
        record = begin(store, plan, plan_model(store, plan).weights)
        scores = [score_learner(store, plan, name, record.weights) for name in sizes]
        found = evaluate(store, plan, record.weights, scores)
        assert found.federated is not None
        together = KerasLearner(plan_model(store, plan), plan.federation, {"test": Examples(X, labels)})
        expected = together.evaluate(plan_model(store, plan).weights(), "test")
        assert found.federated.examples == 60
        for name, value in expected.items():
            assert found.federated.metrics[name] == pytest.approx(value, rel=1e-5), name
        mean_of_means = np.mean([s.metrics["auc"] for s in scores])
        assert found.federated.metrics["auc"] != pytest.approx(mean_of_means, rel=1e-3)
        assert sum(sum(row) for row in found.confusion) == 60

    def test_a_learner_without_a_test_part_is_left_out(self, store: MemoryStore) -> None:
        _, digest = put_shard(store, "a", {"train": PARTS["train"], "test": Examples(X[:0], Y[:0])})
        plan = make_plan(store, federation(), shards={"a": digest})
        record = begin(store, plan, plan_model(store, plan).weights)
        found = evaluate(store, plan, record.weights, [score_learner(store, plan, "a", record.weights)])
        assert found.federated is None
        assert found.left_out == {"a": "the test part is empty"}

    def test_the_confusion_matrix_counts_true_by_predicted(self, store: MemoryStore) -> None:
        _, digest = put_shard(store, "a", PARTS)
        plan = make_plan(store, federation(), shards={"a": digest})
        model = plan_model(store, plan)
        record = begin(store, plan, model.weights)
        score = score_learner(store, plan, "a", record.weights)
        predicted = np.argmax(model.keras.predict(X[50:], verbose=0), axis=1)
        expected = np.zeros((3, 3), int)
        for true, taken in zip(Y[50:], predicted, strict=True):
            expected[true, taken] += 1
        np.testing.assert_array_equal(score.confusion, expected)
