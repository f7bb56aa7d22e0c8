"""Creates the plan and the first global weights."""

from kfp import dsl

from fedpipe.components.container import container


@dsl.container_component
def initialise(
    model: dsl.Output[dsl.Model],
    weights: dsl.OutputPath(str),
    placed: dsl.OutputPath(dict),
    federation: str,
    code: str,
    place: dict = {},
    shards: dict = {},
    described: list = [],
    rounds: int = 0,
    learning_rate: float = 0.0,
    local_epochs: int = 0,
    batch_size: int = 0,
    min_learners: int = 0,
    deadline: float = 0.0,
    patience: int = 0,
    max_seconds: float = 0.0,
    store: str = "",
    run: str = "",
    job: str = "",
    framework: str = "",
):
    """Creates the plan, the first global weights and round 0.

    Args:
        place: Location of the run. A step without one starts early.
        shards: Output `shards` of the shard step.
        federation: The federation file as JSON text.
        code: The text of model.py.
        described: Outputs `report` of the describe steps, if the features are a table.
        rounds: Rounds of the run; 0 keeps the federation's.
        learning_rate: Learning rate of the local optimizers; 0 keeps the federation's.
        local_epochs: Local epochs per round; 0 keeps the federation's.
        batch_size: Examples per training step; 0 keeps the federation's.
        min_learners: The quorum; 0 keeps the federation's.
        deadline: Seconds for a learner's training; 0 keeps the federation's.
        patience: Rounds without improvement after which a session ends; 0 keeps the federation's.
        max_seconds: Age of a run after which no round starts; 0 keeps the federation's, a year: no limit.
        store: URI of the store, of a step that starts early and awaits the results of shard.
        run: Name of the run, of such a step; derived from `job` if empty.
        job: Id of the pipeline job, for steps that start early.
        framework: Framework that such a step imports while it waits.
        placed: Location of the run, with the digest of its plan.
        weights: Digest of the first global weights.
        model: The first global model.
    """
    return container("initialise")
