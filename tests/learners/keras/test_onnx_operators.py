"""Layers whose operations tf2onnx does not convert, and the names and bytes of the result."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from fedpipe.data.trees import Tree
from fedpipe.errors import ExportError
from fedpipe.learners.check import built_model
from fedpipe.learners.framework import Model
from fedpipe.learners.keras.onnx_canonical import canonicalise
from fedpipe.registry.export import largest_difference, run_onnx
from fedpipe.registry.prediction import open_model
from tests.federations import make_federation

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("keras")]
HEAD = "import keras, numpy as np\nfrom keras import layers, ops\n\ndef build():\n"
RNG = np.random.default_rng(0)
WORDS = RNG.choice(np.array(["x", "y", "zä", "", "other"], object), (30, 2))


def model_of(body: str) -> Model:
    lines = [*body.strip().splitlines(), "model.compile('sgd', 'mse')", "return model"]
    return built_model(make_federation(), HEAD + "\n".join(f"    {line}" for line in lines))


TEXT = "x = keras.Input((2,), dtype='string', name='categories')\n"
NUMBERS = "x = keras.Input((3,), name='numbers')\n"
END = "\nmodel = keras.Model(x, layers.Dense(2, name='scores')(layers.Flatten()(y)))"
LAYERS: dict[str, tuple[str, Any]] = {
    "text to numbers": (TEXT + "y = layers.Embedding(5, 3)(layers.StringLookup(vocabulary=['x', 'zä'])(x))", WORDS),
    "marked text": (TEXT + "y = layers.StringLookup(vocabulary=['x', 'zä'], output_mode='multi_hot')(x)", WORDS),
    "counted text": (TEXT + "y = layers.StringLookup(vocabulary=['x', 'zä'], output_mode='count')(x)", WORDS),
    "masked text": (
        TEXT + "y = layers.Embedding(5, 3)(layers.StringLookup(vocabulary=['x', 'zä'], mask_token='')(x))", WORDS,
    ),
    "weighed text": (
        TEXT + "y = layers.StringLookup(vocabulary=['x', 'y'], idf_weights=[0.2, 0.3], output_mode='tf_idf')(x)", WORDS,
    ),
    "a column of text": (
        TEXT + "y = layers.StringLookup(vocabulary=['x', 'zä'], output_mode='one_hot')(x[:, 1:2])", WORDS,
    ),
    "whole numbers": (
        "x = keras.Input((2,), dtype='int64')\ny = layers.IntegerLookup(vocabulary=[3, 5], output_mode='count')(x)",
        RNG.integers(2, 7, (30, 2)),
    ),
    "bins": (
        NUMBERS + "y = layers.Discretization([-1.0, 0.0, 0.5], output_mode='multi_hot')(x)",
        np.concatenate([RNG.normal(size=(28, 3)), [[-1.0, 0.0, 0.5]] * 2]).astype(np.float32),
    ),
    "an adapted mean": (
        NUMBERS + "n = layers.Normalization()\nn.adapt(np.random.default_rng(0).random((9, 3)))\ny = n(x)",
        RNG.normal(size=(30, 3)).astype(np.float32),
    ),
    "gelu": (NUMBERS + "y = layers.Dense(4, activation='gelu')(x)", RNG.normal(size=(30, 3)).astype(np.float32)),
    "missing numbers": (
        NUMBERS + "y = ops.where(ops.isnan(x), np.zeros(3, 'float32'), (x - np.ones(3, 'float32')) / 2)",
        np.where(RNG.random((30, 3)) < 0.3, np.nan, 1.5).astype(np.float32),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "x"), LAYERS.values(), ids=LAYERS)
def test_layers(body: str, x: Tree) -> None:
    model = model_of(body + END)
    start = model.initial_weights(0)
    data = model.convert(start, 17)
    loaded = onnx.load_from_string(data)
    onnx.checker.check_model(loaded, full_check=True)
    assert [value.name for value in loaded.graph.input] == [port.name for port in model.outline.inputs]
    assert [value.name for value in loaded.graph.output] == ["scores"]
    assert {o.domain for o in loaded.opset_import} <= {"", "ai.onnx.ml"}
    assert len({round(float(row[0]), 4) for row in run_onnx(data, x)[0]}) > 1
    assert largest_difference(model.predictor(start), data, x) < 1e-5
    assert model.convert(start, 17) == data


LOOPS = {
    "bidirectional": "x = keras.Input((5, 3))\ny = layers.Bidirectional(layers.GRU(2))(x)",
    "attention": "x = keras.Input((5, 4))\ny = layers.MultiHeadAttention(2, 3)(x, x)",
    "masked": "x = keras.Input((5, 3))\ny = layers.LSTM(2)(layers.Masking()(x))",
}


@pytest.mark.parametrize("body", LOOPS.values(), ids=LOOPS)
def test_equal_models_give_equal_bytes_whatever_the_converter_numbers(body: str) -> None:
    model = model_of(body + END)
    start = model.initial_weights(0)
    assert len({model.convert(start, 17) for _ in range(4)}) == 1


def test_names_of_several_inputs_and_outputs() -> None:
    body = """
