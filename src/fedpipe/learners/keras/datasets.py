"""Examples for Keras: tf.data.Datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fedpipe.data.examples import Examples
from fedpipe.data.ports import chosen
from fedpipe.data.trees import Tree
from fedpipe.errors import DataError
from fedpipe.frameworks import frameworks
from fedpipe.learners.keras.structure import Side, tensors
from fedpipe.learners.parts import LabelShape, Part, arrays_of, as_examples
from fedpipe.weights import Array


class DatasetPart:
    """A tf.data.Dataset of single (x, y) as a part. Its length is known."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    @property
    def label_shape(self) -> LabelShape:
        """See `Stream.label_shape`."""
        spec = self.dataset.element_spec[1]
        if isinstance(spec, tuple):
            spec = {str(position): part for position, part in enumerate(spec)}
        return {k: tuple(v.shape) for k, v in spec.items()} if isinstance(spec, Mapping) else tuple(spec.shape)

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


def singles_of(part: Part, inputs: Side | None = None, outputs: Side | None = None) -> Any:
    """Return a part as a tf.data.Dataset of single (x, y) or (x, y, weight).

    Args:
        part: the examples.
        inputs: of the model, which settle how several features are arranged; None leaves them as they are.
        outputs: of the model, for the labels.

    Raises:
        ModelError: names, shapes or dtypes do not fit the model.
    """
    tensorflow, _ = frameworks()
    if isinstance(part, DatasetPart):
        return _arranged(part.dataset, inputs, outputs)
    examples = as_examples(part)
    x = tensors(inputs.arranged(examples.x) if inputs else examples.x, tensorflow)
    y = outputs.labelled(examples.y) if outputs else examples.y
    given = (x, y, *([] if examples.weight is None else [examples.weight]))
    return tensorflow.data.Dataset.from_tensor_slices(given)


def _arranged(dataset: Any, inputs: Side | None, outputs: Side | None) -> Any:
    if inputs is None or outputs is None:
        return dataset
    x, y = dataset.element_spec[:2]
    nested = isinstance(x, Mapping | tuple) or isinstance(y, Mapping | tuple)
    if not nested and inputs.single and outputs.single and not inputs.lacks_last(inputs.ports[0], x.shape):
        return dataset
    chosen(inputs.names, _names_of(x), "features")  # in the graph, its error would be hidden
    chosen(outputs.names, _names_of(y), "labels", outputs.optional)
    return dataset.map(lambda x, y, *w: (inputs.of_element(x, "features"), outputs.of_element(y, "labels"), *w))


def _names_of(spec: Any) -> list[str]:
    if isinstance(spec, Mapping):
        return list(spec)
    return [str(position) for position in range(len(spec))] if isinstance(spec, tuple) else [""]
