"""Tables inside Keras models: the encoding against NumPy, raw rows through ONNX, and what cannot be built."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from fedpipe import weights
from fedpipe.data.examples import Examples
from fedpipe.data.parts import dump_examples
from fedpipe.data.schema import Column, Schema
from fedpipe.engine.workers import Worker
from fedpipe.errors import ModelError
from fedpipe.learners.check import takes_missing
from fedpipe.learners.keras.draws import is_stock
from fedpipe.learners.keras.model import KerasModel
from fedpipe.store.objects import digest_of
from tests import private_training

COLUMNS = (
    Column(name="age", kind="number", missing=True, mean=50.0, deviation=10.0),
    Column(name="sex", kind="category", missing=True, categories=("f", "m")),
    Column(name="born", kind="date", mean=-3000.0, deviation=500.0),
    Column(name="ward", kind="category", categories=("007", "x y")),
    Column(name="note", kind="text"),
)
MODEL = """
import keras

def build(table):
    pieces = [table.encoded]
    if "texts" in table.inputs:
        words = keras.layers.TextVectorization(vocabulary=["well", "ill"], output_mode="multi_hot")
        pieces.append(words(table.inputs["texts"]))
    outputs = keras.layers.Concatenate(name="all")(pieces) if pieces[1:] else pieces[0]
    model = keras.Model(table.inputs, keras.layers.Dense(table.outputs)(outputs))
    model.compile("sgd", "mse")
    return model
"""
X = {
    "numbers": np.array([[60, -2500], [np.nan, -3000]], np.float32),
    "categories": np.array([["m", "007"], ["", "other"]], object),
}


def built(code: str = MODEL, columns: tuple[Column, ...] = COLUMNS[:4], **more: Any) -> KerasModel:
    return KerasModel(code.encode(), digest_of(code.encode()), "build", schema=Schema(columns=columns, **more))


def encoded(model: KerasModel, x: dict[str, Any]) -> Any:
    """Returns the values that the last layer takes."""
    import keras

    inner = keras.Model(model.keras.inputs, model.keras.layers[-1].input)
    return np.asarray(inner([x[port.name] for port in model.inputs.ports]))


def test_the_encoding() -> None:
    """Normalised numbers, whether a number is missing, and for each category: unknown, missing if allowed, values."""
    import keras

    model = built()
    assert is_stock(model.keras, keras)
    sorted_x = {name: keras.ops.convert_to_tensor(np.array(value, value.dtype)) if value.dtype != object else value
                for name, value in X.items()}  # fmt: skip
    import tensorflow as tf

    sorted_x["categories"] = tf.constant(X["categories"].tolist())
    expected = [
        [1, 1, 0, *[0, 0, 0, 1], *[0, 1, 0]],  # (60 - 50) / 10, (-2500 + 3000) / 500; m; 007
        [0, 0, 1, *[0, 1, 0, 0], *[1, 0, 0]],  # the mean, and missing; missing; unknown
    ]
    np.testing.assert_allclose(encoded(model, sorted_x), expected, atol=1e-6)


def test_values_may_be_missing_although_none_was_in_the_training() -> None:
    """They count as the mean, and as an unknown category; `takes_missing` finds it out, also for other models."""
    import tensorflow as tf

    columns = tuple(msgspec.structs.replace(column, missing=False) for column in COLUMNS[:4])
    model, schema = built(columns=columns), Schema(columns=columns)
    x = {"numbers": tf.constant([[np.nan, -2500.0]]), "categories": tf.constant([["", "x y"]])}
    np.testing.assert_allclose(encoded(model, x), [[0, 1, *[1, 0, 0], *[0, 0, 1]]], atol=1e-6)
    row = {name: array[:1] for name, array in X.items()}
    assert takes_missing(model.predictor(model.initial_weights(0)), row, schema, always=True)
    raw = built(MODEL.replace("[table.encoded]", "[table.inputs['numbers']]"), columns=columns[::2])
    assert takes_missing(raw.predictor(raw.initial_weights(0)), row["numbers"], Schema(columns=columns[::2]))
    assert not takes_missing(
        raw.predictor(raw.initial_weights(0)), row["numbers"], Schema(columns=columns[::2]), always=True
    )
    assert row["numbers"].tolist() == [[60, -2500]]


def test_raw_rows_go_through_onnx() -> None:
    from fedpipe.federation.training import Export
    from fedpipe.registry.export import convert_checked

    model = built()
    weights = model.initial_weights(0)
    _, difference = convert_checked(model, weights, Export(), X, {})
    assert difference < 1e-5


@pytest.mark.parametrize(("classes", "outputs"), [((), 1), (("a", "b"), 1), (("a", "b", "c"), 3)])
def test_the_number_of_outputs(classes: tuple[str, ...], outputs: int) -> None:
    model = built(columns=COLUMNS[:1], classes=classes)
    assert model.outline.outputs[0].shape == (None, outputs)


def test_a_table_of_texts_has_no_encoding() -> None:
    with pytest.raises(ModelError, match=r"texts only, which table.encoded leaves out. Use table.inputs"):
        built(columns=COLUMNS[4:])


def test_a_parameter_without_a_table_and_a_table_without_a_parameter() -> None:
    with pytest.raises(ModelError, match=r"build\(\) takes a table, but data.features names an array. Remove"):
        KerasModel(MODEL.encode(), digest_of(MODEL.encode()), "build")
    plain = """
import keras

def build():
    model = keras.Sequential([keras.Input((2,), name="numbers"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model
"""
    columns = tuple(column for column in COLUMNS if column.kind in ("number", "date"))
    assert built(plain, columns).outline.inputs[0].shape == (None, 2)


def test_a_mistake_in_build_names_its_line() -> None:
    with pytest.raises(ModelError, match=r"build\(\) fails, because AttributeError: .*'encode'.*\(line 5\)"):
        built(MODEL.replace("table.encoded", "table.encode"))


@pytest.mark.heavy
@pytest.mark.xdist_group("tff")
def test_a_private_learner_has_the_same_features(tff: Worker) -> None:
    """Columns of every kind, in Keras 2 and TensorFlow Privacy: the predictions, and every weight can be trained."""
    code = MODEL.replace('words(table.inputs["texts"])', 'words(table.inputs["texts"][:, 0])')
    model, schema = built(code, COLUMNS), Schema(columns=COLUMNS)
    start = model.initial_weights(0)
    examples = Examples({**X, "texts": np.array([["Ill, not well!"], [""]], object)}, np.array([0.5, 2], np.float32))
    settings = {"noise_multiplier": 1.0, "l2_norm_clip": 1.0, "microbatches": 2, "delta": 0.1, "target_epsilon": 9.0}
    given = dump_examples(examples), weights.dumps(start)
    found = tff.call(private_training.predict, code, settings, schema, *given)
    expected = model.predictor(start)(examples.x)[0]
    np.testing.assert_allclose(found, expected[:, 0], atol=1e-5)
    assert abs(found[0] - found[1]) > 0.1
