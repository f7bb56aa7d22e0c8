"""What a learner does, whatever framework it uses, and how its work becomes an update."""

from __future__ import annotations

import hashlib
import logging
from typing import Any, Literal, NamedTuple, Protocol

import numpy.typing as npt

from fedpipe.rounds.accounting import TrainingEvent
from fedpipe.rounds.manifests import Scores

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
log = logging.getLogger("fedpipe")


class Trained(NamedTuple):
    """What training gives: new weights, how many examples they saw, metrics of the last epoch, optimizer state.

    `event` is the privacy event that happened; None when the training was not private.
    """

    weights: Arrays
    examples: int
    metrics: dict[str, float]
    optimizer: Arrays | None = None
    event: TrainingEvent | None = None


class Verdict(NamedTuple):
    """What a learner thinks of proposed weights: their scores, and a yes when they are strictly better."""

    scores: Scores
    approve: bool


class Learner(Protocol):
    """A data owner at work. It holds current weights, which `accept_weights` alone changes."""

    @property
    def planned(self) -> TrainingEvent | None:
        """The privacy event of one proposal; None for a learner that trains without differential privacy."""

    def accept_weights(self, weights: Arrays, scores: Scores | None = None) -> Scores:
        """Adopts these weights as the current ones, and scores them.

        Args:
            weights: the shared model's.
            scores: of these weights, when they are known or not wanted: nothing is measured then.

        Returns:
            Scores on the vote and the test part.
        """

    def propose_weights(self, *, seed: int, seconds: float, optimizer: Arrays | None) -> Trained:
        """Trains from the current weights on the train part; the current weights stay what they were.

        Args:
            seed: of shuffling and dropout; equal seeds give equal weights.
            seconds: after which the learner is too late.
            optimizer: the state that this learner's last accepted update left; None for a fresh one.

        Raises:
            DroppedError: why this learner cannot take part.
        """

    def test_weights(self, weights: Arrays) -> Verdict:
        """Scores proposed weights and compares them with the current ones, which stay."""

    def current_model(self, form: Literal["weights", "onnx"] = "weights") -> Arrays | bytes:
        """The current model: its weights by name, or as ONNX bytes."""


def seed_of(*parts: object) -> int:
    """A seed of 31 bits from a run's seed, a learner's name, a round: stable on every machine.

    >>> seed_of(0, "hospital-a", 1) == seed_of(0, "hospital-a", 1)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little") >> 1
