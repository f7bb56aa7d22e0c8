"""Runs a federation file or a compiled pipeline on this machine, up to a summary, a report and a model."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedpipe.commands.live import showing
from fedpipe.commands.opened import StoreGiven, file_of
from fedpipe.commands.results import fetch_results
from fedpipe.commands.shown import Result as Result
from fedpipe.compiled.compiler import compile_graph, rehearsed
from fedpipe.compiled.graph import Graph, check_arguments, read_graph, resolve
from fedpipe.engine import preflight
from fedpipe.engine.local import Engine, Event, Listener
from fedpipe.engine.workers import Workers, beside, start_server, warm_simulation
from fedpipe.errors import FedpipeError, InputError, PipelineError
from fedpipe.federation.federation import Federation
from fedpipe.federation.loading import PIPELINE
from fedpipe.federation.sources import Source, read_source
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.roster import check_roster, check_signers
from fedpipe.identity.signing import COORDINATOR, KEYS, find_key, keys_at_hand, public_key
from fedpipe.rounds.beginning import resumes
from fedpipe.rounds.history import is_settled
from fedpipe.rounds.plan import RunPlace, Settings
from fedpipe.rounds.pruning import entered
from fedpipe.sessions.board import check_deadline
from fedpipe.sessions.presence import awaited
from fedpipe.steps.shard import read as parse_federation_json
from fedpipe.steps.shard import run_name
from fedpipe.store import Store, check_folder, check_uri, chosen_uri, keys, open_store
from fedpipe.store.files import obstacle
from fedpipe.tracking.tracker import Tracker

DEFAULT_RUN = "run-1"
_SIMULATION = re.compile(r"simulation-(\d{1,9})", re.ASCII)


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
    source: Source,
    *,
    store: StoreGiven = None,
    out: str | Path | None = None,
    name: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    listener: Listener = lambda _: None,
    stages: Callable[[str], None] = lambda _: None,
    progress: bool | None = None,
    workers: int = 0,
    simulation: bool | Mapping[str, Any] = False,
    from_head: bool = False,
    keys: str | Path | None = None,
    **changes: Any,
) -> Result:
    """Runs a federation on this machine; a second run of the same name resumes.

    Args:
        source: a federation file, its content, or a compiled pipeline.
        store: a store to use instead of the federation's.
        out: folder for the results; `fedpipe-out/<federation>/<run>` by default.
        name: the run's name; by default `run-1`. For a simulation it is the next `simulation-N`, or the last one if
            that is unfinished.
        parameters: run-time parameters of the pipeline, such as `learning_rate`.
        listener: receives the events of the engine.
        stages: receives what happens before the engine starts.
        progress: prints a line for each round; by default a notebook shows the progress, and a script is quiet.
        workers: processes for the steps of each environment; one per core by default.
        simulation: rehearses the federation as `simulate` does; or keys of `simulation` with new values.
        from_head: lets a simulation continue from the model at HEAD.
        keys: folder of the key files of enrolled members; `keys` next to the federation file by default.
        changes: keys of the federation file with new values, such as `training={"rounds": 3}`.

    Raises:
        InputError: a mistake in the input; nothing was changed.
        StoreError: the store cannot be used; nothing was changed.
        FedpipeError: the run failed; finished steps stay in the store.

    >>> import fedpipe
    >>> result = fedpipe.run("demo/federation.yaml", training={"rounds": 2})
    >>> len(result.summary["rounds"]), result.metrics["accuracy"] > 0.5
    (2, True)
    """
    if not isinstance(simulation, bool):
        changes, simulation = {**changes, "simulation": simulation}, False
    with showing(progress, listener, stages) as (listener, stages):
        how = _How(store, out, name, parameters or {}, stages, workers, simulation, from_head, keys)
        return _run(source, how, listener, changes)


def simulate(
    source: Source, *, store: StoreGiven = None, out: str | Path | None = None, name: str | None = None,
    parameters: Mapping[str, Any] | None = None, listener: Listener = lambda _: None,
    stages: Callable[[str], None] = lambda _: None, progress: bool | None = None, from_head: bool = False,
    **changes: Any,
) -> Result:  # fmt: skip
    """Rehearses a federation with TensorFlow Federated on this machine, from fresh weights; HEAD stays where it is.

    Args:
        source: a federation file, or its content.
        store: a store to use instead of the federation's.
        out: folder for the results; `fedpipe-out/<federation>/<run>` by default.
        name: the run's name; by default the next `simulation-N`, or the last one if that is unfinished.
        parameters: run-time parameters of the pipeline, such as `learning_rate`.
        listener: receives the events of the engine.
        stages: receives what happens before the engine starts.
        progress: prints a line for each round; by default a notebook shows the progress, and a script is quiet.
        from_head: continues from the model at HEAD.
        changes: keys of the federation file with new values, such as `simulation={"clients": 100}`.

    Raises:
        FedpipeError: as of `run`.

    >>> import fedpipe
    >>> fedpipe.simulate("demo/federation.yaml", training={"round": 2})
    Traceback (most recent call last):
        ...
    fedpipe.errors.FederationError: ...training: unknown key 'round'. Did you mean 'rounds'?
    """
    with showing(progress, listener, stages) as (listener, stages):
        how = _How(store, out, name, parameters or {}, stages, 0, True, from_head, None)
        return _run(source, how, listener, changes)


class _How(NamedTuple):
    """The arguments of `run` that are not changes of the federation."""

    store: StoreGiven
    out: str | Path | None
    name: str | None
    parameters: Mapping[str, Any]
    stages: Callable[[str], None]
    workers: int
    simulation: bool
    from_head: bool
    keys: str | Path | None


def _run(source: Source, how: _How, listener: Listener, changes: Mapping[str, Any]) -> Result:
    how = how._replace(name=_chosen_name(how))
    name = run_name(how.name if how.name is not None else DEFAULT_RUN, "")
    if isinstance(how.store, Mapping):
        how, changes = how._replace(store=None), {**changes, "store": how.store}
    opened = _opened(source, changes, simulation=how.simulation)
    if how.simulation and isinstance(opened, Federation):
        opened = rehearsed(opened, from_head=how.from_head)
    with (
        keys_at_hand(file_of(source), how.keys),
        Workers(preload=opened.needs_tensorflow) as processes,  # those that the checks warm up serve the first steps
    ):
        call = _warmed(processes) if how.simulation else processes.call
        imports = opened.needs_tensorflow and not _has_ended(opened, how, name)
        if imports:
            start_server()  # its import takes longer than everything before the first step
        how.stages("compiling the pipeline")
        store = str(how.store) if how.store else None
        job = _prepared(source, opened, store, name, how.parameters, simulation=how.simulation)
        if how.simulation and how.name is None:
            name = job.arguments["run"] = _next_simulation(job)
        folder = Path(how.out) if how.out else Path("fedpipe-out") / job.graph.name / name
        if what := obstacle(folder):
            raise InputError(what, where=str(folder), remedy="Choose another folder for the results with --out.")
        framework = ", importing TensorFlow" if imports else ""
        how.stages(f"checking data, model and store of run {name}{framework}")
        if job.needs_tff and not how.simulation:
            call = _warmed(processes)
        workers = 0 if how.simulation else how.workers or os.cpu_count() or 1
        for subject, what in _check_first(job, name, call, workers):
            if what.startswith(preflight.NO_STATISTICS):
                how.stages(f"{subject} gives {what}")
        if job.federation is not None and (sites := awaited(job.federation)):
            how.stages(sites)
        _make(folder)
        how.stages(f"running {name}, logs in {folder / 'logs'}")
        tracker = _tracker(job)
        with tracker or contextlib.nullcontext():

            def listen(event: Event) -> None:
                if tracker and (event.what == "done" or event.moment is not None):
                    tracker.wake()
                listener(event)

            engine = Engine(
                job.graph, job.arguments, folder=folder, listener=listen, workers=how.workers, processes=processes
            )
            results = engine.run()
    reported = next((task for task in job.graph.tasks if task.step == "report"), None)
    if reported is None:  # a user's own pipeline
        return Result({}, folder)
    place = resolve(reported, job.arguments, results, "")["parameterValues"]["place"]
    return Result(fetch_results(RunPlace(**place), folder), folder, tracker.outcome if tracker else "")


def _has_ended(opened: Federation | Graph, how: _How, name: str) -> bool:
    """Returns whether a run's summary is in a folder, so that its steps find their work and need no framework."""
    if not isinstance(opened, Federation):
        return False
    given = how.parameters.get("store") or how.store
    with contextlib.suppress(FedpipeError):  # the checks report it
        uri = chosen_uri(str(given) if given else None, opened.store_uri)
        if uri.startswith("file://"):
            return open_store(uri).below(opened.name).size(keys.summary(name)) is not None
    return False


