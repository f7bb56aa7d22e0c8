"""Lists the pods of a run, with their steps and the reasons for which they wait, and reads their logs.

KFP labels the pods of a run with its id, `pipeline/runid`; the pipelines of fedpipe add `fedpipe/step` and, for a
learner's steps, `fedpipe/learner` (pipelines/placement.py). Only pods that do a step's work have those labels.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from fedpipe.errors import ClusterError, InputError, NotFoundError, StepError
from fedpipe.kubeflow.clients import Kubernetes, cluster_errors, open_kfp, open_kubernetes
from fedpipe.kubeflow.doctor.diagnosis import missing_namespace
from fedpipe.kubeflow.submission import find_run, name_in_store, require_run
from fedpipe.kubeflow.where import Where
from fedpipe.suggestion import suggestion

RUN_LABEL, STEP_LABEL, LEARNER_LABEL = "pipeline/runid", "fedpipe/step", "fedpipe/learner"
_MAIN = "main"
"""The container of Argo's pods that does the work."""
_STARTERS = re.compile(
    r'time="?\d{4}-|\{"(time|ts|level)":|[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ \S+:\d+\]|\d{4}/\d\d/\d\d \d\d:\d\d:\d\d '
)
"""Starts of lines of Argo's executor and of KFP's launcher: logrus, slog, JSON, klog and Go's own log."""
_ERRORS = re.compile(r'[EF]\d{4} |.*\blevel="?(error|fatal|panic)|.*"level":"(error|fatal)', re.IGNORECASE)
_WITHOUT_LOG = (400, 404, 500)
"""Answers for a pod that was deleted meanwhile, has no container yet, or was on a node that is gone."""
_POLL_SECONDS = 2.0
_RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UNSUCCESSFUL = {"FAILED": "failed", "CANCELED": "was cancelled", "SKIPPED": "was skipped"}


class Pod(NamedTuple):
    """Describes a pod of a run.

    `state` is Kubernetes' phase, or the reason for which its container waits. `why` has details for a pod that waits
    or failed. `seconds` is its age.
    """

    name: str
    step: str
    learner: str
    state: str
    why: str
    seconds: float

    @property
    def waits(self) -> bool:
        """Returns whether it has not started yet."""
        return self.state not in ("Running", "Succeeded", "Failed")


def find_run_id(run: str, where: Where) -> str:
    """Returns the id with which KFP labels the pods of a run.

    Args:
        run: name of the run, or its id, which is returned as it is.
        where: where Kubeflow is.

    Raises:
        NotFoundError: KFP has no such run.
        ClusterError: KFP refuses or cannot be reached.
    """
    if _RUN_ID.fullmatch(run):
        return run
    return str(require_run(open_kfp(where), run).run_id)


def pods_of(cluster: Kubernetes, run_id: str) -> list[Pod]:
    """Lists the pods that do the work of a run, the oldest first. Raises ClusterError."""
    with cluster_errors("Kubernetes"):
        found = cluster.core.list_namespaced_pod(
            cluster.namespace, label_selector=f"{RUN_LABEL}={run_id},{STEP_LABEL}", _request_timeout=20
        )
    now = datetime.now(UTC)
    pods = sorted(found.items, key=lambda pod: (pod.metadata.creation_timestamp, pod.metadata.name))
    return [_pod(pod, now) for pod in pods]


def _pod(pod: Any, now: datetime) -> Pod:
    labels = pod.metadata.labels
    state, why = str(pod.status.phase), ""
    for container in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
        waiting, ended = container.state.waiting, container.state.terminated
        if waiting and waiting.reason not in ("PodInitializing", "ContainerCreating"):
            state, why = waiting.reason, waiting.message or ""
        elif ended and ended.exit_code and state == "Failed":
            why = f"{ended.reason or 'ended'}, exit code {ended.exit_code}"
    unscheduled = next(
        (c for c in pod.status.conditions or [] if c.type == "PodScheduled" and c.status == "False"), None
    )
    if unscheduled is not None:
        why = unscheduled.message or unscheduled.reason or ""
    seconds = (now - pod.metadata.creation_timestamp).total_seconds()
    name = pod.metadata.name
    return Pod(name, labels[STEP_LABEL], labels.get(LEARNER_LABEL, ""), state, " ".join(why.split())[:300], seconds)


def waiting_lines(cluster: Kubernetes, run_id: str) -> list[str]:
    """Returns one line for each pod that waits, with the reason. Raises ClusterError."""
    return [
        f"{pod.step} has been {pod.state} for {pod.seconds:.0f} s{f': {pod.why}' if pod.why else ''}"
        for pod in pods_of(cluster, run_id)
        if pod.waits
    ]


