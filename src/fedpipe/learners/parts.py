"""A part of a learner's examples: arrays, or a dataset that a framework reads one after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from fedpipe.data.examples import Examples, check_examples, examples_joined
from fedpipe.data.trees import tree_of
from fedpipe.errors import DataError

LabelShape = tuple[int, ...] | dict[str, tuple[int, ...]]
"""The shape of one label, or of each of several by name."""


class Stream(Protocol):
    """Single examples that a framework reads one after another, such as those of a tf.data.Dataset."""

    @property
    def label_shape(self) -> LabelShape:
        """The shape of one label."""

    def __len__(self) -> int: ...

    def take(self, count: int) -> Stream:
        """Return the first examples."""

    def skip(self, count: int) -> Stream:
        """Return all but the first examples."""

    def batches(self, size: int) -> Iterator[Examples]:
        """Yield `size` examples at a time."""


Part = Examples | Stream
"""The train, vote or test part of a learner's examples."""


def size_of(part: Part) -> int:
    """Return the number of examples of a part."""
    return part.count if isinstance(part, Examples) else len(part)


def label_shape_of(part: Part) -> LabelShape:
    """Return the shape of one label of a part, or of each of several by name."""
    if not isinstance(part, Examples):
        return part.label_shape
    return {k: v.shape[1:] for k, v in part.y.items()} if isinstance(part.y, dict) else part.y.shape[1:]


def batches_of(part: Part, size: int) -> Iterator[Examples]:
    """Yield `size` examples of a part at a time."""
    if not isinstance(part, Examples):
        return part.batches(size)
    return (part.rows(slice(i, i + size)) for i in range(0, part.count, size))


def as_examples(part: Part) -> Examples:
    """Return a part as arrays."""
    if isinstance(part, Examples):
        return part
    return examples_joined(list(part.batches(1024)))


def arrays_of(value: Any, name: str, *, otherwise: str = "") -> Examples:
    """Return the result of `load` in the user's file as arrays.

    Args:
        value: (x, y) or (x, y, sample weights); x and y may be dicts or tuples of arrays.
        name: the learner, for messages.
        otherwise: other accepted values, for the message.

    Raises:
        DataError: the value is none of these, or these cannot be used.
    """
    if not isinstance(value, tuple | list) or len(value) not in (2, 3):
        many = f" of {len(value)}" if isinstance(value, tuple | list) else ""
        raise DataError(f"the data of {name} is {type(value).__name__}{many}, not (x, y) or (x, y, weights){otherwise}")
    x, y = tree_of(value[0], "features", name), tree_of(value[1], "labels", name)
    weight = np.asarray(value[2]) if len(value) == 3 and value[2] is not None else None
    check_examples(x, y, name, weight)
    return Examples(x, y, None if weight is None else weight.astype(np.float32))
