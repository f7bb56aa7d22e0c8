"""The end of a round: what is refused while updates are combined counts against the quorum."""

from __future__ import annotations

import pytest

from fedpipe.errors import QuorumError
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.history import history
from fedpipe.rounds.manifests import Update
from fedpipe.store import MemoryStore, keys
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan, play_round


@pytest.mark.parametrize("what", ["far too large", "damaged"])
def test_an_update_that_is_refused_when_it_is_read_counts_against_the_quorum(store: MemoryStore, what: str) -> None:
    """Its manifest was valid, so the quorum had been reached until then; nothing is committed."""
    plan = make_plan(make_federation(tuple("abcd"), quorum={"min_learners": 4}))
    base = begin(store, plan, fresh).weights
    number = 1e6 if what == "far too large" else 1.0
    learners = {name: PlusOneLearner(1.0) for name in "abc"} | {"d": PlusOneLearner(number)}
    *_, update = play_round(store, plan, 1, base, learners)
    if what == "damaged":
        assert isinstance(update, Update)
        store.replace(keys.content(update.weights, "d"), b"?" * update.size)
    with pytest.raises(QuorumError, match=r"3 of 4 learners .*d: "):
        close_round(store, plan, 1, base)
    assert [record.round for record in history(store, plan.run)] == [0]
