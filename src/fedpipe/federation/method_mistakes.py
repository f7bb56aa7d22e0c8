"""Finds mistakes in the methods of training, and in what learners share."""

from __future__ import annotations

from collections.abc import Iterator

from fedpipe.federation.algorithms import Averaging
from fedpipe.federation.federation import Federation
from fedpipe.federation.methods import COUNTS_STEPS, PERSONAL, FedNova, FedProx, Scaffold
from fedpipe.federation.names import tag_of
from fedpipe.federation.rules import Mean

Mistakes = Iterator[tuple[str, str, str]]


def method_mistakes(f: Federation) -> Mistakes:
    """Yield mistakes of `share`, `training.method` and the options of gradients: path, mistake, remedy."""
    private = any(f.privacy_of(learner.name) for learner in f.learners)
    yield from _share_mistakes(f, private=private)
    for name, given in (("clip_norm", f.training.clip_norm), ("accumulate", f.training.accumulate > 1)):
        if given and private:
            yield (
                f"training.{name}",
                "cannot be combined with privacy",
                "Remove it: DP-SGD clips and averages gradients by the settings of the privacy section.",
            )
    yield from _combination_mistakes(f, private=private)
    yield from _exchange_mistakes(f)
    if f.framework == "custom":
        yield from _custom_mistakes(f)
    if isinstance(f.method, COUNTS_STEPS):
        yield from _step_mistakes(f)


def _custom_mistakes(f: Federation) -> Mistakes:
    """Find what changes gradients or counts steps: a custom learner does both by itself."""
    training = f.training
    for name, given in (
        ("method", f.method),
        ("clip_norm", training.clip_norm),
        ("accumulate", training.accumulate > 1),
    ):
        if given:
            yield (
                f"training.{name}",
                "cannot be combined with framework: custom",
                "Do it in the learner's train function.",
            )
    if f.share == "trainable":
        yield "share", "trainable needs Keras", "Name the weights that stay: share: {local: [...]}."


def _share_mistakes(f: Federation, *, private: bool) -> Mistakes:
    if f.share == "all":
        return
    if not isinstance(f.algorithm, Averaging):
        yield "share", "needs averaging", "Set it to all: in collective learning, a proposal is a whole model."
    if private:
        yield (
            "share",
            "cannot be combined with privacy",
            "Set it to all: a private model is built again in another Keras, with other weights of its own.",
        )
    if isinstance(f.method, PERSONAL):
        yield "share", f"cannot be combined with {tag_of(f.method)}", "Set it to all: personal models are whole."


def _combination_mistakes(f: Federation, *, private: bool) -> Mistakes:
    if f.method is None:
        return
    path, tag = "training.method", tag_of(f.method)
    if not isinstance(f.algorithm, Averaging) and not isinstance(f.method, FedProx):
        yield path, f"{tag} needs averaging", "Remove it, or set algorithm to averaging."
    if private and not isinstance(f.method, FedNova):
        yield path, f"{tag} cannot be combined with privacy", "Remove one of them, or use fednova."


def _exchange_mistakes(f: Federation) -> Mistakes:
    exchange, path = f.training.exchange, "training.exchange"
    if exchange is None:
        return
    if exchange.dtype == "int8" and not exchange.changes:
        yield (
            f"{path}.as",
            "must be delta for int8",
            "Set it to delta: what rounding takes away is added to the next change.",
        )
    if not isinstance(f.algorithm, Averaging):
        yield path, "needs averaging", "Remove it: in collective learning, a proposal is the next model itself."
    elif f.algorithm.engine != "fedpipe":
        yield path, "needs engine: fedpipe", "Remove it, or use rule: compression of TensorFlow Federated."
    if isinstance(f.method, Scaffold):
        yield path, "cannot be combined with scaffold", "Remove it: control variates follow from exact updates."


def _step_mistakes(f: Federation) -> Mistakes:
    """Find settings with which the number of steps would not describe an update."""
    training, algorithm = f.training, f.algorithm
    assert f.method is not None
    tag = tag_of(f.method)
    split = training.fit.get("validation_split")
    for name, given in (("preprocessing", training.preprocessing), ("callbacks", training.callbacks),
                        ("fit.validation_split", split)):  # fmt: skip
        if given:
            yield (
                f"training.{name}",
                f"cannot be combined with {tag}",
                "Remove it: the coordinator counts the steps of epochs and batches.",
            )
    if training.accumulate > 1 and training.optimizer == "keep":
        yield "training.optimizer", f"must be reset for {tag} with accumulate", "Set it to reset."
    if isinstance(algorithm, Averaging):
        if not isinstance(algorithm.rule, Mean):
            yield "algorithm.rule", f"must be mean for {tag}", f"Set it to mean: {tag} is defined for sums of updates."
        if algorithm.engine != "fedpipe":
            yield "algorithm.engine", f"must be fedpipe for {tag}", "Remove it."
        if algorithm.most_share:
            yield "algorithm.most_share", f"cannot be combined with {tag}", "Set it to 0."
    if isinstance(f.method, Scaffold):
        if not training.learning_rate:
            yield (
                "training.learning_rate",
                "is missing, and scaffold needs it",
                "Set it: control variates are updates divided by rate and steps.",
            )
        if training.clip_norm:
            yield "training.clip_norm", "cannot be combined with scaffold", "Set it to 0."
