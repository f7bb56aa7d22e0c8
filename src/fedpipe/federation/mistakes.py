"""Finds mistakes in a federation file that its types cannot express."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from fedpipe.errors import FederationError, FedpipeError
from fedpipe.federation.aggregation_mistakes import aggregation_mistakes, tff_mistakes
from fedpipe.federation.algorithms import Collective
from fedpipe.federation.data import AUTO, ByFractions, BySize, ColumnSettings
from fedpipe.federation.federation import Federation
from fedpipe.federation.method_mistakes import method_mistakes
from fedpipe.federation.names import LEAST_NOISE, MOST_STEPS
from fedpipe.federation.placement import EARLY
from fedpipe.federation.preprocessing import parse
from fedpipe.federation.secure_mistakes import secure_mistakes
from fedpipe.federation.site_mistakes import site_mistakes
from fedpipe.federation.split_mistakes import split_mistakes
from fedpipe.federation.training import Privacy
from fedpipe.store import check_uri, is_uri
from fedpipe.store.network import read_address


def mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    """Yield mistakes that types cannot express: path, mistake, remedy."""
    names = [learner.name for learner in f.learners]
    for position, name in enumerate(names):
        if name in names[:position]:
            yield (
                f"learners[{position}].name",
                f"the learner {name!r} is listed twice",
                "Give each learner its own name.",
            )
    yield from site_mistakes(f)
    yield from split_mistakes(f)
    yield from secure_mistakes(f)  # before mistakes of rules and a quorum that secure sums exclude
    count = len(f.sharded)
    if count and not f.data.uri:
        yield "data.uri", "is missing", f"Name a dataset to shard, or give {f.sharded[0]!r} data of its own."
    if not f.training.local_epochs and not f.training.local_steps:
        yield (
            "training.local_epochs",
            "is 0, and so is local_steps",
            "Set one of the two: it decides how long a learner trains.",
        )
    if f.training.schedule and not f.training.learning_rate:
        yield "training.schedule", "needs training.learning_rate, which it changes", "Set that too."
    if f.quorum.min_learners > len(names):
        yield (
            "quorum.min_learners",
            f"is {f.quorum.min_learners}, but there are {len(names)} learners",
            "Lower it.",
        )
    parts = (f.data.parts.train, f.data.parts.vote, f.data.parts.test)
    if not math.isclose(sum(parts), 1.0, abs_tol=1e-9):
        yield "data.parts", f"add up to {sum(parts):g}", "Make train, vote and test add up to 1."
    if not f.data.parts.train:
        yield "data.parts.train", "is 0", "Give learners examples to train on."
    if isinstance(f.data.shards, BySize) and len(f.data.shards.sizes) != count:
        yield (
            "data.shards.sizes",
            f"has {len(f.data.shards.sizes)} entries for {count} learners",
            "Write one entry for each learner.",
        )
    if isinstance(f.data.shards, ByFractions):
        fractions = f.data.shards.fractions
        if len(fractions) != count:
            yield (
                "data.shards.fractions",
                f"has {len(fractions)} entries for {count} learners",
                "Write one entry for each learner.",
            )
        if not math.isclose(sum(fractions), 1.0, abs_tol=1e-9):
            yield "data.shards.fractions", f"add up to {sum(fractions):g}", "Make them add up to 1."
    if twice := next((name for name, count in Counter(f.class_names).items() if count > 1), None):
        yield "export.classes", f"{twice!r} is listed twice", "Name each class once."
    yield from _table_mistakes(f)
    yield from _placement_mistakes(f)
    yield from _framework_mistakes(f)
    yield from aggregation_mistakes(f)
    yield from _preprocessing_mistakes(f)
    yield from _session_mistakes(f)
    yield from _simulation_mistakes(f)
    yield from _vote_mistakes(f)
    yield from _privacy_mistakes(f)
    yield from method_mistakes(f)
    yield from _comparison_mistakes(f)
    yield from _size_mistakes(f)
    yield from _place_mistakes(f)


def _place_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    """Find a store and data that no path or URI names."""
    places = {"store": f.store_uri, "data.uri": f.data.uri}
    places |= {f"learners[{position}].data": learner.data for position, learner in enumerate(f.learners)}
    for path, uri in places.items():
        try:
            if path == "store" or is_uri(uri):
                check_uri(uri)
        except FedpipeError as error:
            yield path, error.what, error.remedy or "Use s3://bucket/prefix or file:///folder."
    services = {"tracking.mlflow": f.tracking.mlflow, "export.registry": f.exported.registry if f.exported else ""}
    for path, url in services.items():
        if url and read_address(url) is None:
            yield path, "is not the URL of a server", "Write http(s)://host[:port][/path]."


def _table_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    data, path = f.data, "data.features"
    if data.ignore and data.features != AUTO:
        yield "data.ignore", "has no effect unless data.features is auto", "Remove it, or write `ignore` as a kind."
    if not isinstance(data.features, dict):
        return
    if not data.kinds:
        yield path, "names no column", "Name at least one, such as {age: number}, or write auto."
    if data.kinds.get(data.labels):
        yield f"{path}.{data.labels}", "is the label, so it cannot be a feature", "Remove it."
    for name, given in data.features.items():
        if not isinstance(given, ColumnSettings):
            continue
        where = f"{path}.{name}.categories"
        if given.categories and given.kind != "category":
            yield where, f"need the kind category, but the kind is {given.kind}", "Remove them."
        for position, value in enumerate(given.categories):
            if value in given.categories[:position]:
                yield where, f"{value!r} is listed twice", "Name each category once."


def _placement_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    given = {f"placement.{kind}": placement for kind, placement in f.placement.items()}
    given |= {f"learners[{position}].placement": learner.placement for position, learner in enumerate(f.learners)}
    given["simulation.placement"] = f.simulation.placement
    for kind, placement in f.placement.items():
        if placement.in_form:
            yield f"placement.{kind}.in_form", "cannot be set for a kind of step", "Set it in the learners' placements."
        if not placement.early and kind not in EARLY:
            yield f"placement.{kind}.early", f"is not a setting of {kind} steps", f"Set it for {', '.join(EARLY)}."
    for path, placement in given.items():
        for what in ("cpu", "memory"):
            limit, request = getattr(placement, what), getattr(placement, f"{what}_request")
            if limit and request and quantity(request) > quantity(limit):
                yield f"{path}.{what}_request", f"{request} is more than the limit, {limit}", "Lower it."
        for number, affinity in enumerate(placement.affinity):
            for position, expression in enumerate(affinity.expressions):
                where = f"{path}.affinity[{number}].expressions[{position}].values"
                if expression.operator in ("Exists", "DoesNotExist") and expression.values:
                    yield where, f"must be empty for {expression.operator}", "Remove the values."
                if expression.operator in ("In", "NotIn") and not expression.values:
                    yield where, f"is empty, but {expression.operator} needs a value", "Name at least one."
                if expression.operator in ("Gt", "Lt") and len(expression.values) != 1:
                    yield (
                        where,
                        f"has {len(expression.values)} entries, but {expression.operator} takes one",
                        "Keep one.",
                    )


def quantity(text: str) -> float:
    """Convert a quantity of Kubernetes to a number.

    >>> quantity("500m"), quantity("2Gi"), quantity("1.5")
    (0.5, 2147483648.0, 1.5)
    """
    match = re.fullmatch(r"([\d.]+)([A-Za-z]*)", text)
    assert match is not None
    return float(match[1]) * _UNITS[match[2]]


_UNITS = {"": 1.0, "m": 1e-3, **{unit: 1e3 ** (k + 1) for k, unit in enumerate("KMGTPE")},
          **{f"{unit}i": 1024.0 ** (k + 1) for k, unit in enumerate("KMGTPE")}}  # fmt: skip


def _framework_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    """Find settings that only Keras supports."""
    if f.framework == "keras":
        return
    training = f.training
    given: dict[str, object] = {
        "training.preprocessing": training.preprocessing,
        "training.precision": training.precision != "float32",
        "training.fit": training.fit if f.framework != "custom" else {},
        "training.evaluate": training.evaluate if f.framework != "custom" else {},
        "training.callbacks": training.callbacks,
        "privacy": f.privacy,
    }
    given |= {f"learners[{position}].privacy": learner.privacy for position, learner in enumerate(f.learners)}
    for path, value in given.items():
        if value:
            yield path, f"needs Keras, but the framework is {f.framework}", "Remove it, or set framework to keras."


def _preprocessing_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    if not f.training.preprocessing:
        return
    try:
        parse(f.training.preprocessing)
    except FederationError as error:
        yield "training.preprocessing", error.what, error.remedy or ""
    for name, value, instead in (("local_epochs", f.training.local_epochs > 1, "`repeat`"),
                                 ("local_steps", f.training.local_steps, "`repeat` and `take`")):  # fmt: skip
        if value:
            yield f"training.{name}", "has no effect with training.preprocessing", f"Write {instead} there instead."
    if any(f.privacy_of(learner.name) for learner in f.learners):
        yield (
            "training.preprocessing",
            "cannot be combined with privacy",
            "Remove one of them: epsilon is computed for batches as DP-SGD draws them.",
        )


def _session_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    wanted, fewest, stopping = f.quorum.learners_per_round, f.quorum.min_learners, f.training.early_stopping
    if wanted > len(f.learners):
        yield "quorum.learners_per_round", f"is {wanted}, but there are {len(f.learners)} learners", "Lower it."
    if wanted and fewest > wanted:
        yield "quorum.min_learners", f"is {fewest}, but a round asks for {wanted} learners", "Lower it."
    if wanted and isinstance(f.algorithm, Collective):
        yield "quorum.learners_per_round", "cannot be set in collective learning", "Remove it."
    if f.quorum.over_selection > 1 and not wanted:
        yield "quorum.over_selection", "has no effect when all learners are asked", "Set quorum.learners_per_round too."
    if f.training.max_seconds and not f.in_sessions:
        yield "training.max_seconds", "needs a session", "Set training.rounds_per_step to all."
    if stopping is None:
        return
    path = "training.early_stopping"
    if not f.in_sessions:
        yield path, "needs a session", "Set training.rounds_per_step to all."
    if stopping.minimise is None and stopping.metric not in ("loss", "test_loss"):
        yield _unclear(f"{path}.minimise", stopping.metric)
    if stopping.metric.startswith("test_") and not (f.evaluation.every_round or f.vote):
        yield f"{path}.metric", "needs the learners' tests", "Set evaluation.every_round to true."


def _unclear(path: str, metric: str) -> tuple[str, str, str]:
    """Return the mistake that nothing says whether less of a metric is better."""
    return path, f"is missing, and it is unclear whether a lower {metric} is better", "Write true or false."


def _simulation_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    names, held_out = [learner.name for learner in f.learners], f.simulation.held_out
    for position, name in enumerate(held_out):
        path = f"simulation.held_out[{position}]"
        if name not in names:
            yield path, f"there is no learner {name!r}", f"Choose from {', '.join(names)}."
        if name in held_out[:position]:
            yield path, f"{name!r} is listed twice", "Name each learner once."
    for name in ("client_optimizer", "server_optimizer"):
        yield from tff_mistakes(f"simulation.{name}", getattr(f.simulation, name))
    left = len(names) - len(held_out)
    if held_out and left < max(1, f.quorum.learners_per_round):
        asked = (
            f"a round asks for {f.quorum.learners_per_round}" if f.quorum.learners_per_round else "a round needs one"
        )
        yield "simulation.held_out", f"leaves {left} learners to train, but {asked}", "Hold out fewer learners."
    if f.simulation.process and f.simulation.model:
        yield "simulation.model", "has no effect with a process of your own", "Build the model in the process."


def _size_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    """Find pipelines that no engine can hold: each step is a task of the file."""
    each = f.training.rounds_per_step
    blocks = 1 if each == "all" else -(-f.training.rounds // each)
    steps = blocks * len(f.learners)
    if blocks > 1 and steps > MOST_STEPS:
        yield (
            "training.rounds_per_step",
            f"makes {steps} steps of learners, but a pipeline holds {MOST_STEPS}",
            "Set it to all, or lower training.rounds.",
        )


def _vote_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    if f.vote is not None:
        if f.vote.criterion != "loss" and f.vote.minimise is None:
            yield _unclear("algorithm.vote.minimise", f.vote.criterion)
        if not f.data.parts.vote and f.sharded:
            yield "data.parts.vote", "is 0", "Give learners examples to vote with."
    if isinstance(f.algorithm, Collective):
        names = [learner.name for learner in f.learners]
        for position, name in enumerate(f.algorithm.proposers):
            path = f"algorithm.proposers[{position}]"
            if name not in names:
                yield path, f"there is no learner {name!r}", f"Choose from {', '.join(names)}."
            if name in f.algorithm.proposers[:position]:
                yield path, f"{name!r} is listed twice", "Name each proposer once."


def _comparison_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    """Find models that cannot be compared: for the choice of the best, or before they are published."""
    export = f.exported
    if export is None:
        return
    if not export.compares:
        for name, value in (("metric", export.metric), ("minimise", export.minimise)):
            if value not in ("", None):
                yield f"export.{name}", "has no effect", "Set export.choose to best, or export.publish_if."
        return
    if not export.compared:
        yield "export.metric", "is missing, and models are compared by it", "Name the loss or a compiled metric."
    elif export.minimised is None:
        yield _unclear("export.minimise", export.compared)
    if not f.data.parts.test and f.sharded:
        yield "data.parts.test", "is 0, and models are compared by tests", "Give learners examples to test with."
    if export.choose == "best" and not (f.evaluation.every_round or f.vote):
        yield "export.choose", "needs the learners' tests", "Set evaluation.every_round to true."


def _privacy_mistakes(f: Federation) -> Iterator[tuple[str, str, str]]:
    given: list[tuple[str, Privacy | None]] = [("privacy", f.privacy)]
    given += [(f"learners[{position}].privacy", learner.privacy) for position, learner in enumerate(f.learners)]
    for path, privacy in given:
        if privacy is None:
            continue
        least = LEAST_NOISE[privacy.accountant]
        if privacy.noise_multiplier < least:
            yield (
                f"{path}.noise_multiplier",
                f"{privacy.noise_multiplier:g} is too small for the accountant {privacy.accountant}",
                f"Use at least {least:g}: less noise protects nobody.",
            )
        if f.training.batch_size % privacy.microbatches:
            yield (
                f"{path}.microbatches",
                f"{privacy.microbatches} does not divide training.batch_size, {f.training.batch_size}",
                "Choose a divisor: each microbatch has the same number of examples.",
            )
        if f.training.callbacks or "validation_split" in f.training.fit:
            yield (
                "training.callbacks" if f.training.callbacks else "training.fit.validation_split",
                f"cannot be combined with {path}",
                "Remove it: it acts on train examples without noise, so no epsilon would hold.",
            )
        if f.training.precision != "float32":
            yield (
                "training.precision",
                f"must be float32 with {path}",
                "Set it to float32: gradients are clipped in that precision.",
            )
