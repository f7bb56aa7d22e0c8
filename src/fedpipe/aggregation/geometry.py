"""Distances between a round's updates, from which those between mixtures of them follow.

A mixture is a weighted mean of updates, and of the base from which they began. Its distances need no further pass over
the updates: two small matrices are enough, whatever the size of the model.

    squares[i, j]    |x_i - x_j|^2            differences first, so close updates keep their digits
    products[i, j]   (x_i - b) . (x_j - b)    so an update that is clipped by a large factor keeps them too

A squared distance between mixtures follows from either. The one with the smaller bound of its rounding error is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fedpipe.aggregation.arithmetic import Array, Floats, add_distances

_STRIP = 2**13
"""Number of elements that are multiplied at a time."""


class Geometry(NamedTuple):
    """Squared distances and inner products of points, as float64.

    Args:
        size: number of updates, or mixtures; they come first, in the order of the learners' names.
        squares: squared distances; with a base, that is the last point.
        products: inner products of the changes from the base; None without a base.
    """

    size: int
    squares: Floats
    products: Floats | None = None

    @property
    def distances(self) -> Floats:
        """Return the squared distances between updates."""
        return self.squares[: self.size, : self.size]

    @property
    def norms(self) -> Floats:
        """Return the norms of the updates' changes from the base."""
        assert self.products is not None
        return np.sqrt(self.squares[: self.size, -1])

    def mixed(self, rows: Floats) -> Geometry:
        """Return the geometry of mixtures.

        Args:
            rows: for each mixture its shares of the points, as many as `squares` has; they are 0 or more.
        """
        shares = normalised(rows)
        if self.products is not None:
            base = np.zeros((1, len(self.squares)))
            base[0, -1] = 1.0
            shares = np.concatenate([shares, base])
        count = len(shares)
        squares = np.zeros((count, count))
        for i in range(count):
            for j in range(i + 1, count):
                squares[i, j] = squares[j, i] = self._square(shares[i] - shares[j])
        if self.products is None:
            return Geometry(len(rows), squares)
        return Geometry(len(rows), squares, multiplied(multiplied(shares, self.products), shares.T))

    def squares_to(self, shares: Floats) -> Floats:
        """Return the squared distances of the updates from one mixture.

        Args:
            shares: of the points, which add up to 1.
        """
        reached = (self.squares * shares).sum(axis=1)
        spread = (reached * shares).sum() / 2
        found = reached - spread
        if self.products is not None:
            pulled = (self.products * shares).sum(axis=1)
            lengths = np.sqrt(np.diagonal(self.products))
            direct = (pulled * shares).sum() - 2 * pulled + np.diagonal(self.products)
            doubt = np.square((lengths * shares).sum() + lengths)
            found = np.where(doubt < reached + spread, direct, found)
        nearest: Floats = np.maximum(found, 0.0)[: self.size]
        return nearest

    def _square(self, change: Floats) -> float:
        """Return the squared length of a combination of points whose coefficients add up to 0."""
        there = np.flatnonzero(change)
        if not there.size:
            return 0.0
        pairs = np.outer(change[there], change[there])
        parts = pairs * self.squares[np.ix_(there, there)]
        found, doubt = -parts.sum() / 2, np.abs(parts).sum() / 2
        if self.products is not None:
            products = self.products[np.ix_(there, there)]
            if np.square((np.abs(change[there]) * np.sqrt(np.diagonal(products))).sum()) < doubt:
                found = (pairs * products).sum()
        return max(0.0, float(found))


def normalised(rows: Floats) -> Floats:
    """Return rows that add up to 1."""
    shares: Floats = rows / rows.sum(axis=1, keepdims=True)
    return shares


def multiplied(left: Floats, right: Floats) -> Floats:
    """Multiply two small matrices, with the same bits on every machine, which a BLAS does not give."""
    return np.array([(row[:, None] * right).sum(axis=0) for row in left]).reshape(len(left), right.shape[1])


def measure(values: Sequence[Array], base: Array | None = None) -> Geometry:
    """Return the geometry of one block of coordinates.

    Args:
        values: one flat array per learner, each of the same length.
        base: that of the base, if it is a point too.
    """
    size = len(values) + (base is not None)
    squares, products = np.zeros((size, size)), None
    add_distances([*values, *([] if base is None else [base])], squares)
    if base is not None:
        products = np.zeros((size, size))
        _add_products(values, base, products)
    return Geometry(len(values), squares, products)


def summed(parts: Iterable[Geometry], size: int, *, from_base: bool) -> Geometry:
    """Return the geometry of blocks together, added in their order.

    Args:
        parts: of the blocks.
        size: number of updates.
        from_base: whether the blocks have a base.
    """
    points = size + from_base
    squares, products = np.zeros((points, points)), np.zeros((points, points)) if from_base else None
    for part in parts:
        squares += part.squares
        if products is not None and part.products is not None:
            products += part.products
    return Geometry(size, squares, products)


def _add_products(values: Sequence[Array], base: Array, products: Floats) -> None:
    """Add a block's part of the inner products of changes to a symmetric matrix, whose last row stays 0."""
    count, length = len(values), values[0].size
    rows, scratch = (np.empty((count, min(length, _STRIP))) for _ in range(2))
    for start in range(0, length, _STRIP):
        size = min(_STRIP, length - start)
        below = base[start : start + size].astype(np.float64)
        for row, value in zip(rows, values, strict=True):
            np.subtract(value[start : start + size].astype(np.float64), below, out=row[:size])
        for i in range(count):
            parts = np.multiply(rows[i:, :size], rows[i, :size], out=scratch[i:, :size]).sum(axis=1)
            products[i, i:count] += parts
            products[i + 1 : count, i] += parts[1:]
