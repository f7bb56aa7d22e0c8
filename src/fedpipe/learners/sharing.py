"""Models of which learners share only a part of the weights; the rest stays at each learner.

FedBN keeps the layers of batch normalisation at each learner: Li et al. 2021, "FedBN: Federated Learning on Non-IID
Features via Local Batch Normalization". FedPer keeps the last layers: Arivazhagan et al. 2019, "Federated Learning with
Personalization Layers". Both are patterns of names here. A model completes the shared weights by its own ones. Those of
the shared model, which belongs to no learner, are the first values that `build` gives them.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from types import ModuleType

import numpy as np

from fedpipe.data.trees import Tree
from fedpipe.errors import ModelError
from fedpipe.federation.federation import Federation
from fedpipe.federation.methods import Sharing
from fedpipe.federation.training import Training
from fedpipe.learners.framework import Arrays, Correction, Fitted, Measurement, Model, Outline, Predict, Preparing
from fedpipe.learners.parts import LabelShape, Part
from fedpipe.rounds.tallies import Head
from fedpipe.suggestion import suggestion
from fedpipe.weights import Array


def matches(name: str, pattern: str) -> bool:
    """Return whether a pattern fits a name of weights, or the end of it that begins at one of its parts.

    >>> matches("sequential/head/kernel", "head/*"), matches("sequential/overhead/kernel", "head/*")
    (True, False)
    """
    parts = name.split("/")
    return any(fnmatchcase("/".join(parts[start:]), pattern) for start in range(len(parts)))


def local_names(names: Sequence[str], patterns: Sequence[str]) -> frozenset[str]:
    """Return the names of weights that stay at each learner.

    Args:
        names: of all weights.
        patterns: of `share.local`.

    Raises:
        ModelError: a pattern matches nothing, or all weights would stay.
    """
    for position, pattern in enumerate(patterns):
        where = f"share.local[{position}]"
        found = [name for name in names if matches(name, pattern)]
        if not found:
            remedy = suggestion(pattern, names, listed="Choose from")
            raise ModelError(f"{pattern!r} matches none of the weights", where=where, remedy=remedy)
        if len(found) == len(names):
            remedy = suggestion("", names, listed="Choose some of them")
            raise ModelError(f"{pattern!r} matches all weights, so nothing would be shared", where=where, remedy=remedy)
    local = frozenset(name for name in names if any(matches(name, pattern) for pattern in patterns))
    if len(local) == len(names):
        remedy = suggestion("", names, listed="Leave one of them out")
        what = "the patterns match all weights, so nothing would be shared"
        raise ModelError(what, where="share.local", remedy=remedy)
    return local


def shared_model(model: Model, federation: Federation) -> Model:
    """Return a model whose weights are those that learners share.

    Args:
        model: with all its weights.
        federation: its `share` chooses; the seed of its training makes first values.

    Raises:
        ModelError: a pattern matches nothing or everything, or nothing can be trained.
    """
    share, seed = federation.share, federation.training.seed
    if share == "all":
        return model
    names = tuple(model.initial_weights(seed))
    if isinstance(share, Sharing):
        return SharedModel(model, local_names(names, share.local), seed)
    local = frozenset(names) - frozenset(model.trainable)
    if len(local) == len(names):
        raise ModelError(
            "no weights can be trained, so nothing would be shared", where="share", remedy="Set it to all."
        )
    return SharedModel(model, local, seed) if local else model


class SharedModel:
    """A model that takes and returns shared weights, and completes them by local ones; see `Model`.

    Args:
        model: with all its weights.
        local: names of the weights that are not shared.
        seed: of their first values.
        own: local weights of a learner; first values take the place of those that are missing.
    """

    def __init__(self, model: Model, local: Collection[str], seed: int, own: Mapping[str, Array] | None = None) -> None:
        self._model, self.local, self._seed, self._own = model, frozenset(local), seed, dict(own or {})

    def owned(self, own: Mapping[str, Array]) -> SharedModel:
        """Return the same model with a learner's local weights. Others, of another model, are left out."""
        first = self._first
        fitting = {k: v for k, v in own.items() if k in first and _same_form(v, first[k])}
        return SharedModel(self._model, self.local, self._seed, fitting)

    @functools.cached_property
    def _first(self) -> Arrays:
        return {k: v for k, v in self._model.initial_weights(self._seed).items() if k in self.local}

    def _complete(self, weights: Mapping[str, Array]) -> Arrays:
        return {**weights, **self._first, **self._own}

    def _shared(self, weights: Mapping[str, Array]) -> Arrays:
        return {name: value for name, value in weights.items() if name not in self.local}

    @property
    def module(self) -> ModuleType:
        """See `Model.module`."""
        return self._model.module

    @property
    def outline(self) -> Outline:
        """See `Model.outline`."""
        outline = self._model.outline
        count = sum(int(value.size) for value in self._first.values())
        return outline._replace(text=f"{outline.text}, {count:,} of them local") if count else outline

    @property
    def heads(self) -> tuple[Head, ...]:
        """See `Model.heads`."""
        return self._model.heads

    @property
    def trainable(self) -> tuple[str, ...]:
        """See `Model.trainable`: the shared ones."""
        return tuple(name for name in self._model.trainable if name not in self.local)

    def check_training(self, training: Training, *, private: bool) -> None:
        """See `Model.check_training`."""
        self._model.check_training(training, private=private)

    def check_examples(self, x: Tree, y: Tree, weight: Array | None = None) -> set[str]:
        """See `Model.check_examples`."""
        return self._model.check_examples(x, y, weight)

    def initial_weights(self, seed: int) -> Arrays:
        """See `Model.initial_weights`."""
        return self._shared(self._model.initial_weights(seed))

    def train(
        self, weights: Arrays, part: Part, training: Training, *, seed: int, seconds: float, optimizer: Arrays | None,
        correction: Correction | None = None,
    ) -> Fitted:  # fmt: skip
        """See `Model.train`; the result has the local weights that differ from their first values."""
        whole = self._complete(weights)
        fitted = self._model.train(
            whole, part, training, seed=seed, seconds=seconds, optimizer=optimizer, correction=correction
        )
        first = self._first
        local = {k: fitted.weights[k] for k in sorted(self.local) if not _same(fitted.weights[k], first[k])}
        return fitted._replace(weights=self._shared(fitted.weights), local=local)

    def prepare(self, parts: Mapping[str, Part], training: Training) -> None:
        """See `fedpipe.learners.framework.Preparing`."""
        if isinstance(self._model, Preparing):
            self._model.prepare(parts, training)

    def evaluate(self, weights: Arrays, part: Part, training: Training, batches: int = 0) -> Measurement:
        """See `Model.evaluate`."""
        return self._model.evaluate(self._complete(weights), part, training, batches)

    def metrics_of(self, states: Sequence[Array], label_shape: LabelShape) -> dict[str, float]:
        """See `Model.metrics_of`."""
        return self._model.metrics_of(states, label_shape)

    def predictor(self, weights: Arrays) -> Predict:
        """See `Model.predictor`."""
        return self._model.predictor(self._complete(weights))

    def convert(self, weights: Arrays, opset: int, metadata: Mapping[str, str] | None = None) -> bytes:
        """See `Model.convert`."""
        return self._model.convert(self._complete(weights), opset, metadata)


def _same_form(value: Array, other: Array) -> bool:
    return (value.shape, value.dtype) == (other.shape, other.dtype)


def _same(value: Array, other: Array) -> bool:
    return _same_form(value, other) and np.asarray(value).tobytes() == np.asarray(other).tobytes()
