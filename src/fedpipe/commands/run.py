"""Runs a federation file or a compiled pipeline on this machine, up to a summary, a report and a model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedpipe.compiled.compiler import compile_pipeline
from fedpipe.compiled.graph import Graph, check_arguments, parse_graph, read_graph, resolve
from fedpipe.engine import preflight
from fedpipe.engine.local import Engine, Listener
from fedpipe.engine.workers import Workers, beside, start_server, warm_simulation
from fedpipe.errors import InputError, PipelineError
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import read_federation
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.signing import COORDINATOR, KEYS, find_key
from fedpipe.rounds.history import read_record
from fedpipe.rounds.plan import RunPlace, Settings
from fedpipe.rounds.pruning import entered
from fedpipe.sessions.board import check_deadline
from fedpipe.steps.shard import read as parse_federation_json
from fedpipe.steps.shard import run_name
from fedpipe.store import Store, check_uri, chosen_uri, keys, open_store

DEFAULT_RUN = "run-1"


class Result(NamedTuple):
    """A finished run: `summary.json` as a dictionary, and the folder with it, `report.html` and `model.onnx`."""

    summary: dict[str, Any]
    folder: Path


class _Job(NamedTuple):
    graph: Graph
    arguments: dict[str, Any]
    federation: Federation | None
    code: str
    files: preflight.SimulationFiles | None

    @property
    def needs_tff(self) -> bool:
        """Whether a step needs TensorFlow Federated, so that it is imported at once."""
        return any(
            task.environment == "tff" and task.step in ("simulate", "aggregate", "coordinate")
            for task in self.graph.tasks
        )


def run(
    source: str | Path,
    *,
    store: str | None = None,
    out: str | Path | None = None,
    name: str = DEFAULT_RUN,
    parameters: Mapping[str, Any] | None = None,
    listener: Listener = lambda _: None,
    workers: int = 0,
    simulation: bool = False,
) -> Result:
    """Runs a federation on this machine; a second run of the same name resumes.

    Args:
        source: a federation file or a compiled pipeline.
        store: URI of a store to use instead of the federation's.
        out: folder for the results; `fedpipe-out/<federation>/<run>` by default.
        name: the run's name.
        parameters: run-time parameters of the pipeline, such as `learning_rate`.
        listener: receives the events of the engine.
        workers: processes for the steps of each environment; one per core by default.
        simulation: rehearses a federation file with TensorFlow Federated.

    Raises:
        InputError: a mistake in the input; nothing was changed.
        StoreError: the store cannot be used; nothing was changed.
        FedpipeError: the run failed; finished steps stay in the store.
    """
    name = run_name(name, "")
    opened = _opened(Path(source), simulation=simulation)
    with Workers(preload=opened.needs_tensorflow) as processes:  # those that the checks warm up serve the first steps
        call = _warmed(processes) if simulation else processes.call
        if opened.needs_tensorflow:
            start_server()  # its import takes longer than everything before the first step
        job = _prepared(source, opened, store, name, parameters or {}, simulation=simulation)
        folder = Path(out) if out else Path("fedpipe-out") / job.graph.name / name
        _check_first(job, name, _warmed(processes) if job.needs_tff and not simulation else call)
        _make(folder)
        engine = Engine(
            job.graph, job.arguments, folder=folder, listener=listener, workers=workers, processes=processes
        )
        results = engine.run()
    reported = next((task for task in job.graph.tasks if task.step == "report"), None)
    if reported is None:  # a user's own pipeline
        return Result({}, folder)
    place = resolve(reported, job.arguments, results, "")["parameterValues"]["place"]
    return Result(fetch_results(RunPlace(**place), folder), folder)


def _warmed(processes: Workers) -> Callable[..., Any]:
    """Wraps `Workers.call`: one process imports TensorFlow Federated while others work."""
    warm = beside(processes.call, warm_simulation, environment="tff")

    def call(function: Callable[..., Any], *arguments: Any, environment: str = "keras") -> Any:
        if environment == "tff":
            warm.result()
        return processes.call(function, *arguments, environment=environment)

    return call


def _check_first(job: _Job, name: str, call: Callable[..., Any]) -> None:
    """Finds mistakes before anything is written; a store that is a folder is created last."""
    uri = job.arguments.get("store")
    if uri is None:
        return
    store, is_folder = open_store(uri), uri.startswith("file://")
    if not is_folder:
        store.probe()
    if job.federation is not None:
        with entered(store.below(job.federation.name), name):
            pass  # before anything is trained; the step `shard` looks again
        exports = any(task.step == "export" for task in job.graph.tasks)
        _check_keys(store.below(job.federation.name), job.federation, exports=exports)
    if job.federation is not None and read_record(store.below(job.federation.name), name, 0) is None:
        check_deadline(store.below(job.federation.name), job.federation.quorum.deadline)
        preflight.check(job.federation, job.code, job.arguments.get("data", ""), uri, call, job.files)
    if is_folder:
        store.probe()


def _check_keys(store: Store, federation: Federation, *, exports: bool) -> None:
    """Checks for the keys of enrolled members: without them, all would train in vain. Raises InputError."""
    enrolled = read_enrolled(store)
    names = [learner.name for learner in federation.learners]
    signers = [(name, name, "its updates", enrolled.learners.get(name)) for name in names]
    if exports:
        signers.append((COORDINATOR, "the coordinator", "the model", enrolled.coordinator))
    for name, who, what, enrolment in signers:
        if enrolment is not None and enrolment.revoked is None and find_key(name) is None:
            raise InputError(
                f"{who} is enrolled and must sign {what}, but its key is missing",
                remedy=f"Set {KEYS} to the folder of the keys, such as keys/ next to the federation file.",
            )


def _prepared(
    source: str | Path, opened: Federation | Graph, store: str | None, name: str, parameters: Mapping[str, Any], *,
    simulation: bool,
) -> _Job:  # fmt: skip
    graph, default_store = _graph_of(opened, simulation=simulation)
    arguments = dict(parameters)
    if "run" in graph.parameters:
        arguments["run"] = name
    if store is not None:
        if "store" not in graph.parameters:
            raise PipelineError("the pipeline has no parameter `store`", where=str(source))
        arguments["store"] = chosen_uri(store, default_store)
    checked = check_arguments(graph, arguments)
    if "store" in checked:
        checked["store"] = check_uri(checked["store"])
    text = _constant(graph, "federation")
    federation = parse_federation_json(text) if text else None
    if federation is not None:
        settings = {k: checked[k] for k in Settings.__struct_fields__ if k in checked}
        federation = Settings(**settings).applied(federation)
    files = None
    if any(task.step == "simulate" for task in graph.tasks):
        files = preflight.SimulationFiles(_constant(graph, "process"), _constant(graph, "tff_model"))
    return _Job(graph, checked, federation, _constant(graph, "code"), files)


def _opened(source: Path, *, simulation: bool) -> Federation | Graph:
    """Reads a federation file or the graph of a compiled pipeline."""
    try:
        head = next(iter(yaml.load_all(source.read_text(), Loader=yaml.CSafeLoader)), None)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        head = None  # read_federation reports the mistake
    if not (isinstance(head, dict) and "pipelineInfo" in head):
        return read_federation(source)
    if simulation:
        raise InputError("is a compiled pipeline", where=str(source), remedy="Run it with `fedpipe run`.")
    return read_graph(source)


def _graph_of(opened: Federation | Graph, *, simulation: bool) -> tuple[Graph, str]:
    """Returns the graph of a compiled pipeline, or of a federation file, which is compiled; and its own store."""
    if isinstance(opened, Graph):
        return opened, str(opened.parameters.get("store", ""))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compile_pipeline(opened, path, simulation=simulation)
        graph = parse_graph(next(iter(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader))))
    return graph, opened.store_uri


def _constant(graph: Graph, name: str) -> str:
    """Returns a constant input of the pipeline's steps, such as the federation as text."""
    for task in graph.tasks:
        constant = task.inputs.get(name, {}).get("runtimeValue", {}).get("constant")
        if task.step and isinstance(constant, str):
            return constant
    return ""


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder cannot be created: {error.strerror}", where=str(folder)) from error


def fetch_results(place: RunPlace, folder: Path) -> dict[str, Any]:
    """Copies a run's summary, report and model from the store to a folder, and returns the summary."""
    store = place.open()
    summary: dict[str, Any] = json.loads(store.read(keys.summary(place.run)).data)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (folder / "report.html").write_bytes(store.read(keys.report(place.run)).data)
    if summary["onnx"]:
        store.download(summary["onnx"]["path"], folder / "model.onnx")
    return summary
