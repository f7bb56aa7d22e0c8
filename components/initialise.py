"""Makes the plan and the first global weights."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def initialise(
    model: dsl.Output[dsl.Model],
    weights: dsl.OutputPath(str),
    placed: dsl.OutputPath(dict),
    place: dict,
    shards: dict,
    federation: str,
    code: str,
    rounds: int = 0,
    learning_rate: float = 0.0,
    local_epochs: int = 0,
    batch_size: int = 0,
    min_learners: int = 0,
    deadline: float = 0.0,
    patience: int = 0,
    max_seconds: float = 0.0,
):
    """Makes the plan, the first global weights and round 0.

    Args:
        place: Where the run is.
        shards: What `shard` made.
        federation: The federation file as JSON text.
        code: The text of model.py.
        rounds: Rounds of the run; 0 leaves the federation's.
        learning_rate: Of the local optimizers; 0 leaves the federation's.
        local_epochs: Passes per round; 0 leaves the federation's.
        batch_size: Examples per step; 0 leaves the federation's.
        min_learners: The quorum; 0 leaves the federation's.
        deadline: Seconds for a learner's training; 0 leaves the federation's.
        patience: Rounds without an improvement after which a session ends; 0 leaves the federation's.
        max_seconds: Age of a run at which a session begins no more round; 0 leaves the federation's.
        placed: The place with the digest of the plan.
        weights: Digest of the first global weights.
        model: The first global model.
    """
    return container("initialise")
