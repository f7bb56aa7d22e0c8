"""Methods for learners that differ, in Keras: the numbers of NumPy, mixed precision, and gradients of embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedpipe.data.examples import Examples
from fedpipe.errors import ModelError
from fedpipe.federation.training import Training
from fedpipe.learners.check import built_model
from fedpipe.learners.framework import Arrays, Correction, Model
from fedpipe.learners.methods import Begun, train
from fedpipe.learners.personal import Kept
from tests.federations import make_federation
from tests.learners.contract import PART
from tests.models import DENSE, LINEAR

METHODS: dict[str, Any] = {
    "fedprox": {"name": "fedprox", "mu": 0.5},
    "scaffold": "scaffold",
    "fednova": "fednova",
    "ditto": {"name": "ditto", "lambda": 0.5},
    "mr_mtl": {"name": "mr_mtl", "lambda": 0.5},
}
OPTIONS = {"rounds": 1, "batch_size": 60, "local_epochs": 4, "learning_rate": 0.25}


def made(framework: str, code: str, **training: Any) -> tuple[Model, Training]:
    federation = make_federation(framework=framework, training={**OPTIONS, **training})
    return built_model(federation, code), federation.training


def renamed(arrays: Any) -> Arrays:
    """By the last part of a name: `sequential/dense/kernel` is `kernel`."""
    return {name.rpartition("/")[2]: value for name, value in arrays.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options", [{}, {"clip_norm": 0.3}, {"accumulate": 2}], ids=["plain", "clipped", "accumulated"]
)
def test_the_numbers_are_those_of_numpy(method: str, options: dict[str, Any]) -> None:
    """From the same weights and states, over batches of the whole part, whose order does not matter."""
    if method == "scaffold" and "clip_norm" in options:
        return  # the file refuses it
    ours, settings = made("numpy", LINEAR, method=METHODS[method], **options)
    keras, same = made("keras", DENSE, method=METHODS[method], **options)
    named = {name.rpartition("/")[2]: name for name in keras.initial_weights(0)}
    draw = np.random.default_rng(1)

    def drawn(scale: float) -> Arrays:
        return {k: (scale * draw.normal(size=v.shape)).astype(np.float32) for k, v in ours.initial_weights(3).items()}

    base, control, kept = drawn(1.0), drawn(0.1), Kept(model=drawn(1.0), control=drawn(0.1))
    begun = Begun(base, kept, control, None, seed=1, seconds=60.0)
    theirs = Begun(
        {named[k]: v for k, v in base.items()},
        Kept(
            model={named[k]: v for k, v in kept.model.items()}, control={named[k]: v for k, v in kept.control.items()}
        ),
        {named[k]: v for k, v in control.items()}, None, seed=1, seconds=60.0,
    )  # fmt: skip
    fitted, kept = train(ours, PART, settings, begun)
    found, stayed = train(keras, PART, same, theirs)
    for part, other in (
        (fitted.weights, found.weights), (kept.model, stayed.model), (kept.control, stayed.control)
    ):  # fmt: skip
        assert renamed(other).keys() == part.keys()
        for name, value in renamed(other).items():
            np.testing.assert_allclose(value, part[name], atol=2e-5)


def test_mixed_precision() -> None:
    """The loss is scaled there; a pull is not, and clipped is what is left after the scale."""
    prox = {"name": "fedprox", "mu": 1.0}
    options = {"precision": "mixed_float16", "method": prox, "local_epochs": 1}
    model, training = made("keras", DENSE, **options)
    start = model.initial_weights(0)
    anchors = {name: value + np.float32(2) for name, value in start.items()}

    def trained(correction: Correction | None, more: Training = training, on: Model = model) -> Arrays:
        return on.train(start, PART, more, seed=1, seconds=60, optimizer=None, correction=correction).weights

    plain, pulled = trained(None), trained(Correction(1.0, anchors))
    for name in start:
        np.testing.assert_allclose(pulled[name], plain[name] + 0.25 * 2.0, atol=2e-3)
    small, clipping = made("keras", DENSE, **options, clip_norm=1e-3)
    clipped = trained(None, clipping, small)
    moved = np.sqrt(sum(float(np.sum(np.square(clipped[name] - start[name]))) for name in start))
    assert moved == pytest.approx(0.25e-3, rel=1e-2)


EMBEDDED = """
import keras

def build():
    model = keras.Sequential([
        keras.Input((2,), dtype="int32"), keras.layers.Embedding(6, 3, name="words"), keras.layers.Flatten(),
        keras.layers.Dense(2, activation="softmax"),
    ])
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    return model
"""


def test_rows_of_an_embedding_that_no_example_has_are_pulled_too() -> None:
    model, training = made("keras", EMBEDDED, method={"name": "fedprox", "mu": 1.0}, batch_size=4, local_epochs=1)
    start = model.initial_weights(0)
    (words,) = (name for name in start if "words" in name)
    part = Examples(np.array([[0, 1], [1, 2], [0, 2], [1, 1]], np.int32), np.array([0, 1, 0, 1]))
    anchors = {words: start[words] + np.float32(1)}
    found = model.train(
        start, part, training, seed=1, seconds=60, optimizer=None, correction=Correction(1.0, anchors)
    ).weights
    np.testing.assert_allclose(found[words][3:], start[words][3:] + 0.25, atol=1e-6)
    assert np.abs(found[words][:3] - start[words][:3] - 0.25).max() > 1e-4


def test_a_model_that_was_built_without_corrections_does_not_ignore_one() -> None:
    model, training = made("keras", DENSE)
    start = model.initial_weights(0)
    with pytest.raises(ModelError, match="built without corrections"):
        model.train(start, PART, training, seed=1, seconds=60, optimizer=None, correction=Correction(1.0, start))


def test_an_optimizer_that_clips_already() -> None:
    with pytest.raises(ModelError, match=r"training\.clip_norm: the optimizer has clipvalue already"):
        made("keras", DENSE.replace("SGD(0.5)", "SGD(0.5, clipvalue=1.0)"), clip_norm=1.0)
