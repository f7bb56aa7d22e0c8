"""DP-SGD by TensorFlow Privacy in the tff environment, against NumPy."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from fedpipe.engine.workers import Worker
from fedpipe.errors import DroppedError, InputError, ModelError
from fedpipe.frameworks import find_python
from fedpipe.learners.keras.model import KerasModel
from fedpipe.learners.keras.private import match_names
from fedpipe.learners.keras.training import check_private
from fedpipe.store.objects import digest_of
from tests import private_training
from tests.models import DENSE, RICH

RNG = np.random.default_rng(3)
X = RNG.normal(size=(8, 4)).astype(np.float32)
Y = np.argmax(X[:, :3], axis=1)
WEIGHTS = {
    "sequential/dense/kernel": RNG.normal(size=(4, 3)).astype(np.float32),
    "sequential/dense/bias": np.zeros(3, np.float32),
}
TRAINING = {"batch_size": 8, "local_epochs": 0, "local_steps": 1}
NO_NOISE = 1e-9


def privacy(**change: Any) -> dict[str, Any]:
    content = {"noise_multiplier": NO_NOISE, "l2_norm_clip": 0.4, "microbatches": 8, "delta": 1e-5, "target_epsilon": 1}
    return {**content, **change}


def train(tff: Worker, settings: dict[str, Any], training: dict[str, Any] | None = None, **more: Any) -> Any:
    given = {"code": DENSE, "x": X.tolist(), "y": Y.tolist(), "times": 1, "kept": False, "weights": WEIGHTS, **more}
    weights = {k: v.tolist() for k, v in given["weights"].items()}
    return tff.call(
        private_training.train, given["code"], settings, training or TRAINING, given["x"], given["y"], weights,
        given["times"], given["kept"],
    )  # fmt: skip


def gradients() -> list[dict[str, np.ndarray]]:
    """Of the loss of each example, by hand: softmax regression."""
    found = []
    for x, y in zip(X.astype(np.float64), Y, strict=True):
        scores = x @ WEIGHTS["sequential/dense/kernel"] + WEIGHTS["sequential/dense/bias"]
        soft = np.exp(scores - scores.max())
        error = soft / soft.sum() - np.eye(3)[y]
        found.append({"sequential/dense/kernel": np.outer(x, error), "sequential/dense/bias": error})
    return found


def clipped(gradient: dict[str, np.ndarray], norm: float) -> dict[str, np.ndarray]:
    length = np.sqrt(sum(np.sum(g**2) for g in gradient.values()))
    return {k: g * min(1.0, norm / length) for k, g in gradient.items()}


def mean(gradients: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {k: np.mean([g[k] for g in gradients], axis=0) for k in gradients[0]}


@pytest.mark.heavy
@pytest.mark.xdist_group("tff")
class TestAgainstNumPy:
    def test_each_example_is_clipped(self, tff: Worker) -> None:
        assert sum(np.linalg.norm(np.concatenate([v.ravel() for v in g.values()])) > 0.4 for g in gradients()) >= 4
        step = mean([clipped(g, 0.4) for g in gradients()])
        (found,) = train(tff, privacy())
        for name, start in WEIGHTS.items():
            np.testing.assert_allclose(found["weights"][name], start - 0.5 * step[name], atol=1e-6)

    def test_a_microbatch_is_clipped_as_one(self, tff: Worker) -> None:
        step = clipped(mean(gradients()), 0.4)
        (found,) = train(tff, privacy(microbatches=1))
        for name, start in WEIGHTS.items():
            np.testing.assert_allclose(found["weights"][name], start - 0.5 * step[name], atol=1e-6)

    def test_the_noise_has_the_promised_size(self, tff: Worker) -> None:
        """Without features the kernel moves by noise alone: deviation = rate x noise x clip / microbatches."""
        wide = {"sequential/dense/kernel": np.zeros((300, 3)), "sequential/dense/bias": np.zeros(3)}
        settings = privacy(noise_multiplier=3.0, l2_norm_clip=2.0)
        code, x = DENSE.replace("(4,)", "(300,)"), np.zeros((8, 300)).tolist()
        (found,) = train(tff, settings, code=code, x=x, weights=wide)
        moved = np.array(found["weights"]["sequential/dense/kernel"])
        assert moved.std() == pytest.approx(0.5 * 3 * 2 / 8, rel=0.12)  # 900 draws: 5 standard errors
        assert abs(moved.mean()) < 5 * moved.std() / np.sqrt(moved.size)

    def test_nobody_can_draw_the_noise_again(self, tff: Worker, other_tff: Worker) -> None:
        """Equal seeds, even in model.py, or another process: different noise. With the seed, it could be subtracted."""
        seeded = f"import tensorflow\ntensorflow.random.set_seed(7)\n{DENSE}"
        seeded = seeded.replace("    return model", "    keras.utils.set_random_seed(7)\n    return model")
        found = [train(worker, privacy(noise_multiplier=1.0), code=seeded)[0] for worker in (tff, tff, other_tff)]
        kernels = {str(f["weights"]["sequential/dense/kernel"]) for f in found}
        assert len(kernels) == 3


@pytest.mark.heavy
@pytest.mark.xdist_group("tff")
class TestWhatHappensAndWhatIsTold:
    def test_whole_batches_only(self, tff: Worker) -> None:
        (found,) = train(tff, privacy(microbatches=3), {"batch_size": 3, "local_epochs": 4})
        assert found["event"] == [8, 4, 8]  # two batches of three a pass
        assert found["steps"] == 8

    def test_a_large_train_part_is_private_too(self, tff: Worker) -> None:
        """Large parts go to Keras as arrays, with the run's seed and a smaller last batch: not a private one's."""
        weights = {k: v.tolist() for k, v in WEIGHTS.items()}
        training = {"batch_size": 3, "local_epochs": 1}
        given = (DENSE, privacy(microbatches=3), training, X.tolist(), Y.tolist(), weights)
        found = tff.call(private_training.train_large, *given)
        assert found == {"steps": 2, "event": [2, 1, 8], "seeded": False}

    def test_steps_beyond_an_epoch(self, tff: Worker) -> None:
        (found,) = train(tff, privacy(microbatches=3), {"batch_size": 3, "local_epochs": 0, "local_steps": 5})
        assert found["event"] == [5, 3, 8]
        assert found["steps"] == 5

    def test_nothing_exact_about_the_train_part(self, tff: Worker) -> None:
        (found,) = train(tff, privacy())
        assert found["metrics"] == {}
        assert found["logged"] == []

    def test_it_votes_by_the_accuracy(self, tff: Worker) -> None:
        given = {k: v.tolist() for k, v in WEIGHTS.items()}
        found = tff.call(private_training.score, DENSE, privacy(), X.tolist(), Y.tolist(), given)
        predicted = np.argmax(X @ WEIGHTS["sequential/dense/kernel"], axis=1)
        assert found["accuracy"] == pytest.approx(np.mean(predicted == Y))
        assert set(found) == {"loss", "accuracy"}

    def test_a_failure_quotes_no_label(self, tff: Worker) -> None:
        """Without privacy the message continues: "Received a label value of 12 ... Label values: 12 1 0 ..."."""
        with pytest.raises(DroppedError, match=r"^training failed: InvalidArgumentError$"):
            train(tff, privacy(), y=[12, *Y[1:].tolist()])

    def test_proposing_does_not_change_the_current_weights(self, tff: Worker) -> None:
        (found,) = train(tff, privacy(noise_multiplier=1.0))
        assert found["current"] == {k: v.tolist() for k, v in WEIGHTS.items()}

    def test_a_kept_optimizer_goes_on(self, tff: Worker) -> None:
        code = DENSE.replace("SGD(0.5)", "SGD(0.5, momentum=0.9)")
        training = {**TRAINING, "optimizer": "keep"}
        first, second = train(tff, privacy(), training, code=code, times=2, kept=True)
        step = mean([clipped(g, 0.4) for g in gradients()])
        for name, start in WEIGHTS.items():  # from the same weights: v = 0.9 v + g
            np.testing.assert_allclose(first["weights"][name], start - 0.5 * step[name], atol=1e-6)
            np.testing.assert_allclose(second["weights"][name], start - 0.5 * 1.9 * step[name], atol=1e-6)

    def test_adam_and_a_loss_that_is_an_object(self, tff: Worker) -> None:
        code = DENSE.replace("keras.optimizers.SGD(0.5)", "keras.optimizers.Adam(0.01)").replace(
            '"sparse_categorical_crossentropy"', "keras.losses.SparseCategoricalCrossentropy()"
        )
        (found,) = train(tff, privacy(), code=code)
        step = mean([clipped(g, 0.4) for g in gradients()])
        for name, start in WEIGHTS.items():  # the first step of Adam is the sign of the gradient
            moved = np.array(found["weights"][name]) - start
            np.testing.assert_allclose(moved, -0.01 * np.sign(step[name]), atol=1e-4)


REFUSED = {
    "batch normalization": (RICH, "mixes the examples of a batch"),
    "a schedule": (
        DENSE.replace("SGD(0.5)", "SGD(keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9))"),
        "learning rate schedule",
    ),
    "an optimizer without a private form": (DENSE.replace("SGD(0.5)", "Lion(0.5)"), "Lion has no private form"),
    "two losses": (
        DENSE.replace('"sparse_categorical_crossentropy"', '["sparse_categorical_crossentropy"]'),
        "needs one output and one loss",
    ),
}


@pytest.mark.heavy
@pytest.mark.xdist_group("tff")
@pytest.mark.parametrize(("code", "why"), REFUSED.values(), ids=REFUSED)
def test_models_that_cannot_be_private(tff: Worker, code: str, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        tff.call(private_training.build, code, privacy())


@pytest.mark.heavy
@pytest.mark.xdist_group("tff")
def test_its_python_is_another_and_what_it_cannot_read_is_said(tff: Worker) -> None:

    assert tff.call(os.getpid) != os.getpid()
    with pytest.raises(RuntimeError, match=r"numpy\._core"):  # arrays of NumPy 2 mean nothing to NumPy 1
        tff.call(len, np.zeros(3))
    assert tff.call(len, "abc") == 3


def test_batch_normalization_is_seen_in_keras_3_too() -> None:
    with pytest.raises(ModelError, match="no epsilon holds"):
        check_private(KerasModel(RICH.encode(), digest_of(RICH.encode()), "build").keras)
    check_private(KerasModel(DENSE.encode(), digest_of(DENSE.encode()), "build").keras)


class TestNames:
    def test_keras_3_writes_the_model_before_the_layer(self) -> None:
        theirs = {"sequential/dense/kernel": (4, 3), "sequential/dense/bias": (3,), "sequential/dense_1/bias": (3,)}
        ours = {"dense/kernel": (4, 3), "dense/bias": (3,), "dense_1/bias": (3,)}
        assert match_names(theirs, ours) == {k: k.removeprefix("sequential/") for k in theirs}

    @pytest.mark.parametrize(
        ("theirs", "ours", "why"),
        [
            ({"m/dense/kernel": (4, 3)}, {"dense/kernel": (3, 4)}, "no counterpart"),
            ({"m/a/kernel": (4,)}, {"b/kernel": (4,)}, "no counterpart"),
            ({"m/dense/kernel": (4,)}, {"dense/kernel": (4,), "dense/bias": (4,)}, "creates a variable 'dense/bias'"),
        ],
    )
    def test_what_does_not_match(self, theirs: Any, ours: Any, why: str) -> None:
        with pytest.raises(ModelError, match=why):
            match_names(theirs, ours)


def test_without_the_environment_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPIPE_TFF_PYTHON", "/nowhere/python")
    with pytest.raises(InputError, match=r"there is no /nowhere/python. Run `make setup-tff`"):
        find_python("tff")