a, b, t1 = keras.Input((2,), name="a"), keras.Input((3,), name="b"), keras.Input((1,), name="t1")
y = layers.Concatenate()([a, b, t1])
model = keras.Model({"b": b, "a": a, "t1": t1}, {"risk": layers.Dense(1)(y), "a": layers.Dense(2)(y)})
"""
    model = model_of(body)
    opened = open_model(model.convert(model.initial_weights(0), 17))
    assert [spec.name for spec in opened.inputs] == ["a", "b", "t1"]
    assert [spec.name for spec in opened.outputs] == ["a_", "risk"]  # ONNX allows each name once
    assert [spec.shape for spec in opened.outputs] == [(None, 2), (None, 1)]


def test_a_free_dimension_is_not_the_batch() -> None:
    model = model_of("x = keras.Input((None, 3), name='x')\nmodel = keras.Model(x, layers.LSTM(2, name='y')(x))")
    data = model.convert(model.initial_weights(0), 17)
    dimensions = onnx.load_from_string(data).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dimensions] == ["batch", "x_1", 3]
    assert run_onnx(data, np.zeros((4, 9, 3), np.float32))[0].shape == (4, 2)


REFUSED = {
    "hashes": (TEXT + "y = layers.Hashing(4, output_mode='multi_hot', name='buckets')(x)",
               "the layer 'buckets' (Hashing) hashes text"),
    "unknown words hashed": (
        TEXT + "y = layers.StringLookup(vocabulary=['x'], num_oov_indices=2, output_mode='multi_hot')(x)",
        "the layer 'string_lookup' (StringLookup) hashes text"),
    "split text": (
        "x = keras.Input((), dtype='string')\n"
        "y = layers.TextVectorization(vocabulary=['x'], output_mode='count', name='words')(x)",
        "the layer 'words' (TextVectorization)"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exported_is_said_with_the_layer(body: str, message: str) -> None:
    model = model_of(body + END)
    with pytest.raises(ExportError) as refused:
        model.convert(model.initial_weights(0), 17)
    assert message in refused.value.what
    assert "for which ONNX has no operator" in refused.value.what
    assert "export: none" in str(refused.value.remedy)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_a_model_of_mixed_precision_becomes_one_of_float32(precision: str) -> None:
    code = HEAD + "    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(2)])\n"
    code += "    model.compile('sgd', 'mse')\n    return model\n"
    training = {"rounds": 1, "batch_size": 1, "precision": precision}
    model = built_model(make_federation(training=training), code)
    assert model.outline.precision == precision.removeprefix("mixed_")
    start, x = model.initial_weights(0), RNG.normal(size=(9, 4)).astype(np.float32)
    data = model.convert(start, 17)
    assert {open_model(data).inputs[0].dtype, open_model(data).outputs[0].dtype} == {np.dtype(np.float32)}
    assert 0 < largest_difference(model.predictor(start), data, x) < 0.1
    exact = (x @ start["sequential/dense/kernel"]) @ start["sequential/dense_1/kernel"]
    np.testing.assert_allclose(run_onnx(data, x)[0], exact, atol=1e-5)


def test_canonical_form_is_that_of_the_graph_and_not_of_its_names() -> None:
    def graph(order: list[int], prefix: str) -> Any:
        make, spec = onnx.helper.make_node, onnx.helper.make_tensor_value_info
        nodes = [
            make("Identity", ["in"], [f"{prefix}i"]),
            make("Neg", [f"{prefix}i"], [f"{prefix}n"]),
            make("Abs", [f"{prefix}i"], [f"{prefix}b"]),
            make("Add", [f"{prefix}n", f"{prefix}b"], ["out"]),
        ]
        value = [spec(name, onnx.TensorProto.FLOAT, ["unk__1", 2]) for name in ("in", "out")]
        return onnx.helper.make_graph([nodes[k] for k in order], prefix, value[:1], value[1:])

    made = [graph([0, 1, 2, 3], "a"), graph([0, 2, 1, 3], "z")]
    for each in made:
        canonicalise(each, {"in": "x"}, ["y"])
    assert made[0].SerializeToString() == made[1].SerializeToString()
    assert [node.op_type for node in made[0].node] == ["Neg", "Abs", "Add"]
    onnx.checker.check_graph(made[0])
