"""Predicts with a cut network whose parts are apart: activations of some parties, and the top that takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from fedpipe.errors import InputError
from fedpipe.registry.prediction import Predictor, TensorSpec, fitted
from fedpipe.suggestion import suggestion

Array = npt.NDArray[Any]


class JoinedModel:
    """Runs parts of parties here, and sends only their activations to the top.

    Args:
        top: an opened model, whose inputs are activations and have the names of the parties.
        parts: an opened model for each party whose features are given; activations of the others are given as they are.

    Raises:
        InputError: the top takes nothing from such a party, or a part does not fit it.
    """

    def __init__(self, top: Predictor, parts: Mapping[str, Predictor]) -> None:
        known = {spec.name: spec for spec in top.inputs}
        for party, part in parts.items():
            if party not in known:
                raise InputError(f"the top takes no activations of {party!r}", remedy=suggestion(party, list(known)))
            _check_part(party, part, known[party])
        self._top, self._parts = top, parts
        self.inputs = [_named(parts[n].inputs[0], n) if n in parts else known[n] for n in known]
        self.outputs, self.card = top.outputs, top.card

    def run(self, feed: dict[str, Array]) -> list[Array]:
        """Returns all outputs of the top for features and activations by party."""
        specs = {spec.name: spec for spec in self._top.inputs}
        given = dict(feed)
        for party, part in self._parts.items():
            (found,) = part.run({part.inputs[0].name: feed[party]})
            given[party] = fitted(specs[party], found, part.card)
        return self._top.run(given)


def _named(spec: TensorSpec, name: str) -> TensorSpec:
    return spec._replace(name=name)


def _check_part(party: str, part: Predictor, taken: TensorSpec) -> None:
    if len(part.inputs) != 1 or len(part.outputs) != 1:
        raise InputError(
            f"the part of {party!r} has {len(part.inputs)} inputs and {len(part.outputs)} outputs",
            remedy=f"Give the part of one party, as `fedpipe export --part bottom-{party}` writes it.",
        )
    row = part.outputs[0].shape[1:]
    if len(row) != len(taken.shape) - 1 or any(
        a is not None and b is not None and a != b for a, b in zip(row, taken.shape[1:], strict=True)
    ):
        raise InputError(
            f"the part of {party!r} returns rows of shape {list(row)}, but the top takes {list(taken.shape[1:])}",
            remedy="Export the part and the top from the same run.",
        )
