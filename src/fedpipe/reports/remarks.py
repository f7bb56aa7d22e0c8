"""Explains a run: its beginning, its data and settings, and a gap between training and the shared model."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import yaml

from fedpipe.data.schema import NUMERIC
from fedpipe.federation.algorithms import Averaging
from fedpipe.reports.story import Story, global_metrics

GAP = 0.15
"""How far a share, such as the accuracy, may fall behind the training; fedpipe's own rule of thumb."""
FACTOR = 3.0
"""How many times higher than in training a loss may be; fedpipe's own rule of thumb."""
_NAMED = ("server_optimizer", "engine")
_SHARES = ("accuracy", "auc", "precision", "recall", "f1")


class Remark(NamedTuple):
    """A sentence on something that deserves attention, its likely causes, and remedies."""

    what: str
    causes: list[str]
    remedies: list[str]


def gap(story: Story) -> Remark | None:
    """Returns a remark if the shared model of the last round is far worse than the learners' training."""
    last = next((r for r in reversed(story.records) if r.round and r.metrics), None)
    if last is None:
        return None
    training, shared = last.metrics, global_metrics(story, last.round)
    names = [name for name in training if name in shared]
    shares = [name for name in names if any(part in name for part in _SHARES)]
    far = [name for name in shares if training[name] - shared[name] > GAP]
    if not shares:
        far = [name for name in names if name == "loss" and shared[name] > FACTOR * max(training[name], 1e-9) > 0]
    if not far:
        return None
    name = max(far, key=lambda name: abs(training[name] - shared[name]))
    return Remark(
        f"Training and the shared model are far apart: in round {last.round} the learners' training reached {name} "
        f"{training[name]:.2f}, but the shared model has {shared[name]:.2f} on their test parts.",
        [
            "BatchNormalization: each learner's layers adapt to its own data, and the average of them fits nobody.",
            "Features on different scales: they are not normalised, or each learner normalises them by itself.",
            "Learners that differ a lot, or that train so long that their models drift apart.",
            "Overfitting: the train parts are small, or the model is large.",
        ],
        [
            "Set normalise: federated for a table (docs/federation.md), so that all learners share one scale.",
            "Use LayerNormalization instead of BatchNormalization, or keep such layers at the learners "
            "(docs/personal.md).",
            "Lower training.local_epochs or the learning rate; fedpipe explore shows how much learners differ.",
        ],
    )  # fmt: skip


def unnormalised(story: Story) -> Remark | None:
    """Returns a remark if columns were to be normalised, and no learner disclosed statistics."""
    schema = story.schema
    if schema is None or schema.statistics or story.plan.federation.data.normalise == "none":
        return None
    if not any(column.kind in NUMERIC for column in schema.columns):
        return None
    return Remark(
        "The numbers of the table are not normalised: no learner disclosed statistics.",
        [
            "Each learner has fewer train examples than data.statistics.floor.",
            "Learners train with differential privacy, and exact statistics are not private.",
            "Statistics were refused because they contradict themselves, or columns differ between learners.",
        ],
        [
            "Run fedpipe check: it names the reason for each learner whose data it can read.",
            "Lower data.statistics.floor, or normalise in model.py by numbers that are known.",
        ],
    )


class Held(NamedTuple):
    """A learner's data: the examples of each part, None if unknown, and whether the learner brought them."""

    learner: str
    train: int | None
    vote: int | None
    test: int | None
    own: bool


def held_data(story: Story) -> list[Held]:
    """Returns the examples of each learner's parts: of its shard, or as its updates, ballots and score have them."""
    shards = {shard.learner: shard.parts for shard in story.shards}
    found = []
    for learner in story.plan.federation.learners:
        name = learner.name
        parts: dict[str, int] = dict(shards.get(name, {})) or _reported(story, name)
        found.append(Held(name, parts.get("train"), parts.get("vote"), parts.get("test"), learner.brings_data))
    return found


def _reported(story: Story, name: str) -> dict[str, int]:
    parts: dict[str, int] = {}
    for record in story.records:
        for update in record.updates:
            if update.learner == name:
                parts["train"] = update.examples
                if update.tested:
                    parts["test"] = update.tested.examples
        for ballot in record.ballots:
            if ballot.learner == name:
                parts |= {
                    part: scored.examples
                    for part, scored in (("vote", ballot.proposed.vote), ("test", ballot.proposed.test))
                    if scored
                }
    if story.evaluation and name in story.evaluation.learners:
        parts["test"] = story.evaluation.learners[name].examples
    return parts


def settings(story: Story) -> list[tuple[str, str]]:
    """Returns the settings that matter most, as the run used them."""
    federation = story.plan.federation
    training, quorum = federation.training, federation.quorum
    algorithm = federation.algorithm
    pairs: list[tuple[str, Any]] = [
        ("algorithm", algorithm.__struct_config__.tag),
        *([("rule", algorithm.rule_in_words)] if isinstance(algorithm, Averaging) else []),
        *([("secure sums", f"{federation.secure.bits} bits, at least {federation.threshold} learners")]
          if federation.secure else []),
        *((key, _name_of(getattr(algorithm, key))) for key in _NAMED if hasattr(algorithm, key)),
        ("framework", federation.framework),
        ("rounds", training.rounds),
        ("batch size", training.batch_size),
        ("local epochs", training.local_epochs or "none"),
        *([("local steps", training.local_steps)] if training.local_steps else []),
        ("learning rate", training.learning_rate or "as compiled"),
        ("start", training.start),
        ("seed", training.seed),
        ("quorum", quorum.min_learners or ("all parties" if federation.split else "more than half of those asked")),
        ("deadline", f"{quorum.deadline:g} s"),
        ("central test set", f"{federation.evaluation.holdout:.0%} of the data" if story.plan.test else "none"),
    ]  # fmt: skip
    return [(name, str(value)) for name, value in pairs]


def _name_of(value: Any) -> str:
    return str(value.__struct_config__.tag) if isinstance(value, msgspec.Struct) else str(value)


def all_settings(story: Story) -> str:
    """Returns the whole federation as YAML, with the run-time settings."""
    content = msgspec.to_builtins(story.plan.federation)
    return yaml.dump(content, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False, allow_unicode=True)


def beginning(story: Story, summary: dict[str, Any]) -> str:
    """Returns a sentence on the weights with which the run began."""
    previous = story.records[0].previous
    begun = summary.get("begun_from", previous and {"run": previous.run, "round": previous.round})
    if not begun:
        return "The run began with fresh weights."
    return f"The run began from HEAD, the model of round {begun['round']} of run {begun['run']}."
