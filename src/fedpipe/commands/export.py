"""Exports the shared model as a verified ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from fedpipe.commands.opened import StoreGiven, file_of, find_run, known_runs, settle
from fedpipe.engine.workers import Workers
from fedpipe.errors import InputError, NotFoundError
from fedpipe.federation.federation import Federation
from fedpipe.federation.sources import Source
from fedpipe.learners.cut import holders
from fedpipe.rounds.evaluation import Evaluation
from fedpipe.rounds.history import history, is_trained, read_record, trained_head
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan, current_plan
from fedpipe.store import Store, keys, open_store
from fedpipe.store.files import write_whole
from fedpipe.store.objects import find
from fedpipe.suggestion import suggestion


def export(
    source: Source, output: str | Path = "model.onnx", *, store: StoreGiven = None, name: str | None = None,
    learner: str | None = None, part: str | None = None, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """Writes the shared model as a verified ONNX file, with the file's current settings of the export.

    Args:
        source: the federation file, or its content.
        output: an .onnx file; it is written only after it is verified.
        store: a store to use instead of the federation's.
        name: the run whose last model is exported; the run at HEAD by default.
        learner: whose personal model is exported (docs/personal.md); the shared model by default.
        part: of a cut network, `bottom-<party>` or `top`, which is exported alone (docs/split-learning.md).
        changes: keys of the federation file with new values.

    Returns:
        The digest, opset, largest difference and run, as in the model's origin.

    Raises:
        InputError: there is no such learner or part.
        NotFoundError: there is no such run, nothing is trained, or the learner has no personal model.
        ExportError: the model differs from the trained one; nothing is written.

    >>> import fedpipe
    >>> result = fedpipe.run("demo/federation.yaml", name="run-1")
    >>> fedpipe.export("demo/federation.yaml", "model.onnx")["run"]
    'run-1'
    """
    federation, uri = settle(source, store, changes)
    names = [known.name for known in federation.learners]
    if learner is not None and learner not in names:
        raise InputError(f"there is no learner {learner!r}", where="learner", remedy=suggestion(learner, names))
    if part is not None:
        _check_part(federation, part)
    opened = open_store(uri).below(federation.name)
    record = _last(opened, file_of(source), name)
    plan = current_plan(opened, record.run, record.plan)
    plan = replace(plan, federation=replace(plan.federation, export=federation.export))
    with Workers(preload=federation.needs_tensorflow) as processes:
        data, origin = processes.call(
            _verified,
            uri,
            plan,
            _chosen(opened, plan, record),
            learner or "",
            part or "",
            environment=federation.environment_of("export"),
        )
    write_whole(Path(output), data)
    return dict(origin)


def _last(store: Store, source: Path, name: str | None) -> Record:
    """Returns the last record of a run, or that at HEAD. Raises NotFoundError when nothing is trained."""
    if name is None:
        head = trained_head(store)
        record = read_record(store, head.run, head.round) if head else None
        if record is not None:
            return record
        raise NotFoundError(
            "there is no trained model",
            where=store.uri,
            remedy=f"Run `fedpipe run {source}` first. For a simulation, name it with --run. {known_runs(store)}",
        )
    find_run(store, name)
    records = history(store, name)
    if not is_trained(records):
        raise NotFoundError(
            f"run {name!r} has trained nothing: no round of it was accepted",
            where=store.uri,
            remedy=f"Run `fedpipe run {source} --run {name}` to resume it, or name another run. {known_runs(store)}",
        )
    return records[-1]


def _chosen(store: Store, plan: Plan, record: Record) -> str:
    """Returns the digest of the model that the run chose, or of its last one."""
    exported, found = plan.federation.exported, find(store, keys.evaluation(record.run), Evaluation)
    best = exported is not None and exported.choose == "best" and found is not None and found.last == record.weights
    return found.weights if found and best else record.weights


def _check_part(federation: Federation, part: str) -> None:
    """Check the name of a part of a cut network. Raises InputError."""
    if not federation.split:
        raise InputError(
            "only a cut network has parts", where="part", remedy="Leave it out, or see docs/split-learning.md."
        )
    if part not in holders(federation):
        known = suggestion(part, list(holders(federation)))
        raise InputError(f"the network has no part {part!r}", where="part", remedy=known)


def _verified(uri: str, plan: Plan, weights: str, learner: str, part: str) -> tuple[bytes, dict[str, Any]]:
    from fedpipe.registry.export import convert_and_verify

    data, origin = convert_and_verify(open_store(uri).below(plan.federation.name), plan, weights, learner, part)
    return data, msgspec.to_builtins(origin)
