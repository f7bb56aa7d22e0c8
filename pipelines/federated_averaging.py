"""Federated averaging, one step per learner and round.

Algorithm (McMahan et al. 2017, "FederatedAveraging"), unrolled:

    shard the data; initialise w_0
    for each round t = 1, 2, ...:
        for each learner k in parallel:  w_t^k <- train(k, w_{t-1})
        w_t <- aggregate(w_t^1, ..., w_t^K)
    each learner scores w_T on its own test part; evaluate; export
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from fedpipe import components
from fedpipe.federation import Federation
from fedpipe.pipelines.placement import place_coordinator, place_learner


def federated_averaging(federation: Federation, federation_json: str, code: str) -> Callable[..., Any]:
    """The pipeline of a federation.

    Args:
        federation: The federation, for its learners, rounds and placements.
        federation_json: The same as text, as the steps take it.
        code: The text of model.py.
    """
    rounds, learners = federation.training.rounds, federation.learners
    training, quorum = federation.training, federation.quorum

    @dsl.pipeline(
        name=federation.name,
        description=f"Federated averaging: {len(learners)} learners, {rounds} rounds, {federation.algorithm.rule}.",
    )
    def pipeline(
        store: str = federation.store_uri,
        run: str = "",
        data: str = federation.data.uri,
        learning_rate: float = training.learning_rate,
        local_epochs: int = training.local_epochs if not training.local_steps else 0,
        batch_size: int = training.batch_size,
        min_learners: int = federation.min_learners,
        deadline: float = quorum.deadline,
    ):
        shard = components.shard(
            federation=federation_json, store=store, run=run, data=data, job=dsl.PIPELINE_JOB_ID_PLACEHOLDER
        )
        place_coordinator(shard, federation, "shard")
        begun = components.initialise(
            place=shard.outputs["place"],
            shards=shard.outputs["shards"],
            federation=federation_json,
            code=code,
            learning_rate=learning_rate,
            local_epochs=local_epochs,
            batch_size=batch_size,
            min_learners=min_learners,
            deadline=deadline,
        )
        place_coordinator(begun, federation, "initialise")
        place, weights = begun.outputs["placed"], begun.outputs["weights"]

        for number in range(1, rounds + 1):
            updates = []
            for learner in learners:
                trained = components.train(place=place, learner=learner.name, round=number, base=weights)
                place_learner(trained, federation, learner, f"{number} train {learner.name}")
                updates.append(trained.outputs["update"])
            combined = components.aggregate(place=place, round=number, base=weights, updates=updates)
            place_coordinator(combined, federation, f"{number} aggregate")
            weights = combined.outputs["weights"]

        scores = []
        for learner in learners:
            scored = components.score(place=place, learner=learner.name, weights=weights)
            place_learner(scored, federation, learner, f"score {learner.name}")
            scores.append(scored.outputs["score"])
        evaluated = components.evaluate(place=place, weights=weights, scores=scores)
        place_coordinator(evaluated, federation, "evaluate")
        exported = components.export(place=place, weights=weights)
        place_coordinator(exported, federation, "export")
        told = components.report(place=place, evaluation=evaluated.outputs["evaluation"], onnx=exported.outputs["onnx"])
        place_coordinator(told, federation, "report")

    return pipeline
