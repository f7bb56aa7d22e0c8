"""Deals a dataset out to learners, by labels or keys, a scheme and its seed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedpipe.data.examples import Examples, first_labels, read_examples
from fedpipe.data.settling import settled
from fedpipe.errors import DataError
from fedpipe.federation.data import ByFractions, ByKey, ByLabel, BySize, Dirichlet, Iid, Parts, Scheme
from fedpipe.federation.federation import Federation

Indices = npt.NDArray[np.int64]
_DIRICHLET_TRIES = 100


def deal(
    scheme: Scheme, learners: int, *, labels: npt.NDArray[Any], keys: npt.NDArray[Any] | None = None
) -> list[Indices]:
    """Deals the examples out: each goes to exactly one learner.

    Args:
        scheme: the scheme, with its seed and the minimum size.
        learners: number of learners, which get one shard each.
        labels: shape (examples,) or (examples, ...); only ByLabel and Dirichlet use them, as one class per example.
        keys: shape (examples,); required by ByKey.

    Returns:
        One sorted array of indices per learner.

    Raises:
        DataError: too few examples, sizes that do not add up, or a shard below the minimum.
    """
    count = len(labels)
    if count < learners:
        raise DataError(
            f"{count} examples cannot be dealt to {learners} learners",
            where="data.shards",
            remedy="Use more examples or fewer learners.",
        )
    generator = np.random.default_rng(scheme.seed)
    shards = [np.sort(shard) for shard in _deal(scheme, learners, labels, keys, generator)]
    smallest = min(range(learners), key=lambda k: len(shards[k]))
    if len(shards[smallest]) < scheme.minimum:
        raise DataError(
            f"learner {smallest + 1} of {learners} would get {len(shards[smallest])} examples, fewer than the minimum "
            f"of {scheme.minimum}",
            where="data.shards",
            remedy="Lower data.shards.minimum, choose another seed, or use fewer learners.",
        )
    return shards


@functools.singledispatch
def _deal(scheme: Any, learners: int, labels: Any, keys: Any, generator: np.random.Generator) -> list[Indices]:
    raise TypeError(type(scheme).__name__)


@_deal.register
def _(scheme: Iid, learners: int, labels: Any, keys: Any, generator: np.random.Generator) -> list[Indices]:
    return list(np.array_split(generator.permutation(len(labels)), learners))


@_deal.register
def _(scheme: ByLabel, learners: int, labels: Any, keys: Any, generator: np.random.Generator) -> list[Indices]:
    order = np.argsort(_classes(labels), kind="stable")
    pieces = np.array_split(order, learners * scheme.pieces)
    hands = np.array_split(generator.permutation(len(pieces)), learners)
    return [np.concatenate([pieces[p] for p in hand]) for hand in hands]


@_deal.register
def _(scheme: ByKey, learners: int, labels: Any, keys: Any, generator: np.random.Generator) -> list[Indices]:
    if keys is None:
        raise DataError(f"the dataset has no column {scheme.column!r} to shard by", where="data.shards.column")
    _, groups, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    if len(sizes) < learners:
        raise DataError(
            f"{scheme.column!r} has {len(sizes)} keys for {learners} learners",
            where="data.shards.column",
            remedy="Use another column or fewer learners.",
        )
    owner = np.empty(len(sizes), np.int64)
    load = np.zeros(learners, np.int64)
    shuffled = generator.permutation(len(sizes))
    for key in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:  # the largest first, to the smallest shard
        owner[key] = int(np.argmin(load))
        load[owner[key]] += sizes[key]
    return [np.flatnonzero(owner[groups.reshape(-1)] == learner) for learner in range(learners)]


@_deal.register
def _(scheme: Dirichlet, learners: int, labels: Any, keys: Any, generator: np.random.Generator) -> list[Indices]:
    classes = _classes(labels)
    for _ in range(_DIRICHLET_TRIES):  # a draw may leave a learner with too few examples; then draw again
        hands: list[list[Indices]] = [[] for _ in range(learners)]
        for label in np.unique(classes):
            members = generator.permutation(np.flatnonzero(classes == label))
            shares = generator.dirichlet(np.full(learners, scheme.alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(int)
            for hand, piece in zip(hands, np.split(members, cuts), strict=True):
                hand.append(piece)
        shards = [np.concatenate(hand) for hand in hands]
        if min(len(shard) for shard in shards) >= scheme.minimum:
            break
    return shards


@_deal.register
def _(scheme: BySize, learners: int, labels: Any, keys: Any, generator: np.random.Generator) -> list[Indices]:
    if sum(scheme.sizes) != len(labels):
        raise DataError(
            f"the sizes add up to {sum(scheme.sizes)}, but there are {len(labels)} examples to deal",
            where="data.shards.sizes",
            remedy="Change the sizes; examples of evaluation.holdout are not dealt.",
        )
    return _cut(generator.permutation(len(labels)), np.cumsum(scheme.sizes)[:-1])


@_deal.register
def _(scheme: ByFractions, learners: int, labels: Any, keys: Any, generator: np.random.Generator) -> list[Indices]:
    cuts = np.rint(np.cumsum(scheme.fractions)[:-1] * len(labels)).astype(int)
    return _cut(generator.permutation(len(labels)), cuts)


def _cut(order: Indices, cuts: Any) -> list[Indices]:
    return list(np.split(order, cuts))


def _classes(labels: npt.NDArray[Any]) -> Indices:
    """Returns one integer per example; a vector label counts as the class of its largest entry."""
    flat = labels.reshape(len(labels), -1)
    column = flat[:, 0] if flat.shape[1] == 1 else np.argmax(flat, axis=1)
    return np.unique(column, return_inverse=True)[1].reshape(-1)


def steady_order(count: int, seed: Sequence[int]) -> Indices:
    """Returns a random order of indices. With more indices, the first ones stay in the same order among the others."""
    return np.argsort(np.random.default_rng(list(seed)).random(count), kind="stable")


def holdout(count: int, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Splits indices into those for the learners and those for the central test set, both sorted."""
    order = steady_order(count, [seed, 1])
    kept = round(count * fraction)
    return np.sort(order[kept:]), np.sort(order[:kept])


