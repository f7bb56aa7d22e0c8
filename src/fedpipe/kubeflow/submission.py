"""Uploads a compiled federation to KFP as a version of its pipeline, and starts or schedules runs of it.

If a run cannot be started, everything created for it is removed; the error names the objects that remain.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedpipe.compiled.compiler import compile_pipeline, version_of
from fedpipe.compiled.graph import Graph, check_arguments, parse_graph
from fedpipe.errors import ClusterError, FedpipeError, InputError
from fedpipe.federation.federation import Federation
from fedpipe.federation.sources import Source, read_source
from fedpipe.kubeflow.clients import Kfp, cluster_errors, open_kfp, quiet
from fedpipe.kubeflow.doctor.diagnosis import check_startable
from fedpipe.kubeflow.where import Where
from fedpipe.rounds.plan import Settings
from fedpipe.steps.shard import run_name

_PAGE_SIZE = 100
_ID_FIELD = {"pipelines": "pipeline_id", "pipeline_versions": "pipeline_version_id", "experiments": "experiment_id"}


class Submitted(NamedTuple):
    """Describes a run that KFP accepted: its name, id and URL, and the version of its pipeline."""

    run: str
    run_id: str
    url: str
    version: str


class Schedule(NamedTuple):
    """Describes a recurring run."""

    name: str
    schedule_id: str
    cron: str
    enabled: bool
    version_id: str


class _Compiled(NamedTuple):
    """Holds a federation, its pipeline file, the given run-time parameters, and its store's URI as pods reach it."""

    federation: Federation
    text: bytes
    parameters: dict[str, Any]
    pod_uri: str


class _Uploaded(NamedTuple):
    """Identifies a version of the federation's pipeline on KFP, and the experiment for its runs."""

    pipeline_id: str
    version_id: str
    version: str
    experiment_id: str


def submit(
    source: Source, *, where: Where, run: str = "", experiment: str = "", pipeline_root: str = "",
    service_account: str = "", parameters: Mapping[str, Any] | None = None, force: bool = False,
) -> Submitted:  # fmt: skip
    """Starts a run of a federation on KFP.

    Args:
        source: the federation file, or its content.
        where: where KFP is.
        run: the run's name, in KFP and in the store; the current time by default.
        experiment: the experiment's name; the federation's by default.
        pipeline_root: where KFP stores artifacts, instead of its own setting.
        service_account: service account of the pods, instead of KFP's own.
        parameters: run-time parameters of the pipeline.
        force: skip the check that the pods can start.

    Raises:
        InputError: invalid arguments, pods that could never start, or a run of this name; nothing was created.
        ClusterError: KFP refuses or cannot be reached; created objects were removed, or are named.
    """
    if not run:
        run = str((parameters or {}).get("run", ""))
    name = run_name(run or time.strftime("run-%Y%m%d-%H%M%S", time.gmtime()), "")
    compiled = _compile(source, {**(parameters or {}), "run": name})
    if not force:
        check_startable(compiled.federation, compiled.pod_uri, where)
    kfp = open_kfp(where)
    if any(one.display_name == name for one in _list_all(kfp, kfp.client.list_runs, "runs", name, kfp.namespace)):
        raise InputError(f"run {name!r} exists already", remedy="Choose another name with --run.")
    with _undo_on_failure() as undo:
        uploaded = _upload(kfp, compiled, experiment, undo)
        with quiet(), cluster_errors(kfp.host):
            started = kfp.client.run_pipeline(
                uploaded.experiment_id, name, params=compiled.parameters, pipeline_id=uploaded.pipeline_id,
                version_id=uploaded.version_id, pipeline_root=pipeline_root or None,
                service_account=service_account or None,
            )  # fmt: skip
    return Submitted(name, started.run_id, kfp.url(f"runs/details/{started.run_id}"), uploaded.version)


def schedule(
    source: Source, cron: str, *, where: Where, name: str = "", experiment: str = "", pipeline_root: str = "",
    service_account: str = "", parameters: Mapping[str, Any] | None = None, force: bool = False,
) -> Schedule:  # fmt: skip
    """Schedules recurring runs: one at a time, each from HEAD, without catching up on missed times.

    The version of the pipeline is pinned to the current one, even after later uploads; each run gets its own name.

    Args:
        source: the federation file, or its content.
        cron: six fields: second, minute, hour, day of the month, month, day of the week.
        where: where KFP is.
        name: name of the schedule; the federation's by default.
        experiment: the experiment's name; the federation's by default.
        pipeline_root: where KFP stores artifacts, instead of its own setting.
        service_account: service account of the pods, instead of KFP's own.
        parameters: run-time parameters of the pipeline.
        force: skip the check that the pods can start.

    Raises:
        InputError: invalid arguments, pods that could never start, or a schedule of this name; nothing was created.
        ClusterError: KFP refuses or cannot be reached; created objects were removed, or are named.
    """
    check_cron(cron)
    if "run" in (parameters or {}):
        raise InputError(
            "`run` names a single run, but a schedule starts many",
            remedy="Leave it out: each run gets its own name.",
        )
    compiled = _compile(source, parameters or {})
    if not force:
        check_startable(compiled.federation, compiled.pod_uri, where)
    kfp, title = open_kfp(where), name or compiled.federation.name
    if any(one.name == title for one in _list_schedules(kfp)):
        raise InputError(
            f"schedule {title!r} exists already",
            remedy=f"Choose another name with --name, or run: fedpipe schedule delete {title}",
        )
    with _undo_on_failure() as undo:
        uploaded = _upload(kfp, compiled, experiment, undo)
        with quiet(), cluster_errors(kfp.host):
            created = kfp.client.create_recurring_run(
                uploaded.experiment_id, title, cron_expression=cron, max_concurrency=1, no_catchup=True,
                params=compiled.parameters, pipeline_id=uploaded.pipeline_id, version_id=uploaded.version_id,
                pipeline_root=pipeline_root or None, service_account=service_account or None,
            )  # fmt: skip
    return Schedule(title, created.recurring_run_id, cron, True, uploaded.version_id)


