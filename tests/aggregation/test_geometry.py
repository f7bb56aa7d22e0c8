"""Distances between mixtures of updates, from those between the updates: against the mixtures themselves."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from fedpipe.aggregation.geometry import measure


def exact(rows: np.ndarray, points: np.ndarray) -> list[list[float]]:
    """Squared distances of mixtures, without floating point."""
    mixed = []
    for row in rows:
        shares = [Fraction(float(x)) for x in row]
        columns = [[Fraction(float(x)) for x in column] for column in points.T]
        mixed.append([sum(s * x for s, x in zip(shares, column, strict=True)) / sum(shares) for column in columns])
    return [[float(sum((a - b) ** 2 for a, b in zip(x, y, strict=True))) for y in mixed] for x in mixed]


@pytest.mark.parametrize("far", [1.0, 1e6, 1e12, 1e15])
def test_distances_of_clipped_updates_keep_their_digits(far: float) -> None:
    """One is clipped by a large factor, and then as near to the others as they are: its squares alone would cancel."""
    values = np.random.default_rng(1).normal(size=(4, 30))
    values[1] *= far
    norms = np.linalg.norm(values, axis=1)
    rows = np.zeros((4, 5))
    rows[range(4), range(4)] = np.minimum(1, 2 / norms)
    rows[:, 4] = 1 - np.minimum(1, 2 / norms)
    found = measure(list(values), np.zeros(30)).mixed(rows)
    np.testing.assert_allclose(found.distances, exact(rows, np.vstack([values, np.zeros(30)])), rtol=1e-6)


@pytest.mark.parametrize("far", [1.0, 1e6, 1e12, 1e15])
def test_distances_from_a_mixture_keep_their_digits(far: float) -> None:
    """The mixture has little of an update that is far away, as centred clipping makes it."""
    values = np.random.default_rng(2).normal(size=(4, 30))
    values[3] *= far
    shares = np.array([0.2, 0.3, 0.1, 0.1 / far, 0.4 - 0.1 / far])
    found = measure(list(values), np.zeros(30)).squares_to(shares)
    centre = shares[:4] @ values
    expected = np.square(values - centre).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_distances_of_means_far_from_the_base_keep_their_digits(offset: float) -> None:
    """The products with changes from the base would cancel here."""
    values = np.random.default_rng(3).normal(size=(5, 30)) + offset
    rows = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 1, 0]], np.float64)
    found = measure(list(values), np.zeros(30)).mixed(rows)
    np.testing.assert_allclose(found.distances, exact(rows[:, :5], values), rtol=1e-6)
