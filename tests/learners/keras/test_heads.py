"""The purpose of each output of a Keras model."""

from __future__ import annotations

from typing import Any

import keras
import pytest

from fedpipe.learners.keras.heads import heads_of
from fedpipe.rounds.tallies import Head

Dense, losses = keras.layers.Dense, keras.losses


def own(y: Any, p: Any) -> Any:
    return keras.ops.mean(p - y, axis=-1)


def compiled(loss: Any, *layers: Any) -> Any:
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("sgd", loss)
    return model


@pytest.mark.parametrize(
    ("loss", "layers", "expected"),
    [
        ("binary_crossentropy", [(1, "sigmoid")], ("binary", "probabilities")),
        ("bce", [(1, "sigmoid")], ("binary", "probabilities")),
        (losses.binary_crossentropy, [(1, "sigmoid")], ("binary", "probabilities")),
        (losses.BinaryCrossentropy(name="mine"), [(1, "sigmoid")], ("binary", "probabilities")),
        (losses.BinaryFocalCrossentropy(), [(1, "sigmoid")], ("binary", "probabilities")),
        (losses.BinaryCrossentropy(from_logits=True), [(1, None)], ("binary", "logits")),
        (losses.BinaryCrossentropy(from_logits=True), [(3, None)], ("multilabel", "logits")),
        ("binary_crossentropy", [(3, "sigmoid")], ("multilabel", "probabilities")),
        ("sparse_categorical_crossentropy", [(3, "softmax")], ("multiclass", "probabilities")),
        (losses.SparseCategoricalCrossentropy(from_logits=True), [(3, None)], ("multiclass", "logits")),
        ("categorical_crossentropy", [(2, "softmax")], ("binary", "probabilities")),
        ("kl_divergence", [(3, "softmax")], ("multiclass", "probabilities")),
        (losses.MeanSquaredError(), [(3, "softmax")], ("multiclass", "probabilities")),
        (own, [(3, "softmax")], ("multiclass", "probabilities")),
        (own, [(1, "sigmoid")], ("binary", "probabilities")),
        (own, [(1, None)], ("", "probabilities")),
        ("mse", [(1, None)], ("regression", "probabilities")),
        (losses.Huber(), [(2, None)], ("regression", "probabilities")),
        ("log_cosh", [(1, None)], ("regression", "probabilities")),
        ("mean_absolute_percentage_error", [(1, None)], ("regression", "probabilities")),
        ("hinge", [(1, "tanh")], ("binary", "margins")),
        (losses.CategoricalHinge(), [(3, None)], ("multiclass", "margins")),
    ],
)  # fmt: skip
def test_by_loss_and_activation(loss: Any, layers: list[tuple[int, str | None]], expected: tuple[str, str]) -> None:
    model = compiled(loss, *(Dense(width, activation=activation) for width, activation in layers))
    (head,) = heads_of(model)
    assert (head.name, head.task, head.form, head.width) == ("", *expected, layers[-1][0])


@pytest.mark.parametrize(
    "last",
    [
        [Dense(3), keras.layers.Softmax()],
        [Dense(3), keras.layers.Activation("softmax", dtype="float32")],
        [keras.Sequential([Dense(3, activation="softmax")])],
    ],
)
def test_an_activation_of_its_own_layer_counts(last: list[Any]) -> None:
    assert heads_of(compiled("kl_divergence", *last))[0].task == "multiclass"


def test_a_picture_is_not_a_row() -> None:
    (head,) = heads_of(compiled("mse", Dense(12), keras.layers.Reshape((4, 3))))
    assert head == Head("", "regression", "probabilities", 0)


@pytest.mark.parametrize("form", ["list", "dict"])
def test_several_outputs(form: str) -> None:
    inputs = keras.Input((4,))
    outputs = {"sick": Dense(1, activation="sigmoid", name="sick")(inputs), "age": Dense(1, name="age")(inputs)}
    model = keras.Model(inputs, outputs if form == "dict" else list(outputs.values()))
    model.compile("sgd", {"sick": "binary_crossentropy", "age": "mse"})
    found = {head.name: head.task for head in heads_of(model)}
    assert found == {"sick": "binary", "age": "regression"}
    if form == "list":
        model.compile("sgd", ["binary_crossentropy", "mse"])
        assert [head.task for head in heads_of(model)] == ["binary", "regression"]
        model.compile("sgd", "mse")
        assert {head.task for head in heads_of(model)} == {"regression"}
