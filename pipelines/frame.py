"""Wires the steps around the rounds of every pipeline: shard, describe, initialise; then score to report."""

import inspect
from collections.abc import Callable
from typing import Any

from kfp import dsl

from fedpipe import components
from fedpipe.components.container import in_environment
from fedpipe.federation.federation import Federation, LearnerSettings
from fedpipe.federation.names import YEAR
from fedpipe.pipelines.placement import form_of_placements, place_coordinator, place_learner, placed_by

Learn = Callable[[Any, Any, dict[str, Any]], Any]
"""Takes the location of the run and the first weights, both as outputs of a step; returns the last weights. Its third
argument are the inputs of steps that start before these outputs are there (`fedpipe.steps.early`)."""
Look = Callable[[Any, Any], None]
"""Takes the location of the run and the shards, both as outputs of a step."""


def component(federation: Federation, step: str, learner: str = "") -> Any:
    """Returns the component of a step, in the environment that the federation file asks for."""
    return in_environment(getattr(components, step), federation.environment_of(step, learner))


def framed(
    federation: Federation, federation_json: str, code: str, description: str, learn: Learn, *,
    look: Look = lambda *_: None, scored: bool = True,
) -> Any:  # fmt: skip
    """Builds a pipeline of a federation.

    Args:
        federation: The federation, for its learners, rounds and placements.
        federation_json: The federation as JSON for the steps.
        code: The text of model.py.
        description: Description in the UI.
        learn: Wires the rounds.
        look: Wires a first step that explores the data.
        scored: Whether learners score the last model on their own test parts, in a session or in steps of their own.
    """

    def steps(**form: Any) -> None:
        with placed_by({name: form.pop(name) for name in form_of_placements(federation)}):
            wired(**form)

    def wired(store: Any, run: Any, data: Any, **settings: Any) -> None:
        shard = component(federation, "shard")(
            federation=federation_json, store=store, run=run, data=data, job=dsl.PIPELINE_JOB_ID_PLACEHOLDER
        )
        place_coordinator(shard, federation, "shard", secret=federation.data.secret)
        look(shard.outputs["place"], shard.outputs["shards"])
        job = dsl.PIPELINE_JOB_ID_PLACEHOLDER
        early = {"store": store, "run": run, "job": job, "framework": federation.framework}
        about = {
            "place": shard.outputs["place"], "shards": shard.outputs["shards"], "federation": federation_json,
            "code": code,
        }  # fmt: skip
        started: dict[str, Any] = {**about, "job": job} if federation.in_sessions else about
        if federation.data.is_table and not (scored and federation.described_in_session):
            settings["described"] = describe(federation, about, together=not scored)
        elif starts_early(federation, "initialise"):
            started = {"federation": federation_json, "code": code, **early}
        begun = component(federation, "initialise")(**started, **settings)
        place_coordinator(begun, federation, "initialise")
        place = begun.outputs["placed"]

        weights = learn(place, begun.outputs["weights"], {**early, "federation_name": federation.name})

        scores: list[Any] = []
        before: list[Any] = []
        for learner in in_order_of_scores(federation) if scored else ():
            if federation.scores_in_session(learner.name):
                continue
            score = component(federation, "score", learner.name)(place=place, learner=learner.name, weights=weights)
            place_learner(score, federation, learner, f"score {learner.name}")
            scores.append(score.outputs["score"])
            if federation.split:
                if learner.name == federation.split.label_party:
                    score.after(*before)
                before.append(score)
        evaluated = component(federation, "evaluate")(place=place, weights=weights, scores=scores)
        place_coordinator(evaluated, federation, "evaluate")
        evaluated.after(shard)
        published = {}
        if federation.exported:
            chosen = evaluated.outputs["chosen"] if federation.exported.compares else weights
            exported = component(federation, "export")(place=place, weights=chosen)
            place_coordinator(exported, federation, "export", signs=True)
            published["onnx"] = exported.outputs["onnx"]
        reported = component(federation, "report")(
            place=place, evaluation=evaluated.outputs["evaluation"], job=dsl.PIPELINE_JOB_ID_PLACEHOLDER, **published
        )
        place_coordinator(reported, federation, "report")

    form = form_of(federation)
    told = "\n".join([description, "", "Parameters:", *(f"{name}: {help_of(name)}" for name in form)])
    return dsl.pipeline(name=federation.name, description=told)(_with_form(form, steps))


def starts_early(federation: Federation, step: str, learner: str = "") -> bool:
    """Returns whether a step of a session starts with the first one, and waits in its pod.

    Args:
        federation: The federation.
        step: Its name.
        learner: The learner of the step; empty for a step of the coordinator.
    """
    return federation.in_sessions and federation.placement_of(step, learner).early


def in_order_of_scores(federation: Federation) -> tuple[LearnerSettings, ...]:
    """Returns the learners as they score; the label party of a split network needs the activations of the others."""
    last = federation.split.label_party if federation.split else ""
    return tuple(sorted(federation.learners, key=lambda learner: learner.name == last))


