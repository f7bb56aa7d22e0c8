"""Look at learners' own data, as far as this machine reaches it, before a run."""

from __future__ import annotations

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
    model, found = built_model(federation, code, schema=schema), []
    for position, learner in enumerate(federation.learners):
        if not learner.data:
            continue
        where, here = f"learners[{position}].data, {learner.name}", is_here(learner.data)
        try:
            found.append((learner.name, _checked(federation, learner.name, model, schema)))
        except FedpipeError as error:
            if here or isinstance(error, ModelError):
                place = f"{error.where}: " if error.where else ""
                what = f"the data cannot be used: {place}{error.what}"
                raise DataError(what, where=where, remedy=error.remedy) from error
            found.append((learner.name, f"not read: {error.what}"))
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
    return ", ".join(f"{size_of(part)} {kind}" for kind, part in parts.items())
