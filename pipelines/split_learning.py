"""Wires split learning: one network, cut between parties that hold columns of the same rows.

    initialise the parts
    for each session, of rounds_per_step rounds:
        first, if rows differ:  the parties find the ids that all have
        concurrently:  each party with features:  a = bottom(x), sends a; awaits g; a step of bottom with g
                       the label party:           awaits every a; a step of top; sends g = dloss/da
                       coordinate                 opens each round, checks the parts, and commits their digests
    each party with features sends activations of its test rows; the label party scores; evaluate; export

Gupta and Raskar, "Distributed learning of deep neural network over multiple agents", 2018.
"""

from typing import Any

from fedpipe.federation.federation import Federation
from fedpipe.pipelines.sessions import sessions


def split_learning(federation: Federation, federation_json: str, code: str) -> Any:
    """Builds the pipeline of a federation.

    Args:
        federation: The federation, for its parties, rounds and placements.
        federation_json: The federation as JSON for the steps.
        code: The text of model.py.
    """
    return sessions(federation, federation_json, code)
