"""As `aggregate`, by an aggregation process and a server optimizer of TensorFlow Federated."""

from __future__ import annotations

from fedpipe.rounds.closing import close_round
from fedpipe.rounds.history import read_candidate, read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import RunPlace, read_plan
from fedpipe.rounds.roll import Roll
from fedpipe.steps.aggregate import Inputs, Outputs, outputs_of

__all__ = ["Inputs", "Outputs", "close", "find", "run"]


def find(inputs: Inputs) -> Outputs | None:
    """The weights when the round is committed, or put to the vote."""
    store, run = inputs.place.open(), inputs.place.run
    record = read_record(store, run, inputs.round) or read_candidate(store, run, inputs.round)
    return outputs_of(record) if record else None


def run(inputs: Inputs) -> Outputs:
    """Commits the round once; a repeated step finds it committed."""
    return outputs_of(close(inputs.place, inputs.round, inputs.base))


def close(place: RunPlace, number: int, base: str, roll: Roll | None = None) -> Record:
    """Aggregates a round and commits it, where TensorFlow Federated is."""
    from fedpipe.tff.aggregation import combine

    store = place.open()
    return close_round(store, read_plan(store, place.plan), number, base, roll, combine)
