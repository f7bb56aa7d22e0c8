"""The parts of a cut network: a bottom at each party with features, the top at the party with labels.

A party's object holds the weights of its parts, `bottom-<party>/<name>`, and at the label party `top/<name>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from fedpipe import weights
from fedpipe.federation.federation import Federation
from fedpipe.learners.framework import Arrays
from fedpipe.rounds.cut import index_of
from fedpipe.weights import Array

TOP = "top"
"""The part of the network at the label party; also its function in model.py."""
BOTTOM = "bottom"
"""The function in model.py that returns the part of a party with features."""


class Shape(NamedTuple):
    """The dtype and the shape of one row of activations."""

    dtype: str
    row: tuple[int, ...]


class Part(Protocol):
    """A part of the network, with an optimizer of its own. Its methods keep state between `begin` and `weights`."""

    def begin(self, start: Arrays, optimizer: Arrays | None, *, seed: int, rate: float) -> None:
        """Begin a round.

        Args:
            start: weights of the part.
            optimizer: state of its optimizer; None for a fresh one.
            seed: of dropout.
            rate: learning rate; 0: as compiled in model.py.
        """

    def weights(self) -> Arrays:
        """Return the current weights by name."""

    def optimizer_state(self) -> Arrays:
        """Return the current state of the optimizer by name."""


class Bottom(Part, Protocol):
    """The part at a party with features."""

    @property
    def output(self) -> Shape:
        """The activations of one row."""

    def forward(self, x: Array) -> Array:
        """Return the activations of a training batch, and keep what its `backward` needs."""

    def backward(self, gradient: Array) -> None:
        """Take a step of the optimizer, from the gradient of the loss with respect to the oldest open activations."""

    def infer(self, x: Array) -> Array:
        """Return activations of rows, without dropout and without a change of state."""

    def metrics(self) -> dict[str, float]:
        """Return the mean penalty of its regularisers since `begin`, and metrics of its layers; empty without any."""


class Top(Part, Protocol):
    """The part at the label party."""

    @property
    def inputs_in_order(self) -> tuple[Shape, ...]:
        """The activations of one row that it takes, in the order of the parties with features."""

    def step(self, activations: Sequence[Array], y: Array) -> list[Array]:
        """Take a step of the optimizer, and return the loss's gradients with respect to the activations."""

    def metrics(self) -> dict[str, float]:
        """Return the loss and the metrics of all steps since `begin`."""

    def test(self, start: Arrays, activations: Sequence[Array], y: Array) -> dict[str, float]:
        """Return the loss and the metrics of rows with these weights; `begin` has to follow."""


def part_names(federation: Federation, party: str) -> tuple[str, ...]:
    """Return the parts of the network that a party holds.

    >>> from fedpipe.federation.file import parse_federation
    >>> cut = {"name": "split", "label_party": "bob", "batch_size": 8, "label_party_features": True}
    >>> parties = [{"name": "alice", "data": "a.npz"}, {"name": "bob", "data": "b.npz"}]
    >>> f = parse_federation({"name": "f", "learners": parties, "algorithm": cut, "training": {"rounds": 1}})
    >>> part_names(f, "alice"), part_names(f, "bob")
    (('bottom-alice',), ('bottom-bob', 'top'))
    """
    assert federation.split is not None
    bottoms = (bottom_name(party),) if party in federation.feature_parties else ()
    return (*bottoms, TOP) if party == federation.split.label_party else bottoms


def bottom_name(party: str) -> str:
    """Return the name of a party's bottom."""
    return f"{BOTTOM}-{party}"


def holders(federation: Federation) -> dict[str, str]:
    """Return the party that holds each part of the network, by the name of the part."""
    return {part: learner.name for learner in federation.learners for part in part_names(federation, learner.name)}


def joined(parts: Mapping[str, Arrays]) -> Arrays:
    """Return the weights of parts under one name each, `<part>/<name>`."""
    return {f"{part}/{name}": array for part, arrays in parts.items() for name, array in arrays.items()}


def part_of(arrays: Mapping[str, Array], part: str) -> Arrays:
    """Return the weights of one part, by their own names."""
    return {name.removeprefix(f"{part}/"): a for name, a in arrays.items() if name.startswith(f"{part}/")}


def held_by(arrays: Mapping[str, Array], federation: Federation, party: str) -> Arrays:
    """Return the weights of the whole network that a party holds, as its object has them."""
    return joined({part: part_of(arrays, part) for part in part_names(federation, party)})


def first_index(arrays: Arrays, federation: Federation) -> Arrays:
    """Return the global weights before the training, from the first weights of the whole network."""
    names = [learner.name for learner in federation.learners]
    return index_of({name: weights.digest_of(held_by(arrays, federation, name)) for name in names})
