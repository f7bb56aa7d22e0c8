"""As `coordinate`, with rounds that TensorFlow Federated aggregates."""

from __future__ import annotations

from functools import partial

from fedpipe.steps.aggregate_tff import close
from fedpipe.steps.contract import Hands
from fedpipe.steps.coordinate import Inputs, Outputs, coordinated, find

__all__ = ["Inputs", "Outputs", "find", "run"]


def run(inputs: Inputs, hands: Hands) -> Outputs:
    """Works until the session has ended; a repeated step goes on where the store says it was."""
    return coordinated(inputs, hands, partial(hands.call, close, inputs.place))
