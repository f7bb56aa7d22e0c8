"""Rounds in sessions: one long step per learner beside one coordinator; they meet at the store.

    shard the data; initialise w_0
    for each session, of rounds_per_step rounds:
        side by side:  each learner k: learn(k)     trains and votes when the board asks
                       coordinate                   asks, aggregates or tallies, commits, round after round
    each learner scores w_T on its own test part; evaluate; export

What happens in a round is the algorithm's, as `federated_averaging` and `collective_learning` write it out.
"""

from typing import Any

from kfp import dsl

from fedpipe.federation.federation import Federation
from fedpipe.pipelines.frame import component, framed
from fedpipe.pipelines.placement import place_coordinator, place_learner


def sessions(federation: Federation, federation_json: str, code: str) -> Any:
    """The pipeline of a federation.

    Args:
        federation: The federation, for its learners, rounds and placements.
        federation_json: The same as text, as the steps take it.
        code: The text of model.py.
    """
    spans = spans_of(federation)

    def learn(place: Any, weights: Any) -> Any:
        coordinated: Any = None
        for first, last in spans:
            about = {"place": place, "first": first, "last": last, "job": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
            prefix = f"{first}-{last or 'end'} " if len(spans) > 1 else ""
            before, coordinated = coordinated, component(federation, "coordinate")(**about)
            place_coordinator(coordinated, federation, f"{prefix}coordinate")
            steps: list[Any] = [coordinated]
            for learner in federation.learners:
                learned = component(federation, "learn", learner.name)(learner=learner.name, **about)
                place_learner(learned, federation, learner, f"{prefix}learn {learner.name}")
                steps.append(learned)
            for step in steps if before else []:
                step.after(before)
        return coordinated.outputs["weights"]

    number = f"{len(spans)} sessions" if len(spans) > 1 else "one session"
    algorithm = "Collective learning" if federation.proposers else "Federated averaging"
    rounds = federation.training.rounds
    described = f"{algorithm}: {len(federation.learners)} learners, {rounds} rounds in {number}."
    return framed(federation, federation_json, code, described, learn)


def spans_of(federation: Federation) -> list[tuple[int, int]]:
    """First and last round of each session; the last session goes to the run's end, which is 0.

    The number of rounds is a run-time parameter: a session whose rounds are done ends at once.
    """
    each, rounds = federation.training.rounds_per_step, federation.training.rounds
    if each == "all":
        return [(1, 0)]
    starts = range(1, rounds + 1, each)
    return [(start, 0 if start == starts[-1] else start + each - 1) for start in starts]
