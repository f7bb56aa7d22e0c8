"""A part of a learner's examples: arrays, or a dataset that a framework reads one after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from fedpipe.data.examples import Examples, check_examples
from fedpipe.errors import DataError
from fedpipe.weights import Array


class Stream(Protocol):
    """Single examples that a framework reads one after another, such as those of a tf.data.Dataset."""

    @property
    def label_shape(self) -> tuple[int, ...]:
        """The shape of one label."""

    def __len__(self) -> int: ...

    def take(self, count: int) -> Stream:
        """Return the first examples."""

    def skip(self, count: int) -> Stream:
        """Return all but the first examples."""

    def batches(self, size: int) -> Iterator[tuple[Array, Array]]:
        """Yield features and labels of `size` examples at a time."""


Part = Examples | Stream
"""The train, vote or test part of a learner's examples."""


def size_of(part: Part) -> int:
    """Return the number of examples of a part."""
    return len(part.y) if isinstance(part, Examples) else len(part)


def label_shape_of(part: Part) -> tuple[int, ...]:
    """Return the shape of one label of a part."""
    return part.y.shape[1:] if isinstance(part, Examples) else part.label_shape


def batches_of(part: Part, size: int) -> Iterator[tuple[Array, Array]]:
    """Yield features and labels of `size` examples of a part at a time."""
    if not isinstance(part, Examples):
        return part.batches(size)
    return ((part.x[i : i + size], part.y[i : i + size]) for i in range(0, len(part.y), size))


def as_examples(part: Part) -> Examples:
    """Return a part as arrays."""
    if isinstance(part, Examples):
        return part
    x, y = zip(*part.batches(1024), strict=True)
    return Examples(np.concatenate(x), np.concatenate(y))


def arrays_of(value: Any, name: str, *, otherwise: str = "") -> Examples:
    """Return the result of `load` in the user's file as arrays.

    Args:
        value: (x, y).
        name: the learner, for messages.
        otherwise: other accepted values, for the message.

    Raises:
        DataError: the value is not (x, y), or these cannot be used.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise DataError(f"the data of {name} is {type(value).__name__}, not (x, y){otherwise}")
    x, y = np.asarray(value[0]), np.asarray(value[1])
    check_examples(x, y, name)
    return Examples(x, y)
