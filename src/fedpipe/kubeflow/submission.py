"""Starts runs of a compiled federation on KFP, and resumes those that failed.

If a run cannot be started, everything created for it is removed; the error names the objects that remain.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from fedpipe.errors import InputError, NotFoundError
from fedpipe.federation.sources import Source
from fedpipe.kubeflow.clients import Kfp, cluster_errors, open_kfp, quiet
from fedpipe.kubeflow.doctor.diagnosis import check_startable
from fedpipe.kubeflow.upload import compile_source, kfp_api, list_all, undo_on_failure, upload
from fedpipe.kubeflow.where import Where
from fedpipe.sessions.presence import awaited
from fedpipe.steps.shard import run_name
from fedpipe.suggestion import closest

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
"""The states of KFP in which a run has ended."""
_PREFIX = re.compile(r"[0-9a-z-]{4,}")
"""The start of a run's id that is long enough to name it."""


class Submitted(NamedTuple):
    """Describes a run that KFP accepted: its name, id and URL, the version of its pipeline, and the sites it awaits."""

    run: str
    run_id: str
    url: str
    version: str
    awaited: str = ""


def submit(
    source: Source, *, where: Where, run: str = "", experiment: str = "", pipeline_root: str = "",
    service_account: str = "", parameters: Mapping[str, Any] | None = None, force: bool = False,
) -> Submitted:  # fmt: skip
    """Starts a run of a federation on KFP.

    Args:
        source: the federation file, or its content.
        where: where KFP is.
        run: the run's name, in KFP and in the store; the current time by default. A run that failed is resumed.
        experiment: the experiment's name; the federation's by default.
        pipeline_root: where KFP stores artifacts, instead of its own setting.
        service_account: service account of the pods, instead of KFP's own.
        parameters: run-time parameters of the pipeline.
        force: skip the check that the pods can start.

    Raises:
        InputError: invalid arguments, pods that could never start, or a run of this name that is active or has
            succeeded; nothing was created.
        ClusterError: KFP refuses or cannot be reached; created objects were removed, or are named.
    """
    given = str((parameters or {}).get("run", ""))
    if run and given not in ("", run):
        raise InputError(f"the run has two names, {run!r} and {given!r}", where="parameter run", remedy="Keep one.")
    name = run_name(run or given or time.strftime("run-%Y%m%d-%H%M%S", time.gmtime()), "")
    compiled = compile_source(source, {**(parameters or {}), "run": name}, where)
    if not force:
        check_startable(compiled.federation, compiled.pod_uri, where)
    kfp = open_kfp(where)
    _check_resumable(name, _jobs(kfp, name), "Choose another name with --run{}.")
    with undo_on_failure() as undo:
        uploaded = upload(kfp, compiled, experiment, undo)
        with quiet(), cluster_errors(kfp.host):
            started = kfp.client.run_pipeline(
                uploaded.experiment_id, name, params=compiled.parameters, pipeline_id=uploaded.pipeline_id,
                version_id=uploaded.version_id, pipeline_root=pipeline_root or None,
                service_account=service_account or None,
            )  # fmt: skip
    return Submitted(
        name, started.run_id, kfp.url(f"runs/details/{started.run_id}"), uploaded.version, awaited(compiled.federation)
    )


