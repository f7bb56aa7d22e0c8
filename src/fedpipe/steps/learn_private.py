"""As `learn`, with differential privacy: DP-SGD by TensorFlow Privacy, in the tff environment."""

from __future__ import annotations

from fedpipe.learners.learner import Learner
from fedpipe.rounds.plan import Plan
from fedpipe.sessions.board import Board
from fedpipe.steps.contract import Hands
from fedpipe.steps.learn import Inputs, Outputs, act, attend, find
from fedpipe.store import Store

__all__ = ["Inputs", "Outputs", "find", "perform", "run"]


def run(inputs: Inputs, hands: Hands) -> Outputs:
    """Attends the session; a learner whose privacy budget is spent is dropped from the rounds and still votes."""
    return attend(inputs, hands, perform)


def perform(inputs: Inputs, board: Board) -> bool:
    """Trains privately or votes, as the board asks. Says whether the learner took part."""

    def make(store: Store, plan: Plan, label: str, folder: str) -> Learner:
        from fedpipe.learners.keras.private import make_private_learner

        return make_private_learner(store, plan, inputs.learner, place=inputs.place)

    return act(inputs, board, make)
