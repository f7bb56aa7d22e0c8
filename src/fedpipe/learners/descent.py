r"""Gradient descent on named arrays in NumPy, with momentum, corrections, clipping and accumulation.

.. math::
    g \leftarrow \tfrac1k \sum_{j=1}^k \bigl(g_j + s (w - a) + o\bigr), \quad
    g \leftarrow g \min\bigl(1, \tfrac{c}{\lVert g \rVert}\bigr), \quad
    v \leftarrow \mu v - \eta g, \; w \leftarrow w + v

Here s, a and o are those of the `Correction`. The clipping norm c is that of all gradients together, as in Pascanu et
al. 2013, "On the difficulty of training recurrent neural networks", Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedpipe.federation.training import Training
from fedpipe.learners.framework import Arrays, Correction
from fedpipe.weights import Array

_HELD = "held/"
_BATCHES = f"{_HELD}batches"


class Descent:
    """The weights of a training, and the state of its optimizer, in float64.

    Args:
        weights: to begin with.
        state: after an earlier training, as `state` returns it; None for a fresh one.
        training: its clipping and accumulation.
        rate: eta.
        momentum: mu.
        correction: of every gradient.
    """

    def __init__(
        self, weights: Mapping[str, Array], state: Mapping[str, Array] | None, training: Training, *, rate: float,
        momentum: float, correction: Correction | None,
    ) -> None:  # fmt: skip
        self.weights = dict(weights)
        self._rate, self._momentum = rate, momentum
        self._limit, self._every = training.clip_norm, training.accumulate
        self._correction = correction or Correction()
        zeros = {name: np.zeros(value.shape) for name, value in weights.items()}
        given = state or {}
        self._velocity = {name: given.get(name, zeros[name]) for name in weights}
        self._held = {name: given.get(f"{_HELD}{name}", zeros[name]) for name in weights}
        self._batches = int(given.get(_BATCHES, np.zeros(())))

    def step(self, gradients: Mapping[str, Array]) -> None:
        """Take the gradients of a batch."""
        self._batches += 1
        for name, gradient in gradients.items():
            self._held[name] = self._held[name] + self._corrected(name, gradient)
        if self._batches < self._every:
            return
        mean = {name: held / self._every for name, held in self._held.items()}
        factor = self._factor(mean)
        for name, gradient in mean.items():
            self._velocity[name] = self._momentum * self._velocity[name] - self._rate * factor * gradient
            self.weights[name] = self.weights[name] + self._velocity[name]
            self._held[name] = np.zeros(gradient.shape)
        self._batches = 0

    def _corrected(self, name: str, gradient: Array) -> Array:
        strength, anchors, offsets = self._correction
        pulled: Array = gradient
        if name in anchors:
            pulled = pulled + strength * (self.weights[name] - anchors[name])
        return pulled + offsets[name] if name in offsets else pulled

    def _factor(self, gradients: Mapping[str, Array]) -> float:
        """Return the factor by which gradients are scaled down to the largest norm."""
        if not self._limit:
            return 1.0
        norm = float(np.sqrt(sum(float(np.sum(np.square(gradient))) for gradient in gradients.values())))
        return self._limit / max(norm, self._limit)

    def state(self) -> Arrays:
        """Return the state of the optimizer, with the gradients of batches that still wait for a step."""
        if self._every == 1:
            return dict(self._velocity)
        held = {f"{_HELD}{name}": value for name, value in self._held.items()}
        return {**self._velocity, **held, _BATCHES: np.asarray(self._batches, np.float64)}

    @staticmethod
    def shapes(weights: Mapping[str, tuple[int, ...]], training: Training) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the state for weights of such shapes."""
        if training.accumulate == 1:
            return dict(weights)
        return {**weights, **{f"{_HELD}{name}": shape for name, shape in weights.items()}, _BATCHES: ()}
