"""The chart's NetworkPolicy for steps, enforced: they reach the store and DNS, and nobody reaches them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client
from kubernetes.stream import stream

from tests import binaries
from tests.e2e.cluster import NODE
from tests.e2e.conftest import BUCKET, ENDPOINT, eventually
from tests.e2e.driver import RESTRICTED
from tests.e2e.images import REGISTRY
from tests.e2e.policies import enforced

CHART = Path(__file__).parents[2] / "helm" / "fedpipe"
VALUES = {
    "federation": {"name": "digits"},
    "store": {"uri": f"s3://{BUCKET}/hospitals/digits?endpoint={ENDPOINT}", "existingSecret": "server"},
    "egress": {"dns": [{"ipBlock": {"cidr": f"{NODE}/32"}}]},
    "federationPolicy": {"apiServer": [{"ipBlock": {"cidr": f"{NODE}/32"}}], "kubeflow": ""},
}
PORT = 8899
LISTENING = f"""
import socket, time
server = socket.create_server(("0.0.0.0", {PORT}))
while True:
    server.accept()[0].close()
"""
CONNECTING = """
import json, socket, sys
def reaches(host, port):
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        return True
    except OSError:
        return False
print(json.dumps([reaches(*one.rsplit(":", 1)) for one in sys.argv[1:]]))
"""


@pytest.fixture
def pods(core: client.CoreV1Api, namespace: str, built: dict[str, str]) -> Iterator[dict[str, str]]:
    """Addresses of a step of the federation, and of another pod; both listen at PORT."""
    labels = {"step": {"fedpipe/federation": "digits"}, "other": {"app": "other"}}
    for name, label in labels.items():
        container = {
            "name": "main", "image": f"{REGISTRY}/core@{built['core']}", "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-c", LISTENING], "securityContext": RESTRICTED,
        }  # fmt: skip
        spec = {
            "containers": [container], "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        }  # fmt: skip
        core.create_namespaced_pod(namespace, {"metadata": {"name": f"policy-{name}", "labels": label}, "spec": spec})

    def running() -> dict[str, str] | None:
        statuses = {name: core.read_namespaced_pod(f"policy-{name}", namespace).status for name in labels}
        ready = all(status.phase == "Running" and status.pod_ip for status in statuses.values())
        return {name: str(status.pod_ip) for name, status in statuses.items()} if ready else None

    yield eventually(running)
    for name in labels:
        core.delete_namespaced_pod(f"policy-{name}", namespace, grace_period_seconds=0)


def reached(core: client.CoreV1Api, namespace: str, pod: str, *targets: str) -> list[bool]:
    """Whether connections from a pod come about."""
    command = ["python3", "-c", CONNECTING, *targets]
    answer = stream(
        core.connect_get_namespaced_pod_exec, f"policy-{pod}", namespace, command=command, stdout=True, stderr=True,
        stdin=False, tty=False,
    )  # fmt: skip
    found: list[bool] = json.loads(answer.replace("True", "true").replace("False", "false"))
    return found


def test_a_step_reaches_the_store_and_nobody_reaches_it(
    api: client.ApiClient, core: client.CoreV1Api, namespace: str, store: str, pods: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(VALUES))
    command = ["template", "net", str(CHART), "--namespace", namespace, "--values", str(tmp_path / "values.yaml")]
    text = subprocess.run([binaries.find_binary("helm"), *command], check=True, capture_output=True, text=True).stdout
    objects: list[dict[str, Any]] = [body for body in yaml.safe_load_all(text) if body]
    (policy,) = [
        one for one in objects if one["kind"] == "NetworkPolicy" and one["metadata"]["name"].endswith("-steps")
    ]
    client.NetworkingV1Api(api).create_namespaced_network_policy(namespace, policy)

    node = [ENDPOINT.removeprefix("http://"), f"{NODE}:53", f"{NODE}:6443", f"{NODE}:10250"]
    to_other, to_step = f"{pods['other']}:{PORT}", f"{pods['step']}:{PORT}"
    eventually(lambda: all(reached(core, namespace, "step", *node, to_other)))  # nothing is enforced yet
    assert reached(core, namespace, "other", to_step) == [True]
    with enforced(core, policy, namespace):
        # the store, DNS and Kubernetes' API; neither the kubelet nor another pod
        assert reached(core, namespace, "step", *node, to_other) == [True, True, True, False, False]
        assert reached(core, namespace, "other", *node, to_step) == [True, True, True, True, False]
    assert reached(core, namespace, "other", to_step) == [True]