def _tracker(job: _Job) -> Tracker | None:
    """Returns what sends the run to a tracking server; None for a user's own pipeline."""
    uri, run = job.arguments.get("store"), job.arguments.get("run")
    if job.federation is None or uri is None or run is None:
        return None
    return Tracker(open_store(uri).below(job.federation.name), run, job.federation.tracking, uri=uri)


def _chosen_name(how: _How) -> str | None:
    """Returns the run's name, which may be given as a parameter instead. Raises InputError."""
    as_parameter = how.parameters.get("run")
    if how.name is not None and as_parameter not in (None, how.name):
        what = f"the run has two names, {how.name!r} and {as_parameter!r}"
        raise InputError(what, where="parameter run", remedy="Keep one.")
    return how.name if as_parameter is None else str(as_parameter)


def _next_simulation(job: _Job) -> str:
    """Returns the last `simulation-N` if it is unfinished and has these settings, otherwise the next one."""
    assert job.federation is not None
    store = open_store(job.arguments["store"]).below(job.federation.name)
    numbers = [int(found[1]) for run in store.below(keys.RUNS).folders() if (found := _SIMULATION.fullmatch(run))]
    last = f"simulation-{max(numbers, default=1)}"
    ended = store.size(keys.summary(last)) is not None
    if ended or not resumes(store, last, job.federation, job.code):
        return f"simulation-{max(numbers) + 1}"
    return last


