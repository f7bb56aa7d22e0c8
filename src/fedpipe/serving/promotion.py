"""Decides which version of a model answers, by compare-and-swap on its traffic."""

from __future__ import annotations

import time

import msgspec

from fedpipe.errors import ConflictError, InputError, NotFoundError
from fedpipe.registry.publication import versions
from fedpipe.serving.traffic import KEPT_DECISIONS, Decision, Split, Traffic, read_traffic
from fedpipe.store import Store, keys
from fedpipe.store.objects import encode


def split_for(
    models: Store, name: str, version: int | None, *, latest: bool = False, canary: float | None = None
) -> Split:
    """Returns the split that the options of `fedpipe promote` describe.

    Args:
        models: the folder that holds the model.
        name: the model.
        version: the version that answers, or that becomes the canary.
        latest: let the newest version answer from now on.
        canary: share of the requests that go to `version`; the version that answers now keeps the others.

    Raises:
        InputError: the options contradict each other.
    """
    if latest == (version is not None) or (latest and canary is not None):
        raise InputError(
            "either a VERSION or --latest is required", where=name, remedy="Pass one of them; --canary needs a VERSION."
        )
    if latest:
        return Split()
    if canary is None:
        return Split(kind="pinned", version=version)
    split = read_traffic(models, name)[0].split
    stable = split.version or max((v for v in versions(models).get(name, []) if v != version), default=version)
    return Split(kind="canary", version=stable, canary=version, share=canary)


def promote(models: Store, name: str, split: Split) -> Traffic:
    """Makes a split the current one, and returns the changed traffic.

    Args:
        models: the folder that holds the model.
        name: the model.
        split: the versions that answer from now on.

    Raises:
        InputError: the canary is the version that answers already.
        NotFoundError: the model has no such version.
        ConflictError: the traffic was changed at the same time.
    """
    available = versions(models).get(name, [])
    for version in (split.version, split.canary):
        if version is not None and version not in available:
            raise NotFoundError(
                f"model {name!r} has no version {version}",
                where=models.uri,
                remedy=f"Choose one of: {', '.join(map(str, available)) or 'none'}.",
            )
    if split.kind == "canary" and split.canary == split.version:
        remedy = "Choose another version as the canary."
        raise InputError("the canary is the version that answers already", where=name, remedy=remedy)
    traffic, token = read_traffic(models, name)
    decisions = (*traffic.decisions, Decision(split=split, time=time.time()))[-KEPT_DECISIONS:]
    changed = msgspec.structs.replace(traffic, split=split, decisions=decisions)
    key, data = keys.traffic(name), encode(changed)
    if not (models.swap(key, data, token) if token else models.create(key, data)):
        raise ConflictError(
            "the traffic was changed by somebody else at the same time",
            where=f"{models.uri}/{key}",
            remedy="Check it, and repeat the command.",
        )
    return changed