def check_cron(cron: str) -> None:
    """Checks a cron expression in KFP's form: six fields, seconds first. Raises InputError."""
    from croniter import CroniterError, croniter

    fields = cron.split()
    if not fields:
        raise InputError("--cron is missing", remedy='Pass it: fedpipe schedule --cron "0 0 3 * * 0" -f FILE')
    if len(fields) == 5:
        raise InputError(
            f"{cron!r} has 5 fields, but KFP expects 6: seconds come first",
            where="--cron",
            remedy=f'Write "0 {" ".join(fields)}".',
        )
    try:
        if len(fields) != 6:
            raise InputError(
                f"{cron!r} has {len(fields)} fields, not 6", where="--cron",
                remedy='Write second, minute, hour, day of the month, month, day of the week: "0 0 3 * * 0" is '
                "Sunday at 3.",
            )  # fmt: skip
        croniter(cron.replace("?", "*"), second_at_beginning=True)
    except CroniterError as error:
        reason = " ".join(str(error).split())
        remedy = 'Write six fields, such as "0 0 3 * * 0".'
        raise InputError(f"{cron!r} is not a valid schedule: {reason}", where="--cron", remedy=remedy) from error


def next_times(cron: str, count: int = 3) -> list[str]:
    """Returns the next times of a schedule, in UTC, KFP's default time zone."""
    from croniter import croniter

    times = croniter(cron.replace("?", "*"), time.time(), second_at_beginning=True)
    return [time.strftime("%a %Y-%m-%d %H:%M:%S UTC", time.gmtime(times.get_next())) for _ in range(count)]


def schedules(where: Where) -> list[Schedule]:
    """Lists all recurring runs. Raises ClusterError."""
    return _list_schedules(open_kfp(where))


def change_schedule(name: str, action: str, *, where: Where) -> None:
    """Pauses, resumes or deletes a schedule.

    Args:
        name: name of the schedule.
        action: `pause`, `resume` or `delete`.
        where: where KFP is.

    Raises:
        InputError: there is no schedule of this name, or several.
        ClusterError: KFP refuses or cannot be reached.
    """
    kfp = open_kfp(where)
    existing = _list_schedules(kfp)
    found = [one for one in existing if one.name == name]
    if len(found) != 1:
        names = ", ".join(sorted({one.name for one in existing})) or "none"
        why = f"there are {len(found)} schedules {name!r}" if found else f"there is no schedule {name!r}"
        raise InputError(why, remedy=f"Choose one of these schedules: {names}.")
    client = kfp.client
    actions = {
        "pause": client.disable_recurring_run, "resume": client.enable_recurring_run,
        "delete": client.delete_recurring_run,
    }  # fmt: skip
    with cluster_errors(kfp.host):
        actions[action](found[0].schedule_id)


def find_run(kfp: Kfp, name: str) -> Any | None:
    """Returns KFP's record of the latest run of this name, or of the run with this id. Raises ClusterError."""
    named = _list_all(kfp, kfp.client.list_runs, "runs", name, kfp.namespace)
    if named:
        return max(named, key=lambda run: str(run.created_at))
    runs = _list_all(kfp, kfp.client.list_runs, "runs", "", kfp.namespace)
    return next((run for run in runs if run.run_id == name), None)


