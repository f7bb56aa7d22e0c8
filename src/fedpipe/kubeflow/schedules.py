"""Schedules recurring runs of a federation on KFP, and pauses, resumes and deletes them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from fedpipe.errors import ClusterError, InputError, one_line
from fedpipe.federation.sources import Source
from fedpipe.kubeflow.clients import Kfp, cluster_errors, open_kfp, quiet
from fedpipe.kubeflow.doctor.diagnosis import check_startable
from fedpipe.kubeflow.submission import ENDED
from fedpipe.kubeflow.upload import compile_source, list_all, undo_on_failure, upload
from fedpipe.kubeflow.where import Where
from fedpipe.suggestion import suggestion

_POLL_SECONDS = 2.0


class Schedule(NamedTuple):
    """Describes a recurring run."""

    name: str
    schedule_id: str
    cron: str
    enabled: bool
    version_id: str


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
    compiled = compile_source(source, parameters or {}, where)
    if not force:
        check_startable(compiled.federation, compiled.pod_uri, where)
    kfp, title = open_kfp(where), name or compiled.federation.name
    if any(one.name == title for one in _list_schedules(kfp)):
        raise InputError(
            f"schedule {title!r} exists already",
            remedy=f"Name another: fedpipe schedule create NAME. Or run: fedpipe schedule delete {title}",
        )
    with undo_on_failure() as undo:
        uploaded = upload(kfp, compiled, experiment, undo)
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
        reason = one_line(error, 300)
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
    """Pauses, resumes or deletes a schedule; `delete_schedule` has more ways to delete one.

    Args:
        name: name of the schedule.
        action: `pause`, `resume` or `delete`.
        where: where KFP is.

    Raises:
        InputError: there is no schedule of this name, or several, or a run of one to delete is active.
        ClusterError: KFP refuses or cannot be reached.
    """
    if action == "delete":
        delete_schedule(name, where=where)
        return
    kfp = open_kfp(where)
    found = _find_schedule(kfp, name)
    change = {"pause": kfp.client.disable_recurring_run, "resume": kfp.client.enable_recurring_run}[action]
    with cluster_errors(kfp.host):
        change(found.schedule_id)


def delete_schedule(
    name: str, *, where: Where, active: Literal["refuse", "wait", "end"] = "refuse",
    listener: Callable[[str], None] = lambda _: None,
) -> int:  # fmt: skip
    """Deletes a schedule. Kubernetes deletes the workflows, pods and logs of its runs with it; the models stay.

    Args:
        name: name of the schedule.
        where: where KFP is.
        active: what to do while a run of it is active: refuse, wait for its end, or end it with the schedule.
        listener: takes the name of a run that is waited for.

    Returns:
        How many runs of it KFP still lists.

    Raises:
        InputError: there is no schedule of this name, or several, or a run is active; nothing was changed.
        ClusterError: KFP refuses or cannot be reached.
    """
    kfp = open_kfp(where)
    found = _find_schedule(kfp, name)
    with cluster_errors(kfp.host):
        kfp.client.disable_recurring_run(found.schedule_id)  # first, so that no other run begins
    try:
        while True:
            runs = _runs_of(kfp, found)
            going = [str(run.display_name) for run in runs if run.state not in ENDED]
            if not going or active == "end":
                break
            if active == "refuse":
                raise InputError(
                    f"run {going[0]!r} of schedule {name!r} is active, and would end with it",
                    remedy="Pass --wait to delete it after the run, or --yes to end the run with it.",
                )
            listener(going[0])
            time.sleep(_POLL_SECONDS)
        with cluster_errors(kfp.host):
            kfp.client.delete_recurring_run(found.schedule_id)
    except BaseException:  # also Ctrl-C while it waits
        if found.enabled:
            with contextlib.suppress(ClusterError), cluster_errors(kfp.host):
                kfp.client.enable_recurring_run(found.schedule_id)
        raise
    return len(runs)


def _find_schedule(kfp: Kfp, name: str) -> Schedule:
    existing = _list_schedules(kfp)
    found = [one for one in existing if one.name == name]
    if len(found) != 1:
        if found:
            raise InputError(f"there are {len(found)} schedules {name!r}", remedy="Delete one in Kubeflow's UI.")
        names = {one.name for one in existing}
        remedy = suggestion(name, names, listed="Choose one of") if names else "Make one: fedpipe schedule --cron ..."
        raise InputError(f"there is no schedule {name!r}", remedy=remedy)
    return found[0]


def _runs_of(kfp: Kfp, found: Schedule) -> list[Any]:
    runs = list_all(kfp, kfp.client.list_runs, "runs", "", kfp.namespace)
    return [run for run in runs if run.recurring_run_id == found.schedule_id]


def _list_schedules(kfp: Kfp) -> list[Schedule]:
    found = []
    for one in list_all(kfp, kfp.client.list_recurring_runs, "recurring_runs", "", kfp.namespace):
        cron = one.trigger.cron_schedule.cron if one.trigger and one.trigger.cron_schedule else ""
        reference = one.pipeline_version_reference
        version = (reference.pipeline_version_id if reference else "") or one.pipeline_version_id or ""
        found.append(Schedule(one.display_name, one.recurring_run_id, cron, one.status == "ENABLED", version))
    return found
