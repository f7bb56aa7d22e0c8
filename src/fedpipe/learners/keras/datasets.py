"""Examples for Keras: tf.data.Datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fedpipe.data.examples import Examples
from fedpipe.data.trees import Tree
from fedpipe.errors import DataError
from fedpipe.frameworks import frameworks
from fedpipe.learners.parts import Part, arrays_of, as_examples
from fedpipe.weights import Array


class DatasetPart:
    """A tf.data.Dataset of single (x, y) as a part. Its length is known."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    @property
    def label_shape(self) -> tuple[int, ...]:
        """See `Stream.label_shape`."""
        spec = self.dataset.element_spec[1]
        return tuple(spec.shape) if hasattr(spec, "shape") else ()

    def __len__(self) -> int:
        return int(self.dataset.cardinality().numpy())

    def take(self, count: int) -> DatasetPart:
        """See `Stream.take`."""
        return DatasetPart(self.dataset.take(count))

    def skip(self, count: int) -> DatasetPart:
        """See `Stream.skip`."""
        return DatasetPart(self.dataset.skip(count))

    def batches(self, size: int) -> Iterator[Examples]:
        """See `Stream.batches`."""
        for value in self.dataset.batch(size).as_numpy_iterator():
            x, y = _tree(value[0]), _tree(value[1])
            yield Examples(x, y, np.asarray(value[2], np.float32) if len(value) == 3 else None)


def _tree(value: Any) -> Tree:
    """Return a batch of a dataset as a tree; text arrives as bytes."""
    if isinstance(value, tuple):
        value = {str(position): leaf for position, leaf in enumerate(value)}

    def decoded(leaf: Any) -> Array:
        array = np.asarray(leaf)
        if array.dtype != object:
            return array
        return np.array([text.decode() for text in array.reshape(-1)], object).reshape(array.shape)

    return {name: decoded(leaf) for name, leaf in value.items()} if isinstance(value, Mapping) else decoded(value)


def read_part(value: Any, name: str) -> Part:
    """Return (x, y) or a tf.data.Dataset as a part. Raises DataError."""
    tensorflow, _ = frameworks()
    if not isinstance(value, tensorflow.data.Dataset):
        return arrays_of(value, name, otherwise=" or a tf.data.Dataset")
    if int(value.cardinality().numpy()) < 0:
        raise DataError(
            f"the dataset of {name} has an unknown length",
            remedy="Return arrays, apply tf.data.experimental.assert_cardinality, or return a table of parts.",
        )
    return DatasetPart(value)


def singles_of(part: Part) -> Any:
    """Return a part as a tf.data.Dataset of single (x, y) or (x, y, weight)."""
    if isinstance(part, DatasetPart):
        return part.dataset
    tensorflow, _ = frameworks()
    examples = as_examples(part)
    given = (examples.x, examples.y, *([] if examples.weight is None else [examples.weight]))
    return tensorflow.data.Dataset.from_tensor_slices(given)
