"""Read a learner's examples: its shard, its own file, or its own data through `load` of the user's file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from fedpipe.data.examples import Examples, read_examples
from fedpipe.data.parts import get_parts, get_shard
from fedpipe.data.shards import split
from fedpipe.errors import DataError
from fedpipe.federation.federation import Federation
from fedpipe.learners.adapters import framework_of
from fedpipe.learners.framework import seed_of
from fedpipe.learners.parts import Part
from fedpipe.learners.user_code import described, is_stop
from fedpipe.rounds.plan import Plan, RunPlace, read_plan
from fedpipe.store import Store


@functools.lru_cache(maxsize=16)
def kept_parts(place: RunPlace, name: str, module: ModuleType) -> dict[str, Part]:
    """Return a learner's parts, read once in a process."""
    store = place.open()
    return learner_parts(store, read_plan(store, place.plan), name, module)


def learner_parts(store: Store, plan: Plan, name: str, module: ModuleType) -> dict[str, Part]:
    """Return a learner's parts: its shard, or its own data.

    Args:
        store: the federation's store.
        plan: the run's plan.
        name: the learner.
        module: the user's file, whose `load` may read the data.

    Raises:
        DataError, CorruptError, NotFoundError: the reason why the examples cannot be used.
    """
    if not plan.federation.learner(name).data:
        return dict(get_parts(store, get_shard(store, name, plan.shards[name]).data, name))
    return own_parts(plan.federation, name, module)


def own_parts(federation: Federation, name: str, module: ModuleType) -> dict[str, Part]:
    """Return the parts of a learner's own data, read by fedpipe or by `load`. Raises DataError."""
    own, settings = federation.learner(name).data, federation.data
    load: Callable[[str], Any] | None = getattr(module, "load", None)
    if load is None:
        return parts_of(read_examples(own, **settings.columns)[0], federation, name)
    try:
        loaded = load(own)
    except BaseException as error:
        if is_stop(error):
            raise
        raise DataError(f"load({own!r}) fails: {described(error)}", where="model.py") from error
    return parts_of(loaded, federation, name)


def parts_of(loaded: Any, federation: Federation, name: str) -> dict[str, Part]:
    """Split a learner's own data into parts; a mapping of parts is used as it is.

    Args:
        loaded: examples, (x, y), a dataset of the federation's framework, or a mapping of these by part.
        federation: the shares of the parts, and the seed of the split.
        name: the learner.

    Raises:
        DataError: the value is none of these.
    """
    framework, shares = framework_of(federation), federation.data.parts
    if isinstance(loaded, Mapping):
        return {part: framework.read_part(value, name) for part, value in loaded.items()}
    whole = loaded if isinstance(loaded, Examples) else framework.read_part(loaded, name)
    if isinstance(whole, Examples):
        indices = split(whole.count, shares, [federation.training.seed, seed_of(name)])
        return {part: whole.rows(i) for part, i in indices.items()}
    train, test = round(len(whole) * shares.train), round(len(whole) * shares.test)
    rest = whole.skip(train)
    return {"train": whole.take(train), "test": rest.take(test), "vote": rest.skip(test)}
