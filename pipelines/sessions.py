"""Wires rounds in sessions: one long step per learner and one for the coordinator, which meet at the store.

    shard the data; initialise w_0, with the steps of the first session waiting already
    for each session, of rounds_per_step rounds:
        concurrently:  each learner k: learn(k)     trains and votes on requests of the board; no step at a site
                       coordinate                   requests, aggregates or tallies, and commits each round
    the last session ends with a request to score w_T, each learner on its own test part
    evaluate; export

The algorithm defines a round, as in `federated_averaging` and `collective_learning`.
"""

from typing import Any

from kfp import dsl

from fedpipe.federation.federation import Federation
from fedpipe.pipelines.frame import component, framed, starts_early
from fedpipe.pipelines.placement import place_coordinator, place_learner


def sessions(federation: Federation, federation_json: str, code: str) -> Any:
    """Builds the pipeline of a federation.

    Args:
        federation: The federation, for its learners, rounds and placements.
        federation_json: The federation as JSON for the steps.
        code: The text of model.py.
    """
    spans = spans_of(federation)

    def learn(place: Any, weights: Any, early: dict[str, Any]) -> Any:
        coordinated: Any = None
        for first, last in spans:
            span = {"first": first, "last": last}
            late = {"place": place, "job": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
            prefix = f"{first}-{last or 'end'} " if len(spans) > 1 else ""
            about = early if first == 1 and starts_early(federation, "coordinate") else late
            before, coordinated = coordinated, component(federation, "coordinate")(**about, **span)
            place_coordinator(coordinated, federation, f"{prefix}coordinate")
            steps: list[Any] = [coordinated]
            for learner in federation.pods:
                about = early if first == 1 and starts_early(federation, "learn", learner.name) else late
                learned = component(federation, "learn", learner.name)(learner=learner.name, **about, **span)
                place_learner(learned, federation, learner, f"{prefix}learn {learner.name}")
                steps.append(learned)
            for step in steps if before else []:
                step.after(before)
        return coordinated.outputs["weights"]

    number = f"{len(spans)} sessions" if len(spans) > 1 else "one session"
    algorithm = "Collective learning" if federation.proposers else "Federated averaging"
    algorithm = "Split learning" if federation.split else algorithm
    rounds = federation.training.rounds
    described = f"{algorithm}: {len(federation.learners)} learners, {rounds} rounds in {number}."
    if federation.sites:
        described += f" Awaits the agents of {', '.join(federation.sites)}, which run at their sites."
    return framed(federation, federation_json, code, described, learn)


def spans_of(federation: Federation) -> list[tuple[int, int]]:
    """Returns the first and last round of each session; 0 stands for the last round of the run.

    The number of rounds is a run-time parameter: a session without remaining rounds ends immediately.
    """
    each, rounds = federation.training.rounds_per_step, federation.training.rounds
    if each == "all":
        return [(1, 0)]
    starts = range(1, rounds + 1, each)
    return [(start, 0 if start == starts[-1] else start + each - 1) for start in starts]
