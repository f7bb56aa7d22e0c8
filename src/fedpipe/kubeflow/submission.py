"""Runs and schedules on KFP: a compiled federation as a version of its pipeline, and what is started from it.

What is created for a run that cannot be started is removed again; what cannot be removed is named.
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
from fedpipe.federation.file import read_federation
from fedpipe.kubeflow.clients import Kfp, mapped, open_kfp, quiet
from fedpipe.kubeflow.doctor.diagnosis import check_startable
from fedpipe.kubeflow.where import Where
from fedpipe.steps.shard import run_name

_PAGE = 100
_ID = {"pipelines": "pipeline_id", "pipeline_versions": "pipeline_version_id", "experiments": "experiment_id"}


class Submitted(NamedTuple):
    """A run that KFP has taken: its name, its id and page, and the version of the pipeline that it runs."""

    run: str
    run_id: str
    url: str
    version: str


class Schedule(NamedTuple):
    """A recurring run."""

    name: str
    schedule_id: str
    cron: str
    enabled: bool
    version_id: str


class _Compiled(NamedTuple):
    """A federation, its pipeline file, the run-time parameters that were given, and its store as pods reach it."""

    federation: Federation
    text: bytes
    parameters: dict[str, Any]
    store: str


class _Uploaded(NamedTuple):
    """A version of the federation's pipeline on KFP, and the experiment for its runs."""

    pipeline_id: str
    version_id: str
    version: str
    experiment_id: str


def submit(
    source: str | Path, *, where: Where, run: str = "", experiment: str = "", pipeline_root: str = "",
    service_account: str = "", parameters: Mapping[str, Any] | None = None, force: bool = False,
) -> Submitted:  # fmt: skip
    """Starts a run of a federation on KFP.

    Args:
        source: the federation file.
        where: where KFP is.
        run: the run's name, in KFP and in the store; from the time of now by default.
        experiment: the experiment's name; the federation's by default.
        pipeline_root: where KFP keeps artifacts, instead of its own setting.
        service_account: the pods run as this one, instead of KFP's own.
        parameters: run-time parameters of the pipeline.
        force: does not ask Kubernetes whether the pods could ever start.

    Raises:
        InputError: a mistake in what was given, pods that could never start, or a run of this name; nothing was
            created.
        ClusterError: KFP refuses or cannot be reached; what was created was removed or is named.
    """
    name = run_name(run or time.strftime("run-%Y%m%d-%H%M%S", time.gmtime()), "")
    federation, text, given, uri = _compiled(source, {**(parameters or {}), "run": name})
    if not force:
        check_startable(federation, uri, where)
    kfp = open_kfp(where)
    if any(one.display_name == name for one in _all(kfp, kfp.client.list_runs, "runs", name, kfp.namespace)):
        raise InputError(f"there is a run {name!r} already", remedy="Choose another name with --run.")
    with _undone() as undo:
        uploaded = _upload(kfp, federation.name, text, experiment, undo)
        with quiet(), mapped(kfp.host):
            started = kfp.client.run_pipeline(
                uploaded.experiment_id, name, params=given, pipeline_id=uploaded.pipeline_id,
                version_id=uploaded.version_id, pipeline_root=pipeline_root or None,
                service_account=service_account or None,
            )  # fmt: skip
    return Submitted(name, started.run_id, kfp.url(f"runs/details/{started.run_id}"), uploaded.version)


def schedule(
    source: str | Path, cron: str, *, where: Where, name: str = "", experiment: str = "", pipeline_root: str = "",
    service_account: str = "", parameters: Mapping[str, Any] | None = None, force: bool = False,
) -> Schedule:  # fmt: skip
    """Starts a run again and again: one at a time, none for times that were missed, each from HEAD.

    The version of the pipeline stays the one of now, whatever is uploaded later; each run has a name of its own.

    Args:
        source: the federation file.
        cron: six fields: second, minute, hour, day of the month, month, day of the week.
        where: where KFP is.
        name: of the schedule; the federation's by default.
        experiment: the experiment's name; the federation's by default.
        pipeline_root: where KFP keeps artifacts, instead of its own setting.
        service_account: the pods run as this one, instead of KFP's own.
        parameters: run-time parameters of the pipeline.
        force: does not ask Kubernetes whether the pods could ever start.

    Raises:
        InputError: a mistake in what was given, pods that could never start, or a schedule of this name; nothing
            was created.
        ClusterError: KFP refuses or cannot be reached; what was created was removed or is named.
    """
    check_cron(cron)
    if "run" in (parameters or {}):
        raise InputError("`run` names one run, and a schedule makes many", remedy="Leave it out: runs name themselves.")
    federation, text, given, uri = _compiled(source, parameters or {})
    if not force:
        check_startable(federation, uri, where)
    kfp, title = open_kfp(where), name or federation.name
    if any(one.name == title for one in _schedules(kfp)):
        raise InputError(
            f"there is a schedule {title!r} already",
            remedy=f"Choose another with --name, or: fedpipe schedule delete {title}",
        )
    with _undone() as undo:
        uploaded = _upload(kfp, federation.name, text, experiment, undo)
        with quiet(), mapped(kfp.host):
            made = kfp.client.create_recurring_run(
                uploaded.experiment_id, title, cron_expression=cron, max_concurrency=1, no_catchup=True,
                params=given, pipeline_id=uploaded.pipeline_id, version_id=uploaded.version_id,
                pipeline_root=pipeline_root or None, service_account=service_account or None,
            )  # fmt: skip
    return Schedule(title, made.recurring_run_id, cron, True, uploaded.version_id)


