"""Deciding which version of a model answers, by compare-and-swap on its policy."""

from __future__ import annotations

import time

import msgspec

from fedpipe.errors import ConflictError, InputError, NotFoundError
from fedpipe.registry.publication import versions
from fedpipe.serving.traffic import KEPT, Change, Split, Traffic, read_traffic
from fedpipe.store import Store, keys
from fedpipe.store.objects import encode


def rule_for(
    models: Store, name: str, version: int | None, *, latest: bool = False, canary: float | None = None
) -> Split:
    """The rule that a person asks for.

    Args:
        models: the folder that holds the model.
        name: the model.
        version: the version that is to answer, or to be the canary.
        latest: the newest one from now on.
        canary: share of the requests that go to `version`; the one that answers by rule now keeps the others.

    Raises:
        InputError: the wishes do not go together.
    """
    if latest == (version is not None) or (latest and canary is not None):
        raise InputError("which version is to answer?", where=name, remedy="Give a VERSION, or --latest.")
    if latest:
        return Split()
    if canary is None:
        return Split(kind="pinned", version=version)
    rule = read_traffic(models, name)[0].rule
    stable = rule.version or max((v for v in versions(models).get(name, []) if v != version), default=version)
    return Split(kind="canary", version=stable, canary=version, share=canary)


def promote(models: Store, name: str, rule: Split) -> Traffic:
    """Makes a rule the one that holds.

    Args:
        models: the folder that holds the model.
        name: the model.
        rule: who answers from now on.

    Raises:
        NotFoundError: there is no such version.
        ConflictError: somebody else promoted at the same moment.
    """
    there = versions(models).get(name, [])
    for version in (rule.version, rule.canary):
        if version is not None and version not in there:
            raise NotFoundError(
                f"model {name!r} has no version {version}",
                where=models.uri,
                remedy=f"It has {', '.join(map(str, there))}.",
            )
    if rule.kind == "canary" and rule.canary == rule.version:
        raise InputError("the canary is the version that answers already", where=name)
    policy, token = read_traffic(models, name)
    changes = (*policy.changes, Change(rule=rule, time=time.time()))[-KEPT:]
    changed = msgspec.structs.replace(policy, rule=rule, changes=changes)
    key, data = keys.traffic(name), encode(changed)
    if not (models.swap(key, data, token) if token else models.create(key, data)):
        raise ConflictError(
            "somebody else changed the policy at the same moment",
            where=f"{models.uri}/{key}",
            remedy="Look at it and repeat the command.",
        )
    return changed
