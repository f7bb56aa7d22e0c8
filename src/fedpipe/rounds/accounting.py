"""Compute epsilon for the recorded privacy events, with Google's dp-accounting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

from fedpipe.errors import MissingExtraError


class TrainingEvent(Struct, frozen=True, kw_only=True):
    """One private training, as an accountant sees it.

    `passes` is the number of times that an example can have been seen: once an epoch.
    """

    examples: int
    batch_size: int
    microbatches: int
    noise_multiplier: float
    steps: int
    passes: int

    @property
    def effective_noise(self) -> float:
        """The noise multiplier, divided by the sensitivity.

        A microbatch of several examples is clipped as one: an example that is added or removed can turn its gradient
        around, which doubles the sensitivity.

        Source: Ponomareva et al. 2023, "How to DP-fy ML", section 5.6; as `used_microbatching` of TensorFlow Privacy.
        """
        return self.noise_multiplier / (1 if self.microbatches == self.batch_size else 2)


def epsilon(
    events: Sequence[TrainingEvent], *, delta: float, accountant: Literal["rdp", "pld"], sampling: str
) -> float:
    """Return the epsilon of all these events together, for adding or removing one example.

    With `poisson`, each step is a Gaussian mechanism on a sample that holds each example with probability
    batch_size / examples. With `none`, each example is in one batch of an epoch: one Gaussian mechanism for
    each pass.

    Args:
        events: the trainings, in any order.
        delta: of the guarantee.
        accountant: Renyi differential privacy, or privacy loss distributions.
        sampling: the assumption about batches, `poisson` or `none`.

    Returns:
        Epsilon; infinite when there is no bound, 0 without events.

    Raises:
        MissingExtraError: dp-accounting is not installed.

    Source: Mironov 2017; Mironov, Talwar and Zhang 2019 (RDP of the sampled Gaussian mechanism); Doroshenko et al. 2022
    (PLD). The two sampling assumptions are those of TensorFlow Privacy's `compute_dp_sgd_privacy_statement`.
    """
    if not events:
        return 0.0
    try:
        import dp_accounting
        from dp_accounting import pld, rdp
    except ImportError as error:
        raise MissingExtraError("dp-accounting", "tff") from error
    counts: dict[Any, int] = {}
    for event in events:
        mechanism = dp_accounting.GaussianDpEvent(event.effective_noise)
        if sampling == "poisson":
            mechanism = dp_accounting.PoissonSampledDpEvent(event.batch_size / event.examples, mechanism)
        counts[mechanism] = counts.get(mechanism, 0) + (event.steps if sampling == "poisson" else event.passes)
    composed = dp_accounting.ComposedDpEvent(
        [dp_accounting.SelfComposedDpEvent(mechanism, count) for mechanism, count in counts.items() if count]
    )
    counting = {"rdp": rdp.RdpAccountant, "pld": pld.PLDAccountant}[accountant]()
    return float(counting.compose(composed).get_epsilon(delta))
