"""Checks the settings of Argo that apply to all workflows: which pods it starts again, and how often it looks.

Source: `RetryPolicy`, `inferFailedReason` and `DEFAULT_REQUEUE_TIME` of Argo Workflows 4.0.5. A pod that its node
evicts has failed; one that is deleted, also by a drained node, is usually gone before Argo has seen it fail.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from fedpipe.errors import ClusterError
from fedpipe.kubeflow.clients import Kubernetes, cluster_errors
from fedpipe.kubeflow.doctor.finding import REQUEST_SECONDS, Finding

CONFIG = "workflow-controller-configmap"
_LOST = {
    "OnError": "pods that fail or are evicted, such as for lack of memory",
    "OnFailure": "pods that are deleted, such as those of a drained node",
    "OnTransientError": "pods whose end does not match its TRANSIENT_ERROR_PATTERN",
}
"""The pods that are not started again, by Argo's policy."""
CONTROLLER, REQUEUE = "workflow-controller", "DEFAULT_REQUEUE_TIME"
_USUAL_SECONDS, _QUICK_SECONDS = 10.0, 2.0
"""Seconds between two looks at a workflow: Argo's own, and those with which a run was measured."""
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)"


def check_retries(cluster: Kubernetes, namespace: str) -> Iterator[Finding]:
    """Checks that Kubeflow starts a pod again, however it ended.

    Args:
        cluster: the cluster.
        namespace: namespace of KFP itself.
    """
    try:
        with cluster_errors(CONFIG):
            read = cluster.core.read_namespaced_config_map(CONFIG, namespace, _request_timeout=REQUEST_SECONDS)
    except ClusterError as error:
        yield Finding("warning", "retries", f"{CONFIG} cannot be read: {error.what}", "Ask for permission to read it.")
        return
    policy = retry_policy(read.data or {})
    if policy not in _LOST:
        yield Finding("ok", "retries", "Kubeflow starts pods again that fail, are deleted or evicted")
        return
    yield Finding(
        "warning", "retries", f"Kubeflow does not start again {_LOST[policy]}: its retryPolicy is {policy}",
        f"Set spec.templateDefaults.retryStrategy.retryPolicy to Always below workflowDefaults of {CONFIG}.",
    )  # fmt: skip


def check_pace(cluster: Kubernetes, namespace: str) -> Iterator[Finding]:
    """Says how often Argo looks at a workflow again, and how steps start sooner; nothing where it cannot be read.

    Args:
        cluster: the cluster.
        namespace: namespace of KFP itself.
    """
    from kubernetes import client

    try:
        with cluster_errors(CONTROLLER):
            apps = client.AppsV1Api(cluster.core.api_client)
            read = apps.read_namespaced_deployment(CONTROLLER, namespace, _request_timeout=REQUEST_SECONDS)
    except ClusterError:
        return
    given = [one for each in read.spec.template.spec.containers for one in each.env or () if one.name == REQUEUE]
    seconds = seconds_of(given[-1].value or "") if given else _USUAL_SECONDS
    if seconds is None:
        return
    what = f"Argo looks at a workflow again every {seconds:g} s"
    if seconds <= _QUICK_SECONDS:
        yield Finding("ok", "pace", what)
        return
    remedy = f"kubectl set env deployment/{CONTROLLER} -n {namespace} {REQUEUE}={_QUICK_SECONDS:g}s"
    yield Finding("ok", "pace", f"{what}, and a run waits for it between steps", f"To start steps sooner: {remedy}")


def seconds_of(duration: str) -> float | None:
    """Returns a duration of Go in seconds; None if it is not one.

    >>> seconds_of("1m2.5s"), seconds_of("500ms"), seconds_of("10")
    (62.5, 0.5, None)
    """
    if not re.fullmatch(f"({_PART})+", duration):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, duration))


def retry_policy(data: Mapping[str, str]) -> str:
    """Returns the policy of Argo's settings; its own default where they name none, or cannot be parsed."""
    settings: Any = _parsed(data.get("workflowDefaults", "")) or _of(
        _parsed(data.get("config", "")), "workflowDefaults"
    )
    spec = _of(settings, "spec") or settings
    return str(_of(spec, "templateDefaults", "retryStrategy", "retryPolicy") or "OnFailure")


def _of(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None
