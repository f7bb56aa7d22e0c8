"""Checks which pods Kubeflow starts again: the setting of Argo that applies to all workflows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from fedpipe.errors import ClusterError
from fedpipe.kubeflow.clients import Kubernetes, cluster_errors
from fedpipe.kubeflow.doctor.finding import REQUEST_SECONDS, Finding

CONFIG = "workflow-controller-configmap"
_LOST = {
    "OnError": "pods that fail, such as for lack of memory",
    "OnFailure": "pods that are deleted or evicted",
    "OnTransientError": "pods that fail, are deleted or evicted",
}
"""The pods that are not started again, by Argo's policy."""


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
