"""Defines the components: one container each, with the same name as its body in `fedpipe.steps`.

They can be used in any KFP pipeline: `from fedpipe.components import shard, initialise, train`.
"""

from fedpipe.components.aggregate import aggregate
from fedpipe.components.aggregate_tff import aggregate_tff
from fedpipe.components.coordinate import coordinate
from fedpipe.components.coordinate_tff import coordinate_tff
from fedpipe.components.evaluate import evaluate
from fedpipe.components.explore import explore
from fedpipe.components.export import export
from fedpipe.components.initialise import initialise
from fedpipe.components.learn import learn
from fedpipe.components.learn_private import learn_private
from fedpipe.components.report import report
from fedpipe.components.score import score
from fedpipe.components.shard import shard
from fedpipe.components.simulate import simulate
from fedpipe.components.tally import tally
from fedpipe.components.train import train
from fedpipe.components.train_private import train_private
from fedpipe.components.vote import vote

__all__ = [
    "aggregate",
    "aggregate_tff",
    "coordinate",
    "coordinate_tff",
    "evaluate",
    "explore",
    "export",
    "initialise",
    "learn",
    "learn_private",
    "report",
    "score",
    "shard",
    "simulate",
    "tally",
    "train",
    "train_private",
    "vote",
]
