"""Finds mistakes in the settings of an aggregation that its types cannot express."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

from fedpipe.federation.algorithms import OWN_RULES, UNWEIGHTED, Averaging
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import tag_of
from fedpipe.federation.optimizers import OptimizerSettings, Sgd
from fedpipe.federation.rules import Bucketing, Clip, Mean, TrimmedMean, fewest_updates

Mistake = tuple[str, str, str]


def aggregation_mistakes(f: Federation) -> Iterator[Mistake]:
    """Yield mistakes of an aggregation: path, mistake, remedy."""
    if not isinstance(f.algorithm, Averaging):
        return
    yield from _engine_mistakes(f.algorithm)
    yield from _weight_mistakes(f.algorithm)
    if isinstance(f.algorithm.rule, OWN_RULES):
        yield from _count_mistakes(f, f.algorithm)
    for position, step in enumerate(f.algorithm.before):
        if isinstance(step, Clip) and (step.norm is None) == (step.quantile is None):
            given = "neither norm nor quantile" if step.norm is None else "both norm and quantile"
            yield f"algorithm.before[{position}]", f"has {given}", "Set one of the two."


def _engine_mistakes(algorithm: Averaging) -> Iterator[Mistake]:
    rule, optimizer = algorithm.rule, algorithm.server_optimizer
    if isinstance(optimizer, Sgd) and optimizer.nesterov and not optimizer.momentum:
        yield "algorithm.server_optimizer.nesterov", "has no effect without momentum", "Set momentum too."
    if algorithm.engine == "fedpipe":
        if not isinstance(rule, OWN_RULES):
            yield (
                "algorithm.rule",
                f"{tag_of(rule)!r} needs TensorFlow Federated",
                "Add `engine: tff` to the algorithm.",
            )
        return
    yield from tff_mistakes("algorithm.server_optimizer", optimizer)
    if algorithm.schedule:
        yield "algorithm.schedule", "is not supported by TensorFlow Federated", "Remove it, or `engine: tff`."
    if isinstance(rule, OWN_RULES) and not isinstance(rule, Mean):
        yield "algorithm.rule", f"{tag_of(rule)!r} is not a rule of TensorFlow Federated", "Remove `engine: tff`."
    if algorithm.before:
        yield "algorithm.before", "is not supported by TensorFlow Federated", "Remove it, or `engine: tff`."


def tff_mistakes(path: str, optimizer: OptimizerSettings | None) -> Iterator[Mistake]:
    """Find settings of an optimizer that TensorFlow Federated lacks."""
    if isinstance(optimizer, Sgd):
        if optimizer.nesterov:
            yield f"{path}.nesterov", "is not supported by TensorFlow Federated", "Remove it."
    elif optimizer and optimizer.formulas == "paper":
        yield f"{path}.formulas", "are always TFF's in TensorFlow Federated", "Remove it, or write tff."


def _weight_mistakes(algorithm: Averaging) -> Iterator[Mistake]:
    rule = algorithm.rule
    if isinstance(rule, UNWEIGHTED) and algorithm.weighting != "uniform":
        yield (
            "algorithm.weighting",
            f"must be uniform for the rule {tag_of(rule)!r}",
            "Set it to uniform: the noise hides one update among others of the same weight.",
        )
    if not algorithm.most_share:
        return
    if algorithm.weighting == "uniform":
        yield (
            "algorithm.most_share",
            "has no effect when all updates weigh the same",
            "Remove it, or set algorithm.weighting to examples.",
        )
    elif algorithm.ignores_examples:
        yield (
            "algorithm.most_share",
            f"has no effect with {algorithm.rule_in_words}, which weighs all updates the same",
            "Remove it.",
        )


def _count_mistakes(f: Federation, algorithm: Averaging) -> Iterator[Mistake]:
    """Find rules that need more updates than a round has."""
    asked, needed, rule = f.learners_asked, 1, algorithm.rule
    assert isinstance(rule, OWN_RULES)
    if isinstance(rule, TrimmedMean) and (mistake := _share_mistake(f, algorithm, rule)):
        yield mistake
        return
    parts = [*((f"before[{k}]", step) for k, step in enumerate(algorithm.before)), ("rule", rule)]
    for position, (path, part) in reversed(list(enumerate(parts))):
        before, needed = needed, fewest_updates(algorithm.before[position:], rule)
        if needed > asked >= before:
            key, value = ("size", part.size) if isinstance(part, Bucketing) else _setting(part)
            yield (
                f"algorithm.{path}.{key}",
                f"{value} needs {needed} updates, but a round asks for {asked} learners",
                "Lower it, or ask more learners.",
            )
            return
        if isinstance(part, Bucketing) and part.size >= asked > 1:
            yield f"algorithm.{path}.size", f"{part.size} puts all {asked} learners into one bucket", "Lower it."
    if 0 < f.quorum.min_learners < needed:
        yield (
            "quorum.min_learners",
            f"is {f.quorum.min_learners}, but {algorithm.rule_in_words} needs {needed} updates",
            f"Raise it to {needed}, or leave it out.",
        )


def _setting(part: object) -> tuple[str, object]:
    """Return the setting that decides how many updates a part needs."""
    keep, byzantine = getattr(part, "keep", 0), getattr(part, "byzantine", 0)
    return ("keep", keep) if keep > byzantine + 3 else ("byzantine", byzantine)


def _share_mistake(f: Federation, algorithm: Averaging, rule: TrimmedMean) -> Mistake | None:
    count = f.learners_asked
    for step in algorithm.before:
        count = ceil(count / step.size) if isinstance(step, Bucketing) else count
    if count >= rule.fewest:
        return None
    return (
        "algorithm.rule.share",
        f"{rule.share:g} of {count} values is less than one, so none is cut off",
        f"Use at least {ceil(1000 / count) / 1000:g}." if count > 2 else "Use the rule median.",
    )
