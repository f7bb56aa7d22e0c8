"""Defines the components: one container each, with the same name as its body in `fedpipe.steps`.

They can be used in any KFP pipeline: `from fedpipe.components import shard, initialise, train`. To run one in another
image, such as `train` in `tff` for private training, use `container.in_environment`.
"""

from fedpipe.components.aggregate import aggregate
from fedpipe.components.coordinate import coordinate
from fedpipe.components.describe import describe
from fedpipe.components.evaluate import evaluate
from fedpipe.components.explore import explore
from fedpipe.components.export import export
from fedpipe.components.initialise import initialise
from fedpipe.components.learn import learn
from fedpipe.components.report import report
from fedpipe.components.score import score
from fedpipe.components.shard import shard
from fedpipe.components.simulate import simulate
from fedpipe.components.tally import tally
from fedpipe.components.train import train
from fedpipe.components.vote import vote

__all__ = [
    "aggregate",
    "coordinate",
    "describe",
    "evaluate",
    "explore",
    "export",
    "initialise",
    "learn",
    "report",
    "score",
    "shard",
    "simulate",
    "tally",
    "train",
    "vote",
]