def _warmed(processes: Workers) -> Callable[..., Any]:
    """Wraps `Workers.call`: one process imports TensorFlow Federated while others work."""
    warm = beside(processes.call, warm_simulation, environment="tff")

    def call(function: Callable[..., Any], *arguments: Any, environment: str = "keras") -> Any:
        if environment == "tff":
            warm.result()
        return processes.call(function, *arguments, environment=environment)

    return call


def _check_first(job: _Job, name: str, call: Callable[..., Any], workers: int) -> list[preflight.Checked]:
    """Finds mistakes before anything is written; a store that is a folder is created last. Returns the findings."""
    uri, findings = job.arguments.get("store"), list[preflight.Checked]()
    if uri is None:
        return findings
    store, is_folder = open_store(uri), uri.startswith("file://")
    if is_folder:
        check_folder(uri)
    else:
        store.probe()
    if job.federation is not None:
        preflight.check_reached(job.federation, uri)
        with entered(store.below(job.federation.name), name):
            pass  # before anything is trained; the step `shard` looks again
        exports = any(task.step == "export" for task in job.graph.tasks)
        _check_keys(store.below(job.federation.name), job.federation, exports=exports)
        if job.federation.secure and not any(task.step == "simulate" for task in job.graph.tasks):
            check_signers(job.federation, check_roster(store.below(job.federation.name), job.federation))
    if job.federation is not None and not is_settled(store.below(job.federation.name), name):
        check_deadline(store.below(job.federation.name), job.federation.quorum.deadline)
        data = job.arguments.get("data", "")
        findings = preflight.check(job.federation, job.code, data, uri, call, job.files, workers=workers)
    if is_folder:
        store.probe()
    return findings


def _check_keys(store: Store, federation: Federation, *, exports: bool) -> None:
    """Checks for the keys of enrolled members: without them, all would train in vain. Raises InputError."""
    enrolled = read_enrolled(store)
    names = [learner.name for learner in federation.pods]
    signers = [(name, name, "its updates", enrolled.learners.get(name)) for name in names]
    if exports:
        signers.append((COORDINATOR, "the coordinator", "the model", enrolled.coordinator))
    for name, who, what, enrolment in signers:
        if enrolment is None or enrolment.revoked is not None:
            continue
        key = find_key(name)
        if key is None or public_key(key) != enrolment.key:
            wrong = "its key is missing" if key is None else "its key is not the enrolled one"
            raise InputError(
                f"{who} is enrolled and must sign {what}, but {wrong}",
                remedy=f"Set {KEYS} to the folder of the keys, or use --keys; by default it is keys/ next to the file.",
            )


def _prepared(
    source: Source, opened: Federation | Graph, store: str | None, name: str, parameters: Mapping[str, Any], *,
    simulation: bool,
) -> _Job:  # fmt: skip
    graph, default_store = _graph_of(opened, simulation=simulation)
    arguments = dict(parameters)
    if "run" in graph.parameters:
        arguments["run"] = name
    if store is not None:
        if "store" not in graph.parameters:
            raise PipelineError("the pipeline has no parameter `store`", where=str(source))
        if arguments.get("store", store) != store:
            what = f"two stores are given, {store!r} and {arguments['store']!r}"
            raise InputError(what, where="parameter store", remedy="Keep one.")
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


def _opened(source: Source, changes: Mapping[str, Any], *, simulation: bool) -> Federation | Graph:
    """Reads a federation or the graph of a compiled pipeline."""
    if not isinstance(source, str | Path):
        return read_source(source, changes)
    path = Path(source)
    try:
        is_pipeline = PIPELINE.search(path.read_text()) is not None
    except (OSError, UnicodeDecodeError):
        is_pipeline = False  # read_source reports the mistake
    if not is_pipeline:
        return read_source(path, changes)
    if simulation:
        raise InputError("is a compiled pipeline", where=str(path), remedy="Run it with `fedpipe run`.")
    if changes:
        what = f"is a compiled pipeline, in which {next(iter(changes))!r} cannot be changed"
        raise InputError(what, where=str(path), remedy="Use `parameters`, or the federation file.")
    return read_graph(path)


def _graph_of(opened: Federation | Graph, *, simulation: bool) -> tuple[Graph, str]:
    """Returns the graph of a compiled pipeline, or of a federation file, which is compiled; and its own store."""
    if isinstance(opened, Graph):
        return opened, str(opened.parameters.get("store", ""))
    graph = compile_graph(opened, simulation=simulation, from_head=opened.training.start == "head")
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
