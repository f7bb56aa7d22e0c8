"""Tests what Argo's settings mean for a run; tests/e2e asks a real apiserver for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedpipe.kubeflow.clients import open_kubernetes
from fedpipe.kubeflow.doctor.finding import Finding
from fedpipe.kubeflow.doctor.retries import check_pace, check_retries, retry_policy
from fedpipe.kubeflow.where import Where
from tests.kubeflow.kubernetes_server import answering

STOCK = """
spec:
  ttlStrategy: {secondsAfterCompletion: 604800}
  templateDefaults:
    retryStrategy: {retryPolicy: OnError}
"""


@pytest.mark.parametrize(
    ("data", "policy"),
    [
        ({"workflowDefaults": STOCK}, "OnError"),
        ({"workflowDefaults": STOCK.replace("OnError", "Always")}, "Always"),
        ({"config": "workflowDefaults:\n" + STOCK.replace("\n", "\n  ")}, "OnError"),
        ({"workflowDefaults": "templateDefaults: {retryStrategy: {retryPolicy: Always}}"}, "Always"),
        ({}, "OnFailure"),
        ({"config": "", "workflowDefaults": "spec: {templateDefaults: {}}"}, "OnFailure"),
        ({"workflowDefaults": "spec: [1"}, "OnFailure"),
        ({"workflowDefaults": "text"}, "OnFailure"),
    ],
)
def test_the_policy_of_all_workflows(data: dict[str, str], policy: str) -> None:
    assert retry_policy(data) == policy


@pytest.mark.parametrize(
    ("policy", "level", "what"),
    [
        ("Always", "ok", "Kubeflow starts pods again that fail, are deleted or evicted"),
        ("OnError", "warning", "does not start again pods that fail or are evicted, such as for lack of memory: its"),
        ("OnFailure", "warning", "does not start again pods that are deleted, such as those of a drained node: its"),
        ("OnTransientError", "warning", "pods whose end does not match its TRANSIENT_ERROR_PATTERN: its retryPolicy"),
    ],
)
def test_which_pods_are_started_again(
    policy: str, level: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that its node evicts has failed, in Argo's eyes: it still sees the pod, and its reason."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    settings = {"data": {"workflowDefaults": STOCK.replace("OnError", policy)}}
    path = "/api/v1/namespaces/kubeflow/configmaps/workflow-controller-configmap"
    with answering({path: settings}, tmp_path / "kubeconfig"):
        (found,) = check_retries(open_kubernetes(Where()), "kubeflow")
    assert found.level == level
    assert what in found.what


PATH = "/apis/apps/v1/namespaces/kubeflow/deployments/workflow-controller"


def controller(*env: dict[str, Any]) -> dict[str, Any]:
    """The Deployment of Argo's controller with these variables."""
    containers = [{"name": "proxy"}, {"name": "workflow-controller", "env": list(env)}]
    return {"spec": {"selector": {}, "template": {"spec": {"containers": containers}}}}


def pace(deployment: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """The findings where the apiserver has this Deployment; None: it refuses to show one."""
    kubeconfig = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    with answering({PATH: deployment} if deployment else {}, kubeconfig):
        return list(check_pace(open_kubernetes(Where()), "kubeflow"))


@pytest.mark.parametrize(
    ("env", "seconds", "quick"),
    [
        ([], "10", False),
        ([{"name": "TRANSIENT_ERROR_PATTERN", "value": "spot"}], "10", False),
        ([{"name": "DEFAULT_REQUEUE_TIME", "value": "1m0s"}], "60", False),
        ([{"name": "DEFAULT_REQUEUE_TIME", "value": "2s"}], "2", True),
        ([{"name": "DEFAULT_REQUEUE_TIME", "value": "500ms"}], "0.5", True),
    ],
)
def test_how_often_argo_looks_at_a_workflow(
    env: list[dict[str, Any]], seconds: str, quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a warning: every run ends well with Argo's own setting, only later."""
    (found,) = pace(controller(*env), tmp_path, monkeypatch)
    assert (found.level, found.subject) == ("ok", "pace")
    assert found.what.startswith(f"Argo looks at a workflow again every {seconds} s")
    command = "kubectl set env deployment/workflow-controller -n kubeflow DEFAULT_REQUEUE_TIME=2s"
    assert found.remedy == ("" if quick else f"To start steps sooner: {command}")


@pytest.mark.parametrize("value", [{"valueFrom": {"fieldRef": {"fieldPath": "x"}}}, {"value": "soon"}, {"value": ""}])
def test_a_pace_that_cannot_be_known(value: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pace(controller({"name": "DEFAULT_REQUEUE_TIME", **value}), tmp_path, monkeypatch) == []
    assert pace(None, tmp_path, monkeypatch) == []