def split(count: int, parts: Parts, seed: Sequence[int]) -> dict[str, Indices]:
    """Splits one learner's examples into train, vote and test parts: disjoint, complete and seeded.

    When examples are added at the end, nearly all others keep their part. A later run that continues from HEAD must
    not test the model on what it was trained on.
    """
    order = steady_order(count, seed)
    cuts = [round(count * parts.train), round(count * (parts.train + parts.vote))]
    return {name: np.sort(part) for name, part in zip(("train", "vote", "test"), np.split(order, cuts), strict=True)}


def dealt(federation: Federation, uri: str) -> tuple[dict[str, dict[str, Examples]], Examples | None]:
    """Reads and deals the dataset; writes nothing.

    Returns:
        Each learner's parts, and the central test set when there is one.

    Raises:
        DataError: the data cannot be used, or a train part is smaller than a batch.
    """
    scheme = federation.data.shards
    column = scheme.column if isinstance(scheme, ByKey) else ""
    examples, keys = read_examples(uri, key=column, **federation.data.columns)
    if not examples.columns:
        examples = settled(examples, None, federation.class_names, where=uri)
    seed = federation.training.seed
    kept, held_out = holdout(examples.count, federation.evaluation.holdout, seed)
    rest, labels = examples.rows(kept), first_labels(examples.y)[kept]
    shards = deal(scheme, len(federation.sharded), labels=labels, keys=None if keys is None else keys[kept])
    parts = {}
    for position, (name, indices) in enumerate(zip(federation.sharded, shards, strict=True)):
        cut = split(len(indices), federation.data.parts, [seed, 2, position])
        parts[name] = {p: rest.rows(indices[i]) for p, i in cut.items()}
        count = parts[name]["train"].count
        if count < federation.training.batch_size:
            raise DataError(
                f"the train part of {name} has {count} examples, but a batch has {federation.training.batch_size}",
                where="training.batch_size",
                remedy="Lower it, or give the learner more data.",
            )
        if federation.vote and parts[name]["vote"].count < federation.training.batch_size:
            raise DataError(
                f"the vote part of {name} has {parts[name]['vote'].count} examples, but a batch has "
                f"{federation.training.batch_size}",
                where="data.parts.vote",
                remedy="Raise it, lower training.batch_size, or give the learner more data.",
            )
    return parts, examples.rows(held_out) if len(held_out) else None