def check_cron(cron: str) -> None:
    """Checks a schedule as KFP reads it: six fields, seconds first. Raises InputError."""
    from croniter import CroniterError, croniter

    fields = cron.split()
    if not fields:
        raise InputError("--cron is missing", remedy='Such as: fedpipe schedule --cron "0 0 3 * * 0" -f FILE')
    if len(fields) == 5:
        raise InputError(
            f"{cron!r} has 5 fields, and KFP reads 6: seconds come first",
            where="--cron",
            remedy=f'Write "0 {" ".join(fields)}".',
        )
    try:
        if len(fields) != 6:
            raise InputError(
                f"{cron!r} has {len(fields)} fields, not 6", where="--cron",
                remedy='Second, minute, hour, day of the month, month, day of the week: "0 0 3 * * 0" is Sunday at 3.',
            )  # fmt: skip
        croniter(cron.replace("?", "*"), second_at_beginning=True)
    except CroniterError as error:
        raise InputError(f"{cron!r} is no schedule: {' '.join(str(error).split())}", where="--cron") from error


def next_times(cron: str, count: int = 3) -> list[str]:
    """When a schedule comes next, in UTC as KFP reckons by default."""
    from croniter import croniter

    times = croniter(cron.replace("?", "*"), time.time(), second_at_beginning=True)
    return [time.strftime("%a %Y-%m-%d %H:%M:%S UTC", time.gmtime(times.get_next())) for _ in range(count)]


def schedules(where: Where) -> list[Schedule]:
    """All recurring runs. Raises ClusterError."""
    return _schedules(open_kfp(where))


def change_schedule(name: str, act: str, *, where: Where) -> None:
    """Pauses, resumes or deletes a schedule.

    Args:
        name: of the schedule.
        act: `pause`, `resume` or `delete`.
        where: where KFP is.

    Raises:
        InputError: there is no schedule of this name, or several.
        ClusterError: KFP refuses or cannot be reached.
    """
    kfp = open_kfp(where)
    known = _schedules(kfp)
    found = [one for one in known if one.name == name]
    if len(found) != 1:
        names = ", ".join(sorted({one.name for one in known})) or "none"
        why = f"there are {len(found)} schedules {name!r}" if found else f"there is no schedule {name!r}"
        raise InputError(why, remedy=f"Schedules: {names}.")
    client = kfp.client
    acts = {
        "pause": client.disable_recurring_run, "resume": client.enable_recurring_run,
        "delete": client.delete_recurring_run,
    }  # fmt: skip
    with mapped(kfp.host):
        acts[act](found[0].schedule_id)


def find_run(kfp: Kfp, name: str) -> Any | None:
    """KFP's own record of the latest run of this name, or of this id. Raises ClusterError."""
    found = _all(kfp, kfp.client.list_runs, "runs", name, kfp.namespace)
    if found:
        return max(found, key=lambda run: str(run.created_at))
    return next((run for run in _all(kfp, kfp.client.list_runs, "runs", "", kfp.namespace) if run.run_id == name), None)


def _compiled(source: str | Path, parameters: Mapping[str, Any]) -> _Compiled:
    """A federation that is ready for KFP: all is checked before KFP is asked anything."""
    federation = read_federation(Path(source))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compile_pipeline(federation, path)
        text = path.read_bytes()
    graph = parse_graph(next(iter(yaml.load_all(text, Loader=yaml.CSafeLoader))))
    checked = check_arguments(graph, parameters)
    _check_reach(graph, federation, checked, str(source))
    return _Compiled(federation, text, {name: checked[name] for name in parameters}, str(checked["store"]))


