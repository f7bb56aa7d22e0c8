"""Look at learners' own data, as far as this machine reaches it, before a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import numpy as np

from fedpipe.data.examples import Examples, examples_joined, first_labels
from fedpipe.data.schema import Schema
from fedpipe.data.settling import settled
from fedpipe.errors import DataError, FedpipeError, ModelError
from fedpipe.federation.federation import Federation
from fedpipe.learners.check import built_model
from fedpipe.learners.framework import Model
from fedpipe.learners.parts import Part, batches_of, size_of
from fedpipe.learners.reading import own_parts
from fedpipe.learners.user_code import load_code
from fedpipe.store.objects import digest_of

_FIRST = 30


def few_of(part: Part) -> Examples:
    """Return the first examples of a part, and those with the smallest and the largest label if it is in memory."""
    first = next(iter(batches_of(part, _FIRST)))
    if not isinstance(part, Examples):
        return first
    flat = first_labels(part.y).reshape(part.count, -1)[:, 0]
    return examples_joined([part.rows([int(np.argmin(flat)), int(np.argmax(flat))]), first])


def find_examples(federation: Federation, module: ModuleType, schema: Schema | None = None) -> Examples | None:
    """Return a few examples of the first learner whose own data can be read here; None when there is none.

    Args:
        federation: the federation.
        module: the user's file, whose `load` may read the data.
        schema: of the federation's table, if it has one.
    """
    for learner in federation.learners:
        if learner.data:
            try:
                part = _read(federation, learner.name, module, schema).get("train")
            except FedpipeError:
                continue
            if part is not None and size_of(part):
                return few_of(part)
    return None


def _read(federation: Federation, name: str, module: ModuleType, schema: Schema | None) -> dict[str, Part]:
    parts = own_parts(federation, name, module, schema)
    return {
        kind: settled(part, schema, federation.class_names, where=name) if isinstance(part, Examples) else part
        for kind, part in parts.items()
    }


def check_own_parts(federation: Federation, code: str, schema: Schema | None = None) -> list[tuple[str, str]]:
    """Read the own data of each learner, and try the model on it.

    Args:
        federation: the federation.
        code: the text of the user's file.
        schema: of the federation's table, if it has one.

    Returns:
        Each learner, and the sizes of its parts or the reason why its data is not read here.

    Raises:
        DataError: a learner's data is on this machine and cannot be used; with the learner.
        ModelError: the model cannot be built.
    """
    model = built_model(federation, code, schema=schema)
    return _read_all(federation, lambda name: _checked(federation, name, model, schema))


def check_own_tables(federation: Federation, code: str, *, each: bool) -> None:
    """Read the own data of each learner of a table whose schema is not known.

    Args:
        federation: the federation.
        code: the text of the user's file.
        each: every learner's data must be usable, if it is here; otherwise those of one learner suffice.

    Raises:
        DataError: data on this machine cannot be used; with the learner.
    """
    data = code.encode()
    module = load_code(data, digest_of(data))
    _read_all(federation, lambda name: _sizes(own_parts(federation, name, module)), each=each)


def _read_all(federation: Federation, read: Callable[[str], str], *, each: bool = True) -> list[tuple[str, str]]:
    found, flaws, usable = [], [], False
    for position, learner in enumerate(federation.learners):
        if not learner.data:
            continue
        where, here = f"learners[{position}].data, {learner.name}", is_here(learner.data)
        try:
            found.append((learner.name, read(learner.name)))
            usable = True
        except FedpipeError as error:
            usable = usable or not (here or isinstance(error, ModelError))
            if here or isinstance(error, ModelError):
                place = f"{error.where}: " if error.where else ""
                what = f"the data cannot be used: {place}{error.what}"
                flaws.append(DataError(what, where=where, remedy=error.remedy))
                flaws[-1].__cause__ = error
            found.append((learner.name, f"not read: {error.what}"))
        if flaws and each:
            raise flaws[0]
    if flaws and not usable:
        raise flaws[0]
    return found


def is_here(uri: str) -> bool:
    """Return whether data would lie on this machine: it is a path, in a folder that exists."""
    parts = urlsplit(uri)
    return parts.scheme in ("", "file") and Path(unquote(parts.path) if parts.scheme else uri).parent.is_dir()


def _checked(federation: Federation, name: str, model: Model, schema: Schema | None) -> str:
    parts = _read(federation, name, model.module, schema)
    batch, train = federation.training.batch_size, parts.get("train")
    count = 0 if train is None else size_of(train)
    if train is None or count < batch:
        raise DataError(
            f"there are {count} train examples, fewer than a batch of {batch}",
            remedy="Lower training.batch_size, or give the learner more data.",
        )
    few = few_of(train)
    model.check_examples(few.x, few.y, few.weight)
    return _sizes(parts)


def _sizes(parts: Mapping[str, Part]) -> str:
    return ", ".join(f"{size_of(part)} {kind}" for kind, part in parts.items())
