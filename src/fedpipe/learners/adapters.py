"""Finds the adapter of the framework with which a learner works."""

from __future__ import annotations

from fedpipe.learners.learner import Learner
from fedpipe.rounds.plan import Plan, RunPlace
from fedpipe.store import Store, keys


def make_learner(
    store: Store, plan: Plan, name: str, number: int, *, trains: bool = True, place: RunPlace | None = None
) -> Learner:
    """Make a learner with its model and its data.

    Args:
        store: the federation's store.
        plan: the run's plan.
        name: the learner.
        number: the round in which it works.
        trains: whether it trains; event files for TensorBoard are written then, and privacy is applied.
        place: of a session, whose learners keep their data from round to round.

    Raises:
        DataError, ModelError, CorruptError: why this learner cannot take part.
    """
    if plan.federation.privacy_of(name) and (trains or place):  # in a session, its votes run in the same environment
        from fedpipe.learners.keras.private import make_private_learner

        return make_private_learner(store, plan, name, place=place)
    from fedpipe.learners.keras.learner import make_keras_learner

    events = keys.events(plan.run, number, name) if trains else ""
    return make_keras_learner(store, plan, name, f"round {number} {name}", events, place=place)
