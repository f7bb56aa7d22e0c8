"""The settings of a linear model, as a user's file returns them for `framework: numpy`."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from fedpipe.errors import ModelError


class Linear(NamedTuple):
    """A linear model, as `build` of a user's file returns it for `framework: numpy`.

    Args:
        features: number of features of an example, or their shape, such as (8, 8, 1) for pictures.
        outputs: classes for `softmax`, values for `squared`.
        loss: `softmax` with whole-number labels from 0, `squared` with labels (examples,) or (examples, outputs).
        learning_rate: eta of the step, unless the federation file has one.
        momentum: mu of the step; 0 for none.
        l2: strength of the penalty on the weights, which the reported loss does not contain.
    """

    features: int | tuple[int, ...]
    outputs: int
    loss: Literal["softmax", "squared"] = "softmax"
    learning_rate: float = 0.1
    momentum: float = 0.0
    l2: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example's features."""
        return (self.features,) if isinstance(self.features, int) else tuple(self.features)

    def check(self) -> None:
        """Check that each setting has a value that can be used. Raises ModelError."""
        if self.loss not in ("softmax", "squared"):
            raise ModelError(f"unknown loss {self.loss!r}", where="model.py", remedy="Valid: softmax, squared.")
        sizes = self.features if isinstance(self.features, tuple | list) else (self.features,)
        for name, size in (*(("features", size) for size in sizes), ("outputs", self.outputs)):
            if not isinstance(size, int | np.integer) or size < 1:
                remedy = "Give Linear a whole number from 1 on."
                raise ModelError(f"{name} is {size!r}", where="model.py", remedy=remedy)
        for name in ("learning_rate", "momentum", "l2"):
            given = getattr(self, name)
            if not isinstance(given, int | float | np.number) or not 0 <= given < math.inf:
                remedy = "Give Linear a number from 0 on."
                raise ModelError(f"{name} is {given!r}", where="model.py", remedy=remedy)