def _check_reach(graph: Graph, federation: Federation, arguments: Mapping[str, Any], source: str) -> None:
    """What only this machine has is of no use to a pod. Raises InputError."""
    if not str(arguments.get("store", "")).startswith("s3://"):
        raise InputError(
            f"the pods cannot reach the store {arguments.get('store')!r}",
            where=source,
            remedy="Set `store` to an s3:// URI with the endpoint that pods use, or give -p store=s3://...",
        )
    for what, uri in [("data", str(arguments.get("data", "")))] + [
        (f"data of {m.name}", m.data) for m in federation.learners
    ]:
        if uri and "://" not in uri:
            raise InputError(
                f"the pods cannot read the {what}: {uri!r} is a file of this machine",
                where=source,
                remedy="Put it where they can, such as s3://bucket/file.npz, and name that.",
            )


class _Undo(contextlib.ExitStack):
    """Takes back what was created, and remembers what could not be taken back."""

    def __init__(self) -> None:
        super().__init__()
        self.left: list[str] = []

    def later(self, what: str, act: Callable[[], Any]) -> None:
        def undo() -> None:
            try:
                with mapped(what):
                    act()
            except ClusterError:
                self.left.append(what)

        self.callback(undo)


@contextlib.contextmanager
def _undone() -> Iterator[_Undo]:
    """Undoes what was created when what follows fails."""
    undo = _Undo()
    try:
        yield undo
        undo.pop_all()
    except BaseException as error:
        undo.close()
        if undo.left and isinstance(error, FedpipeError):
            left = f"Created, and could not be removed: {', '.join(undo.left)}."
            raise type(error)(error.what, where=error.where, remedy=f"{error.remedy or ''} {left}".strip()) from error
        raise


def _upload(kfp: Kfp, name: str, text: bytes, experiment: str, undo: _Undo) -> _Uploaded:
    """The pipeline, the version with exactly this content, and the experiment: found, or made."""
    client = kfp.client
    version = version_of(text)
    with tempfile.TemporaryDirectory() as folder, quiet(), mapped(kfp.host):
        path = Path(folder) / "pipeline.yaml"
        path.write_bytes(text)
        pipeline_id = _find(kfp, client.list_pipelines, "pipelines", name, kfp.namespace)
        if not pipeline_id:
            body = _kfp_api().V2beta1Pipeline(display_name=name, namespace=kfp.namespace)
            pipeline_id = client._pipelines_api.pipeline_service_create_pipeline(body).pipeline_id
            undo.later(f"pipeline {name}", lambda: client.delete_pipeline(pipeline_id))

        def versions(**page: Any) -> Any:
            return client.list_pipeline_versions(pipeline_id, **page)

        version_id = _find(kfp, versions, "pipeline_versions", version)
        if not version_id:
            made = client.upload_pipeline_version(str(path), version, pipeline_id=pipeline_id)
            version_id = made.pipeline_version_id
            undo.later(f"version {version}", lambda: client.delete_pipeline_version(pipeline_id, version_id))
        title = experiment or name
        experiment_id = _find(kfp, client.list_experiments, "experiments", title, kfp.namespace)
        if not experiment_id:
            experiment_id = client.create_experiment(title, namespace=kfp.namespace).experiment_id
            undo.later(f"experiment {title}", lambda: client.delete_experiment(experiment_id))
    return _Uploaded(pipeline_id, version_id, version, experiment_id)


def _kfp_api() -> Any:
    import kfp_server_api

    return kfp_server_api


def _schedules(kfp: Kfp) -> list[Schedule]:
    found = []
    for one in _all(kfp, kfp.client.list_recurring_runs, "recurring_runs", "", kfp.namespace):
        cron = one.trigger.cron_schedule.cron if one.trigger and one.trigger.cron_schedule else ""
        reference = one.pipeline_version_reference
        version = (reference.pipeline_version_id if reference else "") or one.pipeline_version_id or ""
        found.append(Schedule(one.display_name, one.recurring_run_id, cron, one.status == "ENABLED", version))
    return found


def _find(kfp: Kfp, lister: Callable[..., Any], kind: str, name: str, namespace: str | None = None) -> str:
    """The id of the one with this name; empty without one."""
    found = [one for one in _all(kfp, lister, kind, name, namespace) if one.display_name == name]
    return str(getattr(found[0], _ID[kind])) if found else ""


def _all(kfp: Kfp, lister: Callable[..., Any], kind: str, name: str, namespace: str | None = None) -> list[Any]:
    """All pages of a list, of one name when it is given."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    given: dict[str, Any] = {"filter": json.dumps({"predicates": [predicate]})} if name else {}
    if namespace:
        given["namespace"] = namespace
    found: list[Any] = []
    token = ""
    while True:
        with quiet(), mapped(kfp.host):
            page = lister(page_token=token, page_size=_PAGE, **given)
        found += getattr(page, kind) or []
        token = page.next_page_token or ""
        if not token:
            return found
