"""Wires a rehearsal of the federation on one machine, with TensorFlow Federated.

    shard the data; explore it; initialise w_0
    simulate:  for each round t, w_t <- next(w_{t-1}, the clients of t), tested as the federation file requires
    evaluate; export

The weights have the same format as in every other pipeline. So a rehearsed model is evaluated, exported and served, and
a run on a cluster can continue from it.
"""

from typing import Any

from fedpipe.federation.federation import Federation
from fedpipe.pipelines.frame import component, framed
from fedpipe.pipelines.placement import place_coordinator


def tff_simulation(federation: Federation, federation_json: str, code: str, process: str, tff_model: str) -> Any:
    """Builds the pipeline of a federation.

    Args:
        federation: The federation, for its rounds and the placement of the simulation.
        federation_json: The federation as JSON for the steps.
        code: The text of model.py.
        process: The text of the file of `simulation.process`, or the empty text.
        tff_model: The text of the file of `simulation.model`, or the empty text.
    """

    def look(place: Any, shards: Any) -> None:
        explored = component(federation, "explore")(place=place, shards=shards, federation=federation_json)
        place_coordinator(explored, federation, "explore")

    def learn(place: Any, weights: Any, _: dict[str, Any]) -> Any:
        simulated = component(federation, "simulate")(place=place, base=weights, process=process, tff_model=tff_model)
        place_coordinator(simulated, federation, "simulate")
        return simulated.outputs["weights"]

    by = federation.simulation.process or federation.simulation.algorithm
    described = f"Simulation by {by}: {len(federation.learners)} clients, {federation.training.rounds} rounds."
    return framed(federation, federation_json, code, described, learn, look=look, scored=False)