def watcher(run: str, where: Where) -> tuple[str, Callable[[], list[str]], bool]:
    """Returns a run's name in the store, a function that lists why its pods wait, and whether Kubeflow has the run.

    That function raises StepError once Kubeflow reports a failure. Without access to Kubernetes, it only follows the
    state of the run.

    Args:
        run: name of the run in KFP, or its id.
        where: where Kubeflow is.

    Raises:
        InputError: several ids begin with it.
        ClusterError: KFP refuses or cannot be reached.
    """
    kfp = open_kfp(where)
    cluster: Kubernetes | None = None
    with contextlib.suppress(ClusterError):
        cluster = open_kubernetes(where)

    def list_waiting() -> list[str]:
        try:
            record = find_run(kfp, run)
            if record is None:
                return [f"Kubeflow has no run {run!r}: check its name"]
            if record.state not in _UNSUCCESSFUL:
                return waiting_lines(cluster, str(record.run_id)) if cluster else []
        except ClusterError as error:  # perhaps only briefly; progress itself is read from the store
            return [f"Kubeflow cannot be queried: {error.what}"]
        why = " ".join(str(getattr(record.error, "message", "") or "").split())
        raise StepError(
            f"run {run!r} {_UNSUCCESSFUL[record.state]}{f': {why}' if why else ''}",
            remedy=f"Run `fedpipe logs {run}` to see the output of its steps.",
        )

    name = name_in_store(kfp, run)
    return name or run, list_waiting, name is not None


def logs(
    run: str, *, where: Where, step: str = "", learner: str = "", follow: bool = False, everything: bool = False
) -> Iterator[tuple[str, str]]:
    """Yields the log lines of a run as `(step, line)`, one step after the other.

    Args:
        run: name of the run in KFP, or its id.
        where: where Kubeflow is.
        step: only steps with this in their name, such as `train` or `coordinate`.
        learner: only steps of this learner.
        follow: continue with new lines until the last step has ended.
        everything: include the lines of Argo and of KFP's launcher; without it, only their errors.

    Raises:
        NotFoundError: there is no such run, or it has no pods any more.
        InputError: none of its steps matches.
        ClusterError: Kubernetes refuses or cannot be reached.
    """
    cluster = open_kubernetes(where)
    pods = pods_of(cluster, find_run_id(run, where))
    if not pods:
        if (missing := missing_namespace(cluster)) is not None:
            raise NotFoundError(missing.what, where="--namespace", remedy=missing.remedy)
        raise NotFoundError(
            f"run {run!r} has no pods, or they were deleted",
            where=f"namespace {cluster.namespace}",
            remedy="Look for archived logs in the Kubeflow UI, or pass the namespace of its pods with --namespace.",
        )
    learners = {pod.learner for pod in pods if pod.learner}
    if learner and learner not in learners:
        remedy = suggestion(learner, learners, listed="Choose one of") if learners else "Leave it out."
        raise InputError(f"the run has no step of learner {learner!r}", where="--learner", remedy=remedy)
    matching = [pod for pod in pods if step.replace(" ", "-") in pod.step and learner in ("", pod.learner)]
    if not matching:
        steps = {pod.step for pod in pods if learner in ("", pod.learner)}
        remedy = suggestion(step, steps, listed="Choose one of")
        raise InputError(f"no step has {step!r} in its name", where="--step", remedy=remedy)
    for pod in matching:
        if pod.waits:
            yield pod.step, f"({pod.state}{f': {pod.why}' if pod.why else ''})"
            if not follow:
                continue
        try:
            if pod.waits:
                _await_start(cluster, pod)
            lines = _lines(cluster, pod, follow=follow)
            for line in lines if everything else own_lines(lines):
                yield pod.step, line
        except ClusterError as error:
            if error.status not in _WITHOUT_LOG:
                raise
            yield pod.step, f"({pod.state}{f': {pod.why}' if pod.why else ''}; its log cannot be read: {error.what})"


def own_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yields the lines that are a step's own; KFP's launcher writes the step's outputs as JSON over many lines."""
    inside = False
    for line in lines:
        if not inside and is_ours(line):
            yield line
        inside = line != "}" if inside else line.endswith("ExecutorOutput: {")


def is_ours(line: str) -> bool:
    """Returns whether a line is a step's own, or an error of the programs that start the step.

    >>> is_ours('I1128 09:12:13.123456       1 launcher_v2.go:123] publish success')
    False
    """
    return not _STARTERS.match(line) or bool(_ERRORS.match(line))


def _await_start(cluster: Kubernetes, pod: Pod) -> None:
    while pod.waits:
        time.sleep(_POLL_SECONDS)
        with cluster_errors(f"pod {pod.name}"):
            pod = _pod(cluster.core.read_namespaced_pod(pod.name, cluster.namespace), datetime.now(UTC))


def _lines(cluster: Kubernetes, pod: Pod, *, follow: bool) -> Iterator[str]:
    """Yields the log lines of the container that does the work."""
    with cluster_errors(f"pod {pod.name}"):
        containers = [c.name for c in cluster.core.read_namespaced_pod(pod.name, cluster.namespace).spec.containers]
        container = _MAIN if _MAIN in containers else containers[0]
        answer = cluster.core.read_namespaced_pod_log(
            pod.name, cluster.namespace, container=container, follow=follow, _preload_content=False
        )
        rest = b""
        for chunk in answer.stream(2**16):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace")
        if rest:
            yield rest.decode(errors="replace")
