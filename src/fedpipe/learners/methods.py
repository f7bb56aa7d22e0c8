"""How a learner trains by each method for learners that differ; the federation file chooses it.

With the shared weights x, the learner's loss F, and anchors only for weights that are trained and shared:

**FedProx** trains on F(w) + mu/2 |w - x|^2: the gradient of the second term, mu (w - x), is added to each gradient.
Source: Li et al. 2020, "Federated Optimization in Heterogeneous Networks", Algorithm 2. The reported loss is F.

**Ditto** trains as federated averaging does, and then a personal model v, from where it was left, on
F(v) + lambda/2 |v - x|^2. Source: Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization",
Algorithm 1. The personal model is trained as long as the shared one.

**MR-MTL** trains only the personal model v in this way, and shares v, so that x is the mean of all. Source: Liu et al.
2022, "On Privacy and Personalization in Cross-Silo Federated Learning", section 5.

**SCAFFOLD** adds c - c_k to each gradient. Its formulas are in `rounds/steps.py`, with those of FedNova, whose learners
train plainly.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fedpipe.errors import DroppedError
from fedpipe.federation.methods import Ditto, FedProx, MrMtl, Scaffold
from fedpipe.federation.training import Training
from fedpipe.learners.framework import Arrays, Correction, Fitted, Model, seed_of
from fedpipe.learners.parts import Part, size_of
from fedpipe.learners.personal import Kept
from fedpipe.rounds.steps import steps_of
from fedpipe.weights import Array


class Begun(NamedTuple):
    """All that a training begins from.

    Args:
        base: the shared weights.
        kept: by the learner, from round to round.
        control: SCAFFOLD's common control variate; empty before the first round.
        optimizer: the state after an earlier training; None for a fresh one.
        seed: of shuffling and dropout.
        seconds: the time after which the training is too late.
    """

    base: Arrays
    kept: Kept
    control: Arrays
    optimizer: Arrays | None
    seed: int
    seconds: float


def train(model: Model, part: Part, training: Training, begun: Begun) -> tuple[Fitted, Kept]:
    """Train by the method of the federation file.

    Args:
        model: of the learner.
        part: at least a batch of examples.
        training: its method and settings.
        begun: weights and states to begin from.

    Returns:
        The result, whose weights are shared, and what the learner keeps.

    Raises:
        DroppedError, ModelError: as `Model.train`.
    """
    method = training.method
    if isinstance(method, Scaffold):
        return _scaffold(model, part, training, begun)
    if isinstance(method, MrMtl):
        pull = _pull(model, begun, method.strength)
        fitted = _fit(model, part, training, begun, begun.kept.model or begun.base, pull)
        return fitted, Kept(model=fitted.weights)
    correction = _pull(model, begun, method.mu) if isinstance(method, FedProx) else None
    started = time.monotonic()
    fitted = _fit(model, part, training, begun, begun.base, correction)
    if not isinstance(method, Ditto):
        return fitted, Kept(local=fitted.local)
    alone = begun._replace(
        seed=seed_of(begun.seed, "personal"),
        optimizer=None,
        seconds=begun.seconds - (time.monotonic() - started),
    )
    start = begun.kept.model or begun.base
    personal = _fit(model, part, training, alone, start, _pull(model, begun, method.strength))
    return fitted, Kept(model=personal.weights)


def _fit(
    model: Model, part: Part, training: Training, begun: Begun, start: Mapping[str, Array],
    correction: Correction | None,
) -> Fitted:  # fmt: skip
    return model.train(
        dict(start),
        part,
        training,
        seed=begun.seed,
        seconds=begun.seconds,
        optimizer=begun.optimizer,
        correction=correction,
    )


def _pull(model: Model, begun: Begun, strength: float) -> Correction:
    """Return the gradient of half the squared distance from the shared weights, times a strength."""
    return Correction(strength, {name: begun.base[name] for name in model.trainable})


def _scaffold(model: Model, part: Part, training: Training, begun: Begun) -> tuple[Fitted, Kept]:
    """Train with control variates; see `rounds/steps.py`."""
    names = model.trainable
    common = {name: _or_zeros(begun.control, begun.base, name) for name in names}
    own = {name: _or_zeros(begun.kept.control, begun.base, name) for name in names}
    offsets = {name: common[name] - own[name] for name in names}
    fitted = _fit(model, part, training, begun, begun.base, Correction(offsets=offsets))
    steps = steps_of(training, size_of(part))
    if fitted.steps // training.accumulate != steps:
        raise DroppedError(f"the training took {fitted.steps // training.accumulate} steps, not {steps}", lasting=True)
    control = {}
    for name in names:
        moved = begun.base[name].astype(np.float64) - fitted.weights[name]
        new = own[name].astype(np.float64) - common[name] + moved / (steps * training.learning_rate)
        control[name] = new.astype(begun.base[name].dtype)
    return fitted, Kept(local=fitted.local, control=control)


def _or_zeros(arrays: Mapping[str, Array], like: Arrays, name: str) -> Array:
    value = arrays.get(name)
    return np.zeros_like(like[name]) if value is None or value.shape != like[name].shape else value
