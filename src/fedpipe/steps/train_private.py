"""As `train`, with differential privacy: DP-SGD by TensorFlow Privacy, in the tff environment."""

from __future__ import annotations

from fedpipe.learners.learner import Learner
from fedpipe.rounds.plan import Plan
from fedpipe.steps.train import Inputs, Outputs, find, train
from fedpipe.store import Store

__all__ = ["Inputs", "Outputs", "find", "run"]


def run(inputs: Inputs) -> Outputs:
    """Trains and publishes; a learner whose privacy budget is spent is dropped, and the step succeeds."""

    def make(store: Store, plan: Plan) -> Learner:
        from fedpipe.learners.keras.private import make_private_learner

        return make_private_learner(store, plan, inputs.learner)

    return train(inputs, make)
