"""Finds settings that cannot be combined with secure sums, or that would protect nobody."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from fedpipe.federation.algorithms import FEWEST_SUMMED, MOST_SUMMED, Averaging, QuantileBound, least_threshold
from fedpipe.federation.federation import Federation
from fedpipe.federation.methods import FedProx
from fedpipe.federation.names import tag_of
from fedpipe.federation.rules import Mean

Mistakes = Iterator[tuple[str, str, str]]
_WITH = "cannot be combined with algorithm.secure"


def secure_mistakes(f: Federation) -> Mistakes:
    """Yield mistakes of secure sums: path, mistake, remedy."""
    if not isinstance(f.algorithm, Averaging) or f.algorithm.secure is None:
        return
    yield from _group_mistakes(f)
    yield from _algorithm_mistakes(f.algorithm)
    yield from _round_mistakes(f)
    yield from _single_mistakes(f)


def _group_mistakes(f: Federation) -> Mistakes:
    count, secure = len(f.learners), f.secure
    assert secure is not None
    if count < FEWEST_SUMMED:
        yield (
            "algorithm.secure",
            f"needs {FEWEST_SUMMED} learners, but there are {count}",
            "Add learners: two would know each other's updates from the sum.",
        )
        return
    if count > MOST_SUMMED:
        yield (
            "algorithm.secure",
            f"takes {MOST_SUMMED} learners at most, but there are {count}",
            "Divide them into several federations: each learner exchanges secrets with each other one.",
        )
        return
    if isinstance(secure.bound, QuantileBound) and _clipped(secure.bound) > Fraction(repr(secure.most_clipped)):
        yield (
            "algorithm.secure.bound.quantile",
            f"{secure.bound.quantile:g} lets more changes be clipped than most_clipped, {secure.most_clipped:g}",
            "Raise it, or raise algorithm.secure.most_clipped.",
        )
    least = least_threshold(count)
    if secure.threshold and not least <= secure.threshold <= count:
        low = secure.threshold < least
        yield (
            "algorithm.secure.threshold",
            f"is {secure.threshold}, but {count} learners need {least} to {count}",
            "Leave it out: with less than two thirds, a coordinator could show two lists to two halves."
            if low
            else "Lower it, or leave it out: no sum can have so many.",
        )


def _clipped(bound: QuantileBound) -> Fraction:
    return 1 - Fraction(repr(bound.quantile))


def _algorithm_mistakes(algorithm: Averaging) -> Mistakes:
    given: dict[str, tuple[bool, str]] = {
        "rule": (not isinstance(algorithm.rule, Mean), "Set it to mean: other rules need single updates."),
        "before": (bool(algorithm.before), "Remove it; algorithm.secure.norm limits each update at its learner."),
        "engine": (algorithm.engine != "fedpipe", "Remove it."),
        "vote": (algorithm.vote is not None, "Remove it: a ballot shows how the model does at one learner."),
        "most_share": (bool(algorithm.most_share), "Remove it: nobody knows the weight of a single update."),
    }
    for name, (wrong, remedy) in given.items():
        if wrong:
            yield f"algorithm.{name}", _WITH, remedy


def _round_mistakes(f: Federation) -> Mistakes:
    if not f.in_sessions:
        yield (
            "training.rounds_per_step",
            f"1 {_WITH}",
            "Set it to all: the keys of a round stay in the memory of a learner's step.",
        )
    if f.quorum.learners_per_round:
        yield (
            "quorum.learners_per_round",
            _WITH,
            "Remove it: a coordinator could draw those that it conspires with.",
        )
    algorithm = f.algorithm
    assert isinstance(algorithm, Averaging)
    own = next((position for position, learner in enumerate(f.learners) if learner.brings_data), None)
    if own is not None and algorithm.weighting == "examples" and not algorithm.most_examples:
        yield (
            "algorithm.most_examples",
            f"is missing, and learners[{own}] has data of its own",
            "Set it to the most train examples of any learner, or algorithm.weighting to uniform.",
        )


def _single_mistakes(f: Federation) -> Mistakes:
    """Find settings by which something of a single learner would leave it, or would have to."""
    if f.share != "all":
        yield "share", f"{_WITH} yet", "Set it to all."
    if f.method is not None and not isinstance(f.method, FedProx):
        yield "training.method", f"{tag_of(f.method)} {_WITH}", "Remove it, or use fedprox."
    if f.training.exchange is not None:
        yield "training.exchange", _WITH, "Remove it: masks are added to whole numbers of their own."
    if f.training.optimizer == "keep":
        yield "training.optimizer", f"keep {_WITH}", "Set it to reset: the state of an optimizer shows the update."
    if f.exported and f.exported.choose == "best":
        yield "export.choose", f"best {_WITH}", "Set it to last: models are chosen by tests of single learners."