def _compile(source: Source, parameters: Mapping[str, Any]) -> _Compiled:
    """Compiles a federation and checks it completely, before any request to KFP."""
    federation = read_source(source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compile_pipeline(federation, path)
        text = path.read_bytes()
    graph = parse_graph(next(iter(yaml.load_all(text, Loader=yaml.CSafeLoader))))
    checked = check_arguments(graph, parameters)
    Settings(**{name: checked[name] for name in Settings.__struct_fields__ if name in checked}).applied(federation)
    _check_reach(graph, federation, checked, str(source) if isinstance(source, str | Path) else "federation")
    return _Compiled(federation, text, {name: checked[name] for name in parameters}, str(checked["store"]))


def _check_reach(graph: Graph, federation: Federation, arguments: Mapping[str, Any], source: str) -> None:
    """Refuses a store or data that only this machine can reach. Raises InputError."""
    if not str(arguments.get("store", "")).startswith("s3://"):
        raise InputError(
            f"the pods cannot reach the store {arguments.get('store')!r}",
            where=source,
            remedy="Set `store` to an s3:// URI with the endpoint that pods use, or pass -p store=s3://...",
        )
    for what, uri in [("data", str(arguments.get("data", "")))] + [
        (f"data of {m.name}", m.data) for m in federation.learners
    ]:
        if uri and "://" not in uri:
            raise InputError(
                f"the pods cannot read the {what}: {uri!r} is a file on this machine",
                where=source,
                remedy="Upload it, for example to s3://bucket/file.npz, and use that URI.",
            )


class _Undo(contextlib.ExitStack):
    """Removes created objects, and records those that could not be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.remaining: list[str] = []

    def remove_later(self, what: str, remove: Callable[[], Any]) -> None:
        def undo() -> None:
            try:
                with cluster_errors(what):
                    remove()
            except ClusterError:
                self.remaining.append(what)

        self.callback(undo)


@contextlib.contextmanager
def _undo_on_failure() -> Iterator[_Undo]:
    """Removes the created objects if the body fails, and names those that remain in the error."""
    undo = _Undo()
    try:
        yield undo
        undo.pop_all()
    except BaseException as error:
        undo.close()
        if undo.remaining and isinstance(error, FedpipeError):
            remedy = f"{error.remedy or ''} Remove by hand: {', '.join(undo.remaining)}.".strip()
            raise type(error)(error.what, where=error.where, remedy=remedy) from error
        raise


def _upload(kfp: Kfp, compiled: _Compiled, experiment: str, undo: _Undo) -> _Uploaded:
    """Finds or creates the pipeline, the version with exactly this content, and the experiment."""
    client, name = kfp.client, compiled.federation.name
    version = version_of(compiled.text)
    with tempfile.TemporaryDirectory() as folder, quiet(), cluster_errors(kfp.host):
        path = Path(folder) / "pipeline.yaml"
        path.write_bytes(compiled.text)
        pipeline_id = _find_id(kfp, client.list_pipelines, "pipelines", name, kfp.namespace)
        if not pipeline_id:
            body = _kfp_api().V2beta1Pipeline(display_name=name, namespace=kfp.namespace)
            pipeline_id = client._pipelines_api.pipeline_service_create_pipeline(body).pipeline_id
            undo.remove_later(f"pipeline {name}", lambda: client.delete_pipeline(pipeline_id))

        def list_versions(**page: Any) -> Any:
            return client.list_pipeline_versions(pipeline_id, **page)

        version_id = _find_id(kfp, list_versions, "pipeline_versions", version)
        if not version_id:
            uploaded = client.upload_pipeline_version(str(path), version, pipeline_id=pipeline_id)
            version_id = uploaded.pipeline_version_id
            undo.remove_later(f"version {version}", lambda: client.delete_pipeline_version(pipeline_id, version_id))
        title = experiment or name
        experiment_id = _find_id(kfp, client.list_experiments, "experiments", title, kfp.namespace)
        if not experiment_id:
            experiment_id = client.create_experiment(title, namespace=kfp.namespace).experiment_id
            undo.remove_later(f"experiment {title}", lambda: client.delete_experiment(experiment_id))
    return _Uploaded(pipeline_id, version_id, version, experiment_id)


def _kfp_api() -> Any:
    import kfp_server_api

    return kfp_server_api


def _list_schedules(kfp: Kfp) -> list[Schedule]:
    found = []
    for one in _list_all(kfp, kfp.client.list_recurring_runs, "recurring_runs", "", kfp.namespace):
        cron = one.trigger.cron_schedule.cron if one.trigger and one.trigger.cron_schedule else ""
        reference = one.pipeline_version_reference
        version = (reference.pipeline_version_id if reference else "") or one.pipeline_version_id or ""
        found.append(Schedule(one.display_name, one.recurring_run_id, cron, one.status == "ENABLED", version))
    return found


def _find_id(kfp: Kfp, list_page: Callable[..., Any], kind: str, name: str, namespace: str | None = None) -> str:
    """Returns the id of the object with this name, or the empty string."""
    found = [one for one in _list_all(kfp, list_page, kind, name, namespace) if one.display_name == name]
    return str(getattr(found[0], _ID_FIELD[kind])) if found else ""


def _list_all(kfp: Kfp, list_page: Callable[..., Any], kind: str, name: str, namespace: str | None = None) -> list[Any]:
    """Lists the objects of all pages, optionally only those with a name."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    arguments: dict[str, Any] = {"filter": json.dumps({"predicates": [predicate]})} if name else {}
    if namespace:
        arguments["namespace"] = namespace
    found: list[Any] = []
    token = ""
    while True:
        with quiet(), cluster_errors(kfp.host):
            page = list_page(page_token=token, page_size=_PAGE_SIZE, **arguments)
        found += getattr(page, kind) or []
        token = page.next_page_token or ""
        if not token:
            return found
