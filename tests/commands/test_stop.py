"""`fedpipe stop`: which round a session ends after."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

import fedpipe.commands.stop as module
from fedpipe.rounds.beginning import begin
from fedpipe.sessions.board import Board, Keeper, ask_to_stop
from fedpipe.store import Store, open_store
from tests.federations import fresh, make_federation, make_plan

FEDERATION = {
    "name": "tiny",
    "learners": [{"name": name} for name in "abc"],
    "data": {"uri": "x.npz"},
    "training": {"rounds": 3, "batch_size": 1},
}


def test_a_round_that_begins_before_the_session_is_asked_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, uri = make_plan(make_federation()), f"file://{tmp_path}"
    store = open_store(uri).below("tiny")
    base = begin(store, plan, fresh).weights
    keeper = Keeper(store, plan.run, "s")
    board = keeper.move(Board(federation="tiny", run=plan.run, session="s", round=2, phase="train", base=base))

    def asked_late(opened: Store, run: str) -> bool:
        keeper.move(replace(board, round=3))
        return ask_to_stop(opened, run)

    monkeypatch.setattr(module, "ask_to_stop", asked_late)
    found = module.stop(FEDERATION, plan.run, store=uri)
    assert found == "run r1 ends after round 3; the model is evaluated and exported as usual"
