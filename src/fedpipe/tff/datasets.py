"""Clients' examples as TFF takes them: a tf.data.Dataset of batches `OrderedDict(x, y)` for each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedpipe.data import Examples
from fedpipe.errors import DataError
from fedpipe.federation import Training
from fedpipe.keras_model import frameworks

_WIDER = 4
"""Batches of the training that make one of a test, which keeps no activations."""


def train_batches(part: Any, training: Training, seed: int) -> Any:
    """What a client trains on in a round: the same batches in the same order as a Keras learner.

    Args:
        part: Examples, or a tf.data.Dataset of single (x, y).
        training: epochs or steps, and the size of a batch.
        seed: of the order.
    """
    dataset = _singles(part)
    if isinstance(part, Examples) and training.fit.get("shuffle", True):
        dataset = dataset.shuffle(len(part.y), seed=seed)
    if training.local_steps:
        return dataset.repeat().batch(training.batch_size).take(training.local_steps)
    return dataset.batch(training.batch_size).repeat(training.local_epochs)


def whole_batch(part: Any) -> Any:
    """All examples as one batch: what federated SGD takes the gradient of."""
    dataset = _singles(part)
    return dataset.batch(max(1, int(dataset.cardinality().numpy())))


def test_batches(parts: list[Any], size: int) -> Any:
    """What a client tests with: these parts, one after another."""
    datasets = [_singles(part) for part in parts]
    whole = datasets[0]
    for dataset in datasets[1:]:
        whole = whole.concatenate(dataset)
    return whole.batch(size * _WIDER)


def _singles(part: Any) -> Any:
    tensorflow, _ = frameworks()
    dataset = tensorflow.data.Dataset.from_tensor_slices(tuple(part)) if isinstance(part, Examples) else part
    return dataset.map(lambda x, y: OrderedDict(x=x, y=y))


def size_of(part: Any) -> int:
    """Examples of a part."""
    return len(part.y) if isinstance(part, Examples) else int(part.cardinality().numpy())


def first_examples(parts: Mapping[str, Any], learner: str) -> Examples:
    """A few examples of a learner, to know shapes and dtypes by. Raises DataError."""
    part = next((p for p in parts.values() if size_of(p)), None)
    if part is None:
        raise DataError(f"{learner} has no examples")
    if isinstance(part, Examples):
        return Examples(part.x[:2], part.y[:2])
    pairs = list(part.take(2).as_numpy_iterator())
    return Examples(np.stack([x for x, _ in pairs]), np.stack([y for _, y in pairs]))


def check_alike(first: Examples, other: Examples, names: tuple[str, str]) -> None:
    """Checks that two learners' examples have the same form. Raises DataError with both."""
    for what, a, b in (("features", first.x, other.x), ("labels", first.y, other.y)):
        if (a.dtype, a.shape[1:]) != (b.dtype, b.shape[1:]):
            raise DataError(
                f"the {what} of {names[0]} are {a.dtype}{list(a.shape[1:])}, those of {names[1]} {b.dtype}"
                f"{list(b.shape[1:])}",
                remedy="Simulated clients need the same form: convert one of them.",
            )
