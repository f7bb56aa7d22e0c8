from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from fedpipe.rounds.accounting import TrainingEvent, epsilon


def event(**change: float) -> TrainingEvent:
    content = {
        "examples": 1000,
        "batch_size": 50,
        "microbatches": 50,
        "noise_multiplier": 1.2,
        "steps": 40,
        "passes": 2,
    }
    return TrainingEvent(**{**content, **change})  # type: ignore[arg-type]


def of(*events: TrainingEvent, delta: float = 1e-5, accountant: str = "rdp", sampling: str = "poisson") -> float:
    return epsilon(events, delta=delta, accountant=accountant, sampling=sampling)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("examples", "batch", "noise", "epochs", "accountant", "expected"),
    [
        (60000, 256, 1.1, 60, "rdp", 2.597),
        (60000, 256, 1.1, 60, "pld", 2.382),
        (60000, 150, 1.3, 15, "rdp", 0.7242234026),
    ],
)
def test_published_figures(
    examples: int, batch: int, noise: float, epochs: int, accountant: str, expected: float
) -> None:
    """Those of TensorFlow Privacy's tutorial and tests for MNIST, delta 1e-5."""
    steps = math.ceil(epochs * examples / batch)
    made = event(
        examples=examples, batch_size=batch, microbatches=batch, noise_multiplier=noise, steps=steps, passes=epochs
    )
    digits = len(str(expected).split(".")[1])
    assert of(made, accountant=accountant) == pytest.approx(expected, abs=0.6 * 10**-digits)


def analytic_gaussian(noise: float, delta: float) -> float:
    """Epsilon of one Gaussian mechanism with sensitivity 1 (Balle and Wang 2018, theorem 8), by bisection."""

    def excess(value: float) -> float:
        low = stats.norm.cdf(1 / (2 * noise) - value * noise)
        return float(low - np.exp(value) * stats.norm.cdf(-1 / (2 * noise) - value * noise) - delta)

    return float(optimize.brentq(excess, 0, 200))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.floats(0.7, 8), st.integers(1, 20))
def test_without_amplification_against_the_closed_form(noise: float, passes: int) -> None:
    """k Gaussian mechanisms are one with noise / sqrt(k); privacy loss distributions are nearly exact, Renyi is above."""
    exact = analytic_gaussian(noise / math.sqrt(passes), 1e-5)
    made = event(noise_multiplier=noise, passes=passes)
    assert of(made, sampling="none", accountant="pld") == pytest.approx(exact, rel=0.01, abs=0.01)
    assert of(made, sampling="none") >= exact * 0.999


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.floats(0.8, 4), st.integers(1, 60))
def test_the_sampled_gaussian_against_its_own_integral(noise: float, steps: int) -> None:
    """Renyi divergence of (1-q) N(0, s) + q N(1, s) from N(0, s), integrated numerically, for the best order."""
    q, delta = 0.1, 1e-5
    grid = np.linspace(-60, 200, 130001)
    base = stats.norm.pdf(grid, 0, noise)
    mixed = (1 - q) * base + q * stats.norm.pdf(grid, 1, noise)
    bounds = []
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for order in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64):
            density = np.nan_to_num(base * (mixed / base) ** order)
            divergence = steps * math.log(np.trapezoid(density, grid)) / (order - 1)
            bounds.append(divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))
    found = of(event(examples=500, batch_size=50, noise_multiplier=noise, steps=steps))
    assert found <= min(bounds) * 1.001 + 1e-6  # dp-accounting tries more orders
    assert found >= min(bounds) * 0.7


class TestWhatCounts:
    def test_nothing_spends_nothing(self) -> None:
        assert of() == 0.0

    def test_a_microbatch_of_several_examples_doubles_the_sensitivity(self) -> None:
        assert of(event(microbatches=25)) == pytest.approx(of(event(noise_multiplier=0.6)))
        assert of(event(microbatches=1)) == pytest.approx(of(event(microbatches=25)))

    def test_no_amplification_costs_more(self) -> None:
        assert of(event(), sampling="none") > of(event())

    def test_equal_events_add_up_to_one_long_one(self) -> None:
        assert of(event(), event()) == pytest.approx(of(event(steps=80, passes=4)))

    def test_the_order_does_not_matter(self) -> None:
        other = event(noise_multiplier=2.0, examples=700)
        assert of(event(), other) == pytest.approx(of(other, event()))
        assert of(event(), other) > max(of(event()), of(other))

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(st.floats(0.6, 5), st.floats(1.05, 3))
    def test_more_noise_spends_less(self, noise: float, factor: float) -> None:
        assert of(event(noise_multiplier=noise * factor)) < of(event(noise_multiplier=noise))
