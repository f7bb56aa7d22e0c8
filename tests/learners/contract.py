"""The contract of every framework's model; each adapter's tests inherit it."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

from fedpipe import weights
from fedpipe.data.examples import Examples
from fedpipe.errors import DroppedError, ModelError
from fedpipe.federation.training import Training
from fedpipe.learners.check import built_model
from fedpipe.learners.framework import Arrays, Correction, Fitted, Model
from fedpipe.registry.export import largest_difference, run_onnx
from tests.federations import make_federation

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype(np.float32)
Y = np.argmax(X[:, :3], axis=1)
PART = Examples(X, Y)


class ModelContract:
    """Softmax regression of 4 features and 3 classes, with the loss and the accuracy.

    Attributes:
        framework: its name in the federation file.
        code: of the model, whose optimizer has a state.
        squared: of a model with one output and the squared error.
        plain: of the model with plain gradient descent at the rate 0.5.
    """

    framework: ClassVar[str]
    code: ClassVar[str]
    squared: ClassVar[str]
    plain: ClassVar[str]

    def model(self, code: str = "") -> Model:
        return built_model(make_federation(framework=self.framework), code or self.code)

    def another(self) -> Model:
        """The same model, built again."""
        raise NotImplementedError

    def train(self, model: Model, start: Arrays, part: Examples = PART, *, seed: int = 1, **more: Any) -> Fitted:
        limits = {"seconds": more.pop("seconds", 60.0), "optimizer": more.pop("optimizer", None)}
        training = Training(**{"rounds": 1, "batch_size": 8, **more})
        return model.train(start, part, training, seed=seed, **limits)

    def test_fresh_weights_are_those_of_their_seed(self) -> None:
        first, again = self.model().initial_weights(3), self.another().initial_weights(3)
        assert weights.digest_of(first) == weights.digest_of(again)
        assert {value.dtype for value in first.values()} == {np.dtype(np.float32)}

    def test_training_returns_new_weights_and_leaves_those_it_began_with(self) -> None:
        model = self.model()
        start = model.initial_weights(0)
        before = weights.digest_of(start)
        found = self.train(model, start, local_epochs=3)
        assert weights.digest_of(start) == before
        assert weights.digest_of(found.weights) != before
        assert {k: v.shape for k, v in found.weights.items()} == {k: v.shape for k, v in start.items()}
        assert [set(metrics) for metrics in found.epochs] == [{"loss", "accuracy"}] * 3
        assert found.epochs[-1]["loss"] < found.epochs[0]["loss"]
        assert found.optimizer is None

    def test_equal_seeds_give_equal_bytes_whatever_was_trained_before(self) -> None:
        model = self.model()
        start = model.initial_weights(0)
        first = weights.digest_of(self.train(model, start, local_epochs=2).weights)
        assert weights.digest_of(self.train(model, start, seed=2, local_epochs=2).weights) != first
        assert weights.digest_of(self.train(model, start, local_epochs=2).weights) == first

    def test_epochs_and_steps_are_counted(self) -> None:
        model = self.model()
        start = model.initial_weights(0)
        assert self.train(model, start, local_epochs=2).steps == 16  # the eighth batch of an epoch has 4 examples
        assert self.train(model, start, local_epochs=0, local_steps=12).steps == 12
        assert self.train(model, start, local_epochs=0, local_steps=3).steps == 3

    def test_a_learning_rate_of_the_federation_file_counts(self) -> None:
        model = self.model()
        start = model.initial_weights(0)
        found = self.train(model, start, learning_rate=1e-9)
        for name, value in start.items():
            np.testing.assert_allclose(found.weights[name], value, atol=1e-6)

    def test_a_kept_optimizer_continues(self) -> None:
        model = self.model()
        start = model.initial_weights(0)
        training = Training(rounds=1, batch_size=8, optimizer="keep")
        fresh = model.train(start, PART, training, seed=1, seconds=60, optimizer=None)
        assert fresh.optimizer
        kept = model.train(start, PART, training, seed=1, seconds=60, optimizer=fresh.optimizer)
        assert weights.digest_of(kept.weights) != weights.digest_of(fresh.weights)
        again = model.train(start, PART, training, seed=1, seconds=60, optimizer=None)
        assert weights.digest_of(again.weights) == weights.digest_of(fresh.weights)

    def descend(
        self, start: Arrays | None = None, correction: Correction | None = None, *, code: str = "", seed: int = 1,
        state: Arrays | None = None, **training: Any,
    ) -> tuple[Arrays, Fitted]:  # fmt: skip
        """Trains a model that is built for these settings; returns where it began, and the result."""
        settings = {"rounds": 1, "batch_size": 60, **training}
        federation = make_federation(framework=self.framework, training=settings)
        model = built_model(federation, code or self.plain)
        start = start or model.initial_weights(0)
        found = model.train(
            start, PART, federation.training, seed=seed, seconds=60.0, optimizer=state, correction=correction
        )
        return start, found

    def test_its_trainable_weights(self) -> None:
        model = self.model()
        assert set(model.trainable) == set(model.initial_weights(0))

    def test_a_late_training_is_dropped(self) -> None:
        model = self.model()
        with pytest.raises(DroppedError, match="late: training took longer than the deadline of 0 s"):
            self.train(model, model.initial_weights(0), seconds=0.0)

    def test_a_loss_that_explodes_is_dropped(self) -> None:
        model = self.model(self.squared)
        part = Examples(X * np.float32(1e30), Y.astype(np.float32))
        with pytest.raises(DroppedError, match=r"the loss is (inf|nan) in epoch 1: lower the learning rate"):
            self.train(model, model.initial_weights(0), part)

    def test_sums_over_a_split_are_those_of_the_whole(self) -> None:
        model, training = self.model(), Training(rounds=1, batch_size=8)
        start = model.initial_weights(0)
        whole = model.evaluate(start, PART, training)
        parts = [model.evaluate(start, Examples(X[s], Y[s]), training) for s in (slice(0, 7), slice(7, 60))]
        states = [np.sum(state, axis=0) for state in zip(*(part.states for part in parts), strict=True)]
        for found, expected in zip(states, whole.states, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5)
        together = self.another().metrics_of(states, ())
        assert together == pytest.approx(whole.metrics, rel=1e-5)

    def test_metrics_are_means_over_the_first_batches(self) -> None:
        model, training = self.model(), Training(rounds=1, batch_size=8)
        start = model.initial_weights(0)
        found = model.evaluate(start, PART, training, 2).metrics
        (shares,) = model.predictor(start)(X[:16])
        assert found["loss"] == pytest.approx(-np.log(shares[np.arange(16), Y[:16]]).mean(), rel=1e-5)
        assert found["accuracy"] == pytest.approx(np.mean(shares.argmax(axis=1) == Y[:16]))

    @pytest.mark.parametrize("opset", [15, 18])
    def test_the_onnx_form_answers_alike_for_any_batch(self, opset: int) -> None:
        model = self.model()
        start = model.initial_weights(0)
        data = model.convert(start, opset, {"key": "value"})
        loaded = onnx.load_from_string(data)
        onnx.checker.check_model(loaded, full_check=True)
        assert [version.version for version in loaded.opset_import if version.domain == ""] == [opset]
        assert {entry.key: entry.value for entry in loaded.metadata_props} == {"key": "value"}
        for count in (1, 7, 60):
            assert largest_difference(model.predictor(start), data, X[:count]) < 1e-6
        assert run_onnx(data, X[:7])[0].shape == (7, 3)

    def test_equal_weights_give_equal_onnx_bytes(self) -> None:
        model = self.model()
        start = model.initial_weights(0)
        data = model.convert(start, 17)
        assert model.convert(start, 17) == data
        assert self.another().convert(start, 17) == data
        assert model.convert({name: value + 1 for name, value in start.items()}, 17) != data

    def test_weights_that_do_not_fit(self) -> None:
        model, training = self.model(), Training(rounds=1, batch_size=8)
        good = model.initial_weights(0)
        name = next(iter(good))
        with pytest.raises(ModelError, match=r"the weights do not fit the model: .*only one of them has "):
            model.evaluate({k: v for k, v in good.items() if k != name}, PART, training)
        with pytest.raises(ModelError, match=r"the weights do not fit the model: .* is \(1,\), not"):
            model.evaluate({**good, name: np.zeros(1)}, PART, training)

    @pytest.mark.parametrize(
        ("x", "y", "message"),
        [
            (np.zeros((5, 3)), np.zeros(5), r"the features have shape \(3,\), but the model takes \(4,\)"),
            (np.zeros((5, 4, 1)), np.zeros(5), "the features have shape"),
            (np.zeros((5, 4)), np.array([0, 1, 2, 3, 0]), "the labels range from 0 to 3, but the model has 3 outputs"),
            (np.zeros((5, 4)), np.array([0, 1, 2, -1, 0]), "the labels range from -1"),
            (np.zeros((5, 4)), np.zeros((5, 3)), "the labels "),
        ],
    )
    def test_examples_that_do_not_fit(self, x: Any, y: Any, message: str) -> None:
        with pytest.raises(ModelError, match=message):
            self.model().check_examples(x, y)

    def test_examples_that_fit(self) -> None:
        assert self.model().check_examples(X[:3], np.array([0, 2, 1])) == {"loss", "accuracy"}

    def test_its_outline(self) -> None:
        outline = self.model().outline
        assert [(port.dtype, port.shape) for port in outline.inputs] == [("float32", (None, 4))]
        assert [(port.dtype, port.shape) for port in outline.outputs] == [("float32", (None, 3))]
        assert outline.text.startswith("15 parameters, input (None, 4), ")


class GradientContract(ModelContract):
    """Tests a model whose gradients fedpipe may change: corrections, clipping, accumulation."""

    def test_a_correction_is_added_to_the_gradient(self) -> None:
        """The step is w - eta (g + s (w - a) + o): FedProx pulls by s, and SCAFFOLD adds o."""
        start, plain = self.descend()
        kernel = next(name for name, value in start.items() if value.ndim == 2)
        anchors = {name: value + np.float32(1) for name, value in start.items()}
        offsets = {kernel: np.full(start[kernel].shape, 0.25, np.float32)}
        _, found = self.descend(correction=Correction(0.5, anchors, offsets), method={"name": "fedprox", "mu": 0.5})
        for name in start:
            change = 0.5 * -1.0 + (0.25 if name == kernel else 0.0)
            np.testing.assert_allclose(found.weights[name], plain.weights[name] - 0.5 * change, atol=1e-6)

    def test_a_correction_follows_the_weights_from_step_to_step(self) -> None:
        """With a rate at which the loss hardly matters, the distance shrinks by 1 - eta s a step."""
        start, _ = self.descend()
        anchors = {name: value - np.float32(1) for name, value in start.items()}
        several = {"local_epochs": 0, "local_steps": 3, "learning_rate": 1e-3}
        method = {"name": "fedprox", "mu": 100.0}
        _, plain = self.descend(**several)
        _, found = self.descend(correction=Correction(100.0, anchors), method=method, **several)
        for name in start:
            expected = anchors[name] + 0.9**3
            assert np.abs(found.weights[name] - expected).max() < 3e-3
            assert np.abs(plain.weights[name] - start[name]).max() < 3e-3

    def test_no_correction_is_left_from_an_earlier_training(self) -> None:
        method = {"name": "fedprox", "mu": 0.5}
        start, plain = self.descend(method=method)
        self.descend(correction=Correction(0.5, {n: v + np.float32(1) for n, v in start.items()}), method=method)
        _, again = self.descend(method=method)
        assert weights.digest_of(again.weights) == weights.digest_of(plain.weights)

    def test_gradients_are_clipped_by_their_norm_together(self) -> None:
        start, plain = self.descend()
        moved = {name: plain.weights[name] - start[name] for name in start}
        norm = float(np.sqrt(sum(float(np.sum(np.square(value))) for value in moved.values()))) / 0.5
        _, same = self.descend(clip_norm=norm * 1.01)
        _, clipped = self.descend(clip_norm=norm / 4)
        for name in start:
            np.testing.assert_allclose(same.weights[name], plain.weights[name], atol=1e-6)
            np.testing.assert_allclose(clipped.weights[name] - start[name], moved[name] / 4, atol=1e-6)

    def test_accumulated_batches_make_one_step(self) -> None:
        """Four batches of 15 have the mean gradient of one of 60; the rest of an incomplete group makes no step."""
        start, whole = self.descend()
        _, found = self.descend(batch_size=15, accumulate=4)
        _, more = self.descend(batch_size=15, accumulate=4, local_epochs=0, local_steps=7)
        for name in start:
            np.testing.assert_allclose(found.weights[name], whole.weights[name], atol=1e-6)
            np.testing.assert_allclose(more.weights[name], whole.weights[name], atol=1e-6)
        assert found.steps == 4

    def test_accumulated_gradients_are_kept_with_the_optimizer(self) -> None:
        settings = {"batch_size": 15, "accumulate": 4, "local_epochs": 0, "optimizer": "keep"}
        start, first = self.descend(local_steps=3, **settings)
        for name in start:
            np.testing.assert_allclose(first.weights[name], start[name], atol=1e-7)
        _, second = self.descend(first.weights, local_steps=1, state=first.optimizer, **settings)
        assert any(np.abs(second.weights[name] - start[name]).max() > 1e-4 for name in start)