def resume(run: str, *, where: Where) -> Submitted:
    """Resumes a run that failed or was cancelled: a new job of KFP, with its version, parameters and experiment.

    KFP's own retry would repeat the session that has ended; a new job begins another one, from the last good round.

    Args:
        run: name of the run in KFP, or the id of one of its jobs.
        where: where KFP is.

    Raises:
        NotFoundError: KFP has no such run.
        InputError: the run is still active, or has succeeded.
        ClusterError: KFP refuses or cannot be reached.
    """
    kfp = open_kfp(where)
    record = require_run(kfp, run)
    title, name = str(record.display_name), _name_of(record)
    jobs = [job for job in _jobs(kfp, title) if _name_of(job) == name]
    _check_resumable(name, jobs, "Start another with `fedpipe submit`{}.")
    settings = kfp_api().V2beta1RuntimeConfig(
        parameters={**_parameters_of(record), "run": name},
        pipeline_root=record.runtime_config.pipeline_root if record.runtime_config else None,
    )
    body = kfp_api().V2beta1Run(
        display_name=title, experiment_id=record.experiment_id, runtime_config=settings,
        pipeline_version_reference=record.pipeline_version_reference, service_account=record.service_account,
    )  # fmt: skip
    with quiet(), cluster_errors(kfp.host):
        started = kfp.client._run_api.run_service_create_run(body)
    version = str(record.pipeline_version_reference.pipeline_version_id)
    return Submitted(name, started.run_id, kfp.url(f"runs/details/{started.run_id}"), version)


def _parameters_of(job: Any) -> dict[str, Any]:
    return dict((job.runtime_config and job.runtime_config.parameters) or {})


def _name_of(job: Any) -> str:
    """Returns the name that a run of KFP has in the store."""
    return run_name(str(_parameters_of(job).get("run") or ""), str(job.run_id))


def _jobs(kfp: Kfp, title: str) -> list[Any]:
    return list_all(kfp, kfp.client.list_runs, "runs", title, kfp.namespace)


def _check_resumable(name: str, jobs: list[Any], remedy: str) -> None:
    """Refuses another job of a run, unless all of its jobs have failed. Raises InputError."""
    states = {str(job.state or "PENDING") for job in jobs}
    if "SUCCEEDED" in states:
        raise InputError(f"run {name!r} has succeeded already", remedy=remedy.format(""))
    if active := states - ENDED:
        raise InputError(
            f"run {name!r} exists already, and is {min(active).lower()}",
            remedy=remedy.format(", or wait until it has ended"),
        )


def require_run(kfp: Kfp, name: str) -> Any:
    """Returns KFP's record of a run, as `find_run` does. Raises NotFoundError when there is none."""
    record = find_run(kfp, name)
    if record is None:
        raise NotFoundError(f"Kubeflow has no run {name!r}", where=kfp.host, remedy=_meant(kfp, name))
    return record


def _meant(kfp: Kfp, name: str) -> str:
    """Returns the run that was probably meant by a name that KFP does not have."""
    runs = list_all(kfp, kfp.client.list_runs, "runs", "", kfp.namespace)
    if not runs:
        return "It has no runs at all: check --host, --context and --namespace."
    latest = sorted(runs, key=lambda run: str(run.created_at), reverse=True)
    names = [str(run.display_name) for run in latest]
    close = closest(name, names)
    return f"Did you mean {close!r}?" if close else f"The last ones are {', '.join(dict.fromkeys(names[:5]))}."


def name_in_store(kfp: Kfp, run: str) -> str | None:
    """Returns the name that a run has in the store, from its name in KFP or its id; None without such a run.

    Raises:
        InputError: several ids begin with it.
        ClusterError: KFP refuses or cannot be reached.
    """
    record = find_run(kfp, run)
    return _name_of(record) if record else None


def find_run(kfp: Kfp, name: str) -> Any | None:
    """Returns KFP's record of the latest run of this name, or of the run whose id begins with this text.

    Raises:
        InputError: several ids begin with it.
        ClusterError: KFP refuses or cannot be reached.
    """
    if named := _jobs(kfp, name):
        return max(named, key=lambda run: str(run.created_at))
    if not _PREFIX.fullmatch(name):
        return None
    runs = list_all(kfp, kfp.client.list_runs, "runs", "", kfp.namespace)
    found = [run for run in runs if run.run_id.startswith(name)]
    if len(found) > 1:
        raise InputError(f"the ids of {len(found)} runs begin with {name!r}", remedy="Write more of the id.")
    return found[0] if found else None
