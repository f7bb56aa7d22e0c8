"""A learner in JAX: a network with one hidden layer for the digits, as a pure function that is compiled once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import nn

FEATURES, HIDDEN, CLASSES = 64, 32, 10


def logits(weights: Any, x: Any) -> Any:
    """Return the network's outputs, (examples, 10)."""
    hidden = nn.relu(x @ weights["hidden/kernel"] + weights["hidden/bias"])
    return hidden @ weights["out/kernel"] + weights["out/bias"]


def loss(weights: Any, x: Any, y: Any) -> Any:
    """Return the mean cross-entropy."""
    return -jnp.mean(nn.log_softmax(logits(weights, x))[jnp.arange(len(y)), y])


@functools.partial(jax.jit, static_argnames="rate")
def step(weights: Any, x: Any, y: Any, rate: float) -> Any:
    """Return the weights after a step of gradient descent."""
    slopes = jax.grad(loss)(weights, x, y)
    return jax.tree.map(lambda w, slope: w - rate * slope, weights, slopes)


class learner:  # noqa: N801  (it is called like a function)
    """The functions that fedpipe calls, the names of the metrics, and the purpose of the output."""

    metrics = ("loss", "accuracy")
    task = "multiclass"

    def initial_weights(self, seed: int) -> dict[str, Any]:
        """Return the weights before the first round. Their names, shapes and dtypes are those of all rounds."""
        first, second = jax.random.split(jax.random.key(seed))
        return {
            "hidden/kernel": jax.random.normal(first, (FEATURES, HIDDEN)) / FEATURES**0.5,
            "hidden/bias": jnp.zeros(HIDDEN),
            "out/kernel": jax.random.normal(second, (HIDDEN, CLASSES)) / HIDDEN**0.5,
            "out/bias": jnp.zeros(CLASSES),
        }

    def train(
        self, weights: Any, x: Any, y: Any, *, epochs: int, batch_size: int, seed: int, l2: float = 0.0001,
        learning_rate: float | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Return the weights after some passes over a learner's examples, in batches of one size."""
        order, rate = np.random.default_rng(seed), learning_rate or 0.3
        for _ in range(epochs):
            places = order.permutation(len(x))
            for batch in places[: max(1, len(x) // batch_size) * batch_size].reshape(-1, min(batch_size, len(x))):
                weights = step(weights, x[batch], y[batch], rate)
            weights = {name: value * (1 - rate * l2) for name, value in weights.items()}
        return weights

    def evaluate(self, weights: Any, x: Any, y: Any) -> dict[str, float]:
        """Return means over the examples."""
        right = logits(weights, x).argmax(axis=1) == y
        return {"loss": float(loss(weights, x, y)), "accuracy": float(right.mean())}

    def predict(self, weights: Any, x: Any) -> Any:
        """Return the probability of each class, (examples, 10)."""
        return nn.softmax(logits(weights, x))

    def convert(self, weights: Any, opset: int) -> Any:
        """Return the model as ONNX, with the output of `predict`: the same network in ONNX's own text."""
        from onnx import checker, numpy_helper, parser

        text = f"""
            <ir_version: 9, opset_import: ["" : {opset}]>
            digits (float[batch, {FEATURES}] pixels) => (float[batch, {CLASSES}] probabilities) {{
                first = Gemm(pixels, hidden_kernel, hidden_bias)
                hidden = Relu(first)
                second = Gemm(hidden, out_kernel, out_bias)
                probabilities = Softmax<axis = 1>(second)
            }}"""
        found = parser.parse_model(text)
        arrays = {name.replace("/", "_"): np.asarray(value) for name, value in weights.items()}
        found.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in arrays.items())
        checker.check_model(found)
        return found
