"""Tests which retry policy Argo's settings have; tests/e2e asks a real apiserver for them."""

from __future__ import annotations

import pytest

from fedpipe.kubeflow.doctor.retries import retry_policy

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
