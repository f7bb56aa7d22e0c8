"""Exports the shared model as a verified ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fedpipe.commands.opened import StoreGiven, settle
from fedpipe.engine.workers import Workers
from fedpipe.errors import NotFoundError
from fedpipe.federation.sources import Source
from fedpipe.rounds.history import history, read_head, read_record
from fedpipe.rounds.plan import read_plan
from fedpipe.store import open_store
from fedpipe.store.files import write_whole


def export(
    source: Source, output: str | Path = "model.onnx", *, store: StoreGiven = None, name: str | None = None,
    **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """Writes the shared model as a verified ONNX file.

    Args:
        source: the federation file, or its content.
        output: an .onnx file; it is written only after it is verified.
        store: a store to use instead of the federation's.
        name: the run whose last model is exported; the run at HEAD by default.
        changes: keys of the federation file with new values.

    Returns:
        The digest, opset, largest difference and run, as in the model's origin.

    Raises:
        NotFoundError: there is no trained model.
        ExportError: the model differs from the trained one; nothing is written.

    >>> import fedpipe
    >>> result = fedpipe.run("demo/federation.yaml", name="run-1")
    >>> fedpipe.export("demo/federation.yaml", "model.onnx")["run"]
    'run-1'
    """
    federation, uri = settle(source, store, changes)
    opened = open_store(uri).below(federation.name)
    if name is None:
        head = read_head(opened)
        record = read_record(opened, head[0].run, head[0].round) if head else None
    else:
        record = next(reversed(history(opened, name)), None)
    if record is None:
        file = source if isinstance(source, str | Path) else "FILE"
        raise NotFoundError("there is no trained model", where=opened.uri, remedy=f"Run `fedpipe run {file}` first.")
    with Workers(preload=federation.needs_tensorflow) as processes:
        data, origin = processes.call(_verified, uri, federation.name, record.plan, record.weights)
    write_whole(Path(output), data)
    return dict(origin)


def _verified(uri: str, federation: str, plan: str, weights: str) -> tuple[bytes, dict[str, Any]]:
    from fedpipe.registry.export import convert_and_verify

    store = open_store(uri).below(federation)
    data, origin = convert_and_verify(store, read_plan(store, plan), weights)
    return data, msgspec.to_builtins(origin)
