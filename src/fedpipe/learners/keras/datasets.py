"""Examples for Keras: tf.data.Datasets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
        return tuple(self.dataset.element_spec[1].shape)

    def __len__(self) -> int:
        return int(self.dataset.cardinality().numpy())

    def take(self, count: int) -> DatasetPart:
        """See `Stream.take`."""
        return DatasetPart(self.dataset.take(count))

    def skip(self, count: int) -> DatasetPart:
        """See `Stream.skip`."""
        return DatasetPart(self.dataset.skip(count))

    def batches(self, size: int) -> Iterator[tuple[Array, Array]]:
        """See `Stream.batches`."""
        yield from self.dataset.batch(size).as_numpy_iterator()


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
    """Return a part as a tf.data.Dataset of single (x, y)."""
    if isinstance(part, DatasetPart):
        return part.dataset
    tensorflow, _ = frameworks()
    return tensorflow.data.Dataset.from_tensor_slices(tuple(as_examples(part)))
