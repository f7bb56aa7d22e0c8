"""Scores of the final model and what they make together; the sums of Keras's metrics are in keras/test_training.py."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from sklearn import metrics as oracle

from fedpipe.data.examples import Examples
from fedpipe.data.parts import put_parts, put_shard
from fedpipe.learners.assembly import plan_model
from fedpipe.learners.score import evaluate, score_learner
from fedpipe.rounds.evaluation import Score
from fedpipe.rounds.measures import by_class
from fedpipe.rounds.plan import Plan
from fedpipe.store import MemoryStore
from fedpipe.store.objects import put_bytes
from fedpipe.weights import dumps
from tests.federations import make_federation
from tests.learners.contract import PART, X, Y
from tests.models import LINEAR, make_plan

SIZES = {"a": slice(0, 7), "b": slice(7, 60)}


def prepared(store: MemoryStore, code: str = LINEAR, labels: np.ndarray = Y) -> tuple[Plan, str]:
    """A plan whose learners hold uneven test parts, and the digest of weights."""
    shards = {
        name: put_shard(store, name, {"train": Examples(X, labels), "test": Examples(X[s], labels[s])})[1]
        for name, s in SIZES.items()
    }
    chosen = make_federation(("a", "b"), framework="numpy", training={"rounds": 1, "batch_size": 8})
    plan = make_plan(store, chosen, code, shards=shards)
    return plan, put_bytes(store, dumps(plan_model(store, plan).initial_weights(4)))


def test_federated_metrics_are_those_of_all_examples_together(store: MemoryStore) -> None:
    plan, digest = prepared(store)
    scores = [score_learner(store, plan, name, digest) for name in SIZES]
    found = evaluate(store, plan, digest, scores)
    model = plan_model(store, plan)
    expected = model.evaluate(model.initial_weights(4), PART, plan.federation.training).metrics
    assert found.central is None
    assert found.federated is not None
    assert found.federated.examples == 60
    assert found.federated.metrics == pytest.approx(expected, rel=1e-9)
    assert [found.learners[name].examples for name in SIZES] == [7, 53]
    assert found.federated.metrics["loss"] != pytest.approx(np.mean([s.metrics["loss"] for s in scores]), rel=1e-4)


def test_the_central_test_set_comes_first(store: MemoryStore) -> None:
    plan, digest = prepared(store)
    plan = msgspec.structs.replace(plan, test=put_parts(store, {"test": Examples(X[:20], Y[:20])})[0])
    found = evaluate(store, plan, digest, [])
    assert found.federated is None
    assert found.central is not None
    assert found.central.examples == 20
    assert sum(map(sum, found.confusion)) == 20


def test_the_confusion_matrix_counts_true_by_predicted(store: MemoryStore) -> None:
    plan, digest = prepared(store)
    scores = [score_learner(store, plan, name, digest) for name in SIZES]
    model = plan_model(store, plan)
    (shares,) = model.predictor(model.initial_weights(4))(X)
    expected = np.zeros((3, 3), int)
    for true, taken in zip(Y, shares.argmax(axis=1), strict=True):
        expected[true, taken] += 1
    found = evaluate(store, plan, digest, scores)
    np.testing.assert_array_equal(found.confusion, expected)
    assert found.classes == ("0", "1", "2")


def test_a_regression_has_no_confusion_matrix(store: MemoryStore) -> None:
    plan, digest = prepared(store, LINEAR.replace("4, 3,", "4, 1, 'squared',"), X[:, 0] * 7)
    score = score_learner(store, plan, "b", digest)
    found = evaluate(store, plan, digest, [score])
    assert (found.confusion, found.classes) == ((), ())
    assert found.federated is not None
    assert found.federated.measures.keys() == {"r2", "mae", "rmse", "bias"}


def test_a_learner_without_a_test_part_or_with_another_model_is_left_out(store: MemoryStore) -> None:
    plan, digest = prepared(store)
    _, empty = put_shard(store, "a", {"train": PART, "test": Examples(X[:0], Y[:0])})
    plan = msgspec.structs.replace(plan, shards={**plan.shards, "a": empty})
    scores = [score_learner(store, plan, name, digest) for name in SIZES]
    scores[1] = msgspec.structs.replace(scores[1], weights="sha256:" + "0" * 64)
    found = evaluate(store, plan, digest, scores)
    assert found.federated is None
    assert found.left_out == {"a": "the test part is empty", "b": "the score belongs to other weights"}


def forged(score: Score, **changes: object) -> Score:
    return msgspec.structs.replace(score, **changes)


class TestGuiltyScores:
    """Another party's bytes drop its own score, and nobody else's."""

    @pytest.fixture
    def plan_and_scores(self, store: MemoryStore) -> tuple[Plan, str, list[Score]]:
        plan, digest = prepared(store)
        return plan, digest, [score_learner(store, plan, name, digest) for name in SIZES]

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"examples": 0}, "the score has no examples"),
            ({"examples": 6}, "the score contradicts itself"),
            ({"states": ()}, "the score does not fit the model's metrics"),
            ({"states": ((1.0,),)}, "the score does not fit the model's metrics"),
            ({"states": ((1.0, 2.0, 3.0), (1.0,))}, "the score does not fit the model's metrics"),
            ({"states": ((1.0, 2.0, 0.0),)}, "the score does not fit the model's metrics"),
            ({"label_shape": (2**40, 2**40)}, "the labels of the score are too large"),
            ({"label_shape": (1,) * 40}, "the labels of the score are too large"),
        ],
    )
    def test_of_every_kind(
        self, store: MemoryStore, plan_and_scores: tuple[Plan, str, list[Score]], changes: dict[str, object], why: str
    ) -> None:
        plan, digest, (guilty, good) = plan_and_scores
        found = evaluate(store, plan, digest, [forged(guilty, **changes), good])
        assert found.left_out["a"].startswith(why)
        assert list(found.learners) == ["b"]
        assert found.federated is not None
        assert found.federated.examples == 53

    def test_an_unknown_output(self, store: MemoryStore, plan_and_scores: tuple[Plan, str, list[Score]]) -> None:
        plan, digest, (guilty, good) = plan_and_scores
        found = evaluate(store, plan, digest, [forged(guilty, tallies={"x": guilty.tallies[""]}), good])
        assert found.left_out == {"a": "the score is of an unknown output"}

    def test_metrics_follow_from_the_states(
        self, store: MemoryStore, plan_and_scores: tuple[Plan, str, list[Score]]
    ) -> None:
        plan, digest, (guilty, good) = plan_and_scores
        found = evaluate(store, plan, digest, [forged(guilty, metrics={"accuracy": 99.0}), good])
        assert found.learners["a"].metrics == pytest.approx(guilty.metrics)

    def test_an_output_that_one_has_not_counted_has_no_sum(
        self, store: MemoryStore, plan_and_scores: tuple[Plan, str, list[Score]]
    ) -> None:
        plan, digest, (first, good) = plan_and_scores
        uncounted = forged(first, tallies={}, uncounted={"": "the labels are not classes"})
        found = evaluate(store, plan, digest, [uncounted, good])
        assert found.tallies["federated"] == {}
        assert found.uncounted == {"a": {"": "the labels are not classes"}}
        assert found.learners["b"].measures
        assert found.federated is not None
        assert not found.federated.measures


def test_measures_are_those_of_all_examples_together(store: MemoryStore) -> None:
    plan, digest = prepared(store)
    found = evaluate(store, plan, digest, [score_learner(store, plan, name, digest) for name in SIZES])
    model = plan_model(store, plan)
    (shares,) = model.predictor(model.initial_weights(4))(X)
    assert found.federated is not None
    expected = oracle.f1_score(Y, shares.argmax(axis=1), average="macro")
    assert found.federated.measures["f1_macro"] == pytest.approx(expected)
    parts = [found.learners[name].measures["f1_macro"] for name in SIZES]
    assert found.federated.measures["f1_macro"] != pytest.approx(np.average(parts, weights=[7, 53]), rel=1e-4)
    for k, line in enumerate(by_class(found.tallies["federated"][""])):  # type: ignore[arg-type]
        assert line.auc == pytest.approx(oracle.roc_auc_score(k == Y, shares[:, k]))


def test_class_names_come_from_the_federation_file(store: MemoryStore) -> None:
    plan, digest = prepared(store)
    named = make_federation(
        ("a", "b"), framework="numpy", training={"rounds": 1, "batch_size": 8},
        export={"classes": ["red", "green", "blue"]},
    )  # fmt: skip
    plan = msgspec.structs.replace(plan, federation=named)
    found = evaluate(store, plan, digest, [score_learner(store, plan, "b", digest)])
    assert found.classes == ("red", "green", "blue")


def test_a_model_that_diverged_says_so(store: MemoryStore) -> None:
    plan, _ = prepared(store)
    weights = plan_model(store, plan).initial_weights(4)
    digest = put_bytes(store, dumps({name: value * np.float32(np.nan) for name, value in weights.items()}))
    assert score_learner(store, plan, "b", digest).why == "the loss of the model is nan there"
