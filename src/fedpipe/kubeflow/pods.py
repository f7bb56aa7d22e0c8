"""The pods of a run: which step each is, why one waits, and what it said.

KFP labels the pods of a run with its id, `pipeline/runid`; the pipelines of fedpipe add `fedpipe/step` and, for a
learner's steps, `fedpipe/learner` (pipelines/placement.py). Only pods that do a step's work carry those.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

from fedpipe.errors import ClusterError, InputError, NotFoundError, StepError
from fedpipe.kubeflow.clients import Kubernetes, mapped, open_kfp, open_kubernetes
from fedpipe.kubeflow.submission import find_run
from fedpipe.kubeflow.where import Where

RUN_LABEL, STEP_LABEL, LEARNER_LABEL = "pipeline/runid", "fedpipe/step", "fedpipe/learner"
_MAIN = "main"
"""The container of Argo's pods that does the work."""
_LOOK_AGAIN = 2.0
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LOST = ("FAILED", "CANCELED", "SKIPPED")


class Pod(NamedTuple):
    """A pod of a run.

    `state` is Kubernetes' phase, or the reason for which its container waits; `why` says more of a pod that waits or
    failed; `seconds` is its age.
    """

    name: str
    step: str
    learner: str
    state: str
    why: str
    seconds: float

    @property
    def waits(self) -> bool:
        """Whether it has not begun."""
        return self.state not in ("Running", "Succeeded", "Failed")


def find_run_id(run: str, where: Where) -> str:
    """The id by which KFP labels the pods of a run, found by the run's name or taken as it is.

    Raises:
        NotFoundError: KFP has no such run.
        ClusterError: KFP cannot be asked.
    """
    if _ID.fullmatch(run):
        return run
    kfp = open_kfp(where)
    found = find_run(kfp, run)
    if found is None:
        raise NotFoundError(f"Kubeflow has no run {run!r}", where=kfp.host)
    return str(found.run_id)


def pods_of(cluster: Kubernetes, run_id: str) -> list[Pod]:
    """The pods that do the work of a run, the oldest first. Raises ClusterError."""
    with mapped("Kubernetes"):
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
    """One line for each pod that waits, with the reason. Raises ClusterError."""
    return [
        f"{pod.step} is {pod.state} for {pod.seconds:.0f} s{f': {pod.why}' if pod.why else ''}"
        for pod in pods_of(cluster, run_id)
        if pod.waits
    ]


def watcher(run: str, where: Where) -> Callable[[], list[str]]:
    """What says why pods of a run wait, each time it is asked, and raises when Kubeflow says that the run has failed.

    Where Kubernetes cannot be asked, only the run's state is told; for an id, only its pods are.
    """
    kfp = None if _ID.fullmatch(run) else open_kfp(where)
    cluster: Kubernetes | None = None
    with contextlib.suppress(ClusterError):
        cluster = open_kubernetes(where)

    def look() -> list[str]:
        try:
            found = find_run(kfp, run) if kfp else None
            if kfp and found is None:
                return []
            if found is None or found.state not in _LOST:
                return waiting_lines(cluster, str(found.run_id) if found else run) if cluster else []
        except ClusterError as error:  # for a moment, perhaps: the store tells what matters
            return [f"Kubeflow cannot be asked: {error.what}"]
        why = " ".join(str(getattr(found.error, "message", "") or "").split())
        raise StepError(
            f"run {run!r} is {found.state.lower()}{f': {why}' if why else ''}",
            remedy=f"`fedpipe logs {run}` shows what its steps said.",
        )

    return look


def logs(
    run: str, *, where: Where, step: str = "", learner: str = "", follow: bool = False
) -> Iterator[tuple[str, str]]:
    """What the steps of a run say: `(step, line)`, one step after the other.

    Args:
        run: the run's name in KFP, or its id.
        where: where Kubeflow is.
        step: only steps whose name has this in it, such as `train` or `coordinate`.
        learner: only steps of this learner.
        follow: go on with what the steps say later, until the last has ended.

    Raises:
        NotFoundError: there is no such run, or it has no pods any more.
        InputError: none of its steps is meant.
        ClusterError: Kubernetes refuses or cannot be reached.
    """
    cluster = open_kubernetes(where)
    pods = pods_of(cluster, find_run_id(run, where))
    if not pods:
        raise NotFoundError(
            f"run {run!r} has no pods, or none any more",
            remedy="What pods said is gone with them; the Kubeflow UI shows what was archived.",
        )
    meant = [pod for pod in pods if step in pod.step and learner in ("", pod.learner)]
    if not meant:
        raise InputError("no step is meant", remedy=f"Steps: {', '.join(sorted({pod.step for pod in pods}))}.")
    for pod in meant:
        if pod.waits:
            yield pod.step, f"({pod.state}{f': {pod.why}' if pod.why else ''})"
            if not follow:
                continue
            _await_begin(cluster, pod)
        for line in _lines(cluster, pod, follow=follow):
            yield pod.step, line


def _await_begin(cluster: Kubernetes, pod: Pod) -> None:
    while pod.waits:
        time.sleep(_LOOK_AGAIN)
        with mapped(f"pod {pod.name}"):
            pod = _pod(cluster.core.read_namespaced_pod(pod.name, cluster.namespace), datetime.now(UTC))


def _lines(cluster: Kubernetes, pod: Pod, *, follow: bool) -> Iterator[str]:
    """The lines of a pod's working container."""
    with mapped(f"pod {pod.name}"):
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
