"""Read a learner's examples: its shard, its own file, or its own data through `load` of the user's file."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from fedpipe.data.disclosure import schema_of
from fedpipe.data.examples import Examples, first_labels, read_examples
from fedpipe.data.parts import get_parts, get_shard_parts
from fedpipe.data.schema import Schema
from fedpipe.data.settling import settled, with_kinds
from fedpipe.data.shards import split
from fedpipe.data.tables import table_of
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
    schema, classes = schema_of(store, plan), plan.federation.class_names
    parts = raw_parts(store, plan.federation, plan.shards, name, module, schema)
    return {
        part: settled(value, schema, classes, where=name) if isinstance(value, Examples) else value
        for part, value in parts.items()
    }


def raw_parts(
    store: Store, federation: Federation, shards: Mapping[str, str], name: str, module: ModuleType | None,
    schema: Schema | None = None,
) -> dict[str, Part]:  # fmt: skip
    """Return a learner's parts as they are read: the labels of a table may be names of classes.

    Args:
        store: the federation's store.
        federation: with the settings of its data.
        shards: digests of the shards by learner.
        name: the learner.
        module: the user's file, whose `load` may read the data.
        schema: gives the kinds of columns in the learner's own file; None: they are declared or guessed.

    Raises:
        DataError, CorruptError, NotFoundError: the reason why the examples cannot be used.
    """
    if not federation.learner(name).brings_data:
        return dict(get_shard_parts(store, name, shards[name]))
    return own_parts(federation, name, module, schema)


def central_test(store: Store, plan: Plan, schema: Schema | None = None) -> Examples | None:
    """Return the central test set of a run, if it has one.

    Args:
        store: the federation's store.
        plan: the run's plan.
        schema: of the run's table; by default the one that round 0 names.

    Raises:
        DataError, CorruptError: the examples cannot be used.
    """
    if plan.test is None:
        return None
    held, classes = get_parts(store, plan.test)["test"], plan.federation.class_names
    return settled(held, schema or schema_of(store, plan), classes, where="the central test set")


SITE_DATA = "FEDPIPE_SITE_DATA"
"""Environment variable of the process that trains at a site: the path or URI of the site's own data."""


def own_place(federation: Federation, name: str) -> str:
    """Return the path or URI of a learner's own data: a site names it, and no plan does. Raises DataError."""
    learner = federation.learner(name)
    place = os.environ.get(SITE_DATA, "") if learner.at == "site" else learner.data
    if not place:
        remedy = "Set policy.data in site.yaml." if learner.at == "site" else None
        raise DataError(f"{name} has no data of its own", remedy=remedy)
    return place


def own_parts(
    federation: Federation, name: str, module: ModuleType | None, schema: Schema | None = None
) -> dict[str, Part]:
    """Return the parts of a learner's own data, read by fedpipe or by `load`, as `raw_parts` does. Raises DataError."""
    own, settings = own_place(federation, name), federation.data.columns
    settings["narrowed"] = federation.learner(name).at == "site"
    if schema is not None:
        settings["features"] = with_kinds(schema)
    load: Callable[[str], Any] | None = getattr(module, "load", None)
    if load is None:
        return parts_of(read_examples(own, **settings)[0], federation, name)
    try:
        loaded = load(own)
    except BaseException as error:
        if is_stop(error):
            raise
        raise DataError(
            f"load({own!r}) fails, because {described(error)}", where="model.py", remedy="Correct it, or the path."
        ) from error
    if federation.data.is_table and (table := table_of(loaded, settings, f"load({own!r})")):
        loaded = Examples(table.x, table.y, columns=table.columns)
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
        if not whole.columns and first_labels(whole.y).dtype == object:
            whole = settled(whole, None, federation.class_names, where=name)
        indices = split(whole.count, shares, [federation.training.seed, seed_of(name)])
        return {part: whole.rows(i) for part, i in indices.items()}
    train, test = round(len(whole) * shares.train), round(len(whole) * shares.test)
    rest = whole.skip(train)
    return {"train": whole.take(train), "test": rest.take(test), "vote": rest.skip(test)}