def describe(federation: Federation, about: dict[str, Any], *, together: bool) -> list:
    """Wires the steps that describe the learners' tables, or one step for all; returns their outputs."""
    if together:
        described = component(federation, "describe")(**about)
        place_coordinator(described, federation, "describe")
        return [described.outputs["report"]]
    reports = []
    for learner in federation.learners:
        described = component(federation, "describe", learner.name)(learner=learner.name, **about)
        place_learner(described, federation, learner, f"describe {learner.name}")
        reports.append(described.outputs["report"])
    return reports


HELP = {
    "store": "the bucket of the federation, as pods reach it: s3://bucket/prefix?endpoint=http://host:9000",
    "run": "name of the run; a name that exists resumes that run. Empty: the id of the Kubeflow run",
    "data": "the dataset that is dealt out to learners, as pods reach it: s3://bucket/file.npz",
    "learning_rate": "of the learners' optimizers. 0: as compiled in model.py",
    "local_epochs": "passes of each learner through its examples in a round. 0: local_steps, as in the federation file",
    "batch_size": "examples in a training step",
    "min_learners": "fewest learners with a valid update in a round",
    "deadline": "seconds that learners have for the trainings of a round, and for a vote",
    "rounds": "rounds of the run",
    "patience": "rounds without improvement after which the run ends. 0: the file has no early stopping",
    "max_seconds": f"age of the run in seconds, after which no round begins. {YEAR}, a year: no limit",
}
"""Explains each parameter of the form."""
_PLACED = {
    "node_selector": "labels of the nodes for {} as JSON",
    "tolerations": "taints that the pods of {} tolerate, as a JSON list",
    "accelerator": "resource name of the accelerators for {}, such as nvidia.com/gpu",
    "accelerators": "number of accelerators for {}",
}


def help_of(name: str) -> str:
    """Returns the text that explains a parameter of the form; those of placements end with their kind."""
    if name in HELP:
        return HELP[name]
    kind = next(kind for kind in _PLACED if name.endswith(f"_{kind}"))
    return _PLACED[kind].format(name.removesuffix(f"_{kind}"))


def form_of(federation: Federation) -> dict[str, Any]:
    """Returns the run-time parameters of the UI's form, with their defaults; only sessions have parameter `rounds`."""
    training, quorum = federation.training, federation.quorum
    stopping = training.early_stopping
    in_sessions = {
        "rounds": training.rounds,
        "patience": stopping.patience if stopping else 0,
        "max_seconds": training.max_seconds or float(YEAR),
    }
    return {
        "store": federation.store_uri,
        "run": "",
        "data": federation.data.uri,
        "learning_rate": training.learning_rate,
        "local_epochs": training.local_epochs if not training.local_steps else 0,
        "batch_size": training.batch_size,
        "min_learners": federation.min_updates,
        "deadline": quorum.deadline,
        **(in_sessions if federation.in_sessions else {}),
        **form_of_placements(federation),
    }


def _with_form(form: dict[str, Any], function: Callable[..., None]) -> Callable[..., None]:
    """Returns the function with the form's entries as arguments, from which KFP reads names, types and defaults."""

    def pipeline(*values: Any) -> None:
        function(**dict(zip(form, values, strict=True)))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    pipeline.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind, default=value, annotation=type(value)) for name, value in form.items()]
    )
    return pipeline


def train(federation: Federation, learner: LearnerSettings, place: Any, number: int, base: Any, act: str) -> Any:
    """Wires a learner's training step; `act` names it."""
    trained = component(federation, "train", learner.name)(place=place, learner=learner.name, round=number, base=base)
    place_learner(trained, federation, learner, f"{number} {act} {learner.name}")
    return trained


def decide(federation: Federation, place: Any, number: int, base: Any, candidate: Any, owner: str, start: list) -> Any:
    """Wires a vote of all learners on a candidate and the tally that commits the round; returns the weights after it.

    Args:
        federation: The federation.
        place: Location of the run.
        number: The round.
        base: Digest of the weights at the start of the round.
        candidate: Digest of the weights to vote on.
        owner: The learner that proposed them; empty for aggregated weights.
        start: The steps that score the first weights, whose results the first votes use.
    """
    ballots = []
    for position, learner in enumerate(federation.learners):
        voted = component(federation, "vote", learner.name)(
            place=place, learner=learner.name, round=number, base=base, candidate=candidate, owner=owner
        )
        if number == 1:
            voted.after(start[position])
        place_learner(voted, federation, learner, f"{number} vote {learner.name}")
        ballots.append(voted.outputs["ballot"])
    counted = component(federation, "tally")(place=place, round=number, base=base, ballots=ballots)
    place_coordinator(counted, federation, f"{number} tally")
    return counted.outputs["weights"]


def score_start(federation: Federation, place: Any, weights: Any) -> list:
    """Wires steps in which every learner scores the first weights, concurrently with the first training."""
    steps = []
    for learner in federation.learners:
        scored = component(federation, "vote", learner.name)(place=place, learner=learner.name, round=0, base=weights)
        place_learner(scored, federation, learner, f"0 score {learner.name}")
        steps.append(scored)
    return steps
