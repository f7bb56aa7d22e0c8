"""The chart's NetworkPolicies, enforced: what the pods of a federation and of the server reach, and what they do not.

Kubernetes' own engine, kube-network-policies, judges the first packet of each connection that netfilter queues for it.
Its own rules need nftables' `queue`, which not every kernel has. So the test queues these packets by iptables.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any, NamedTuple

import pytest
import yaml
from kubernetes import client
from kubernetes.stream import stream

from fedpipe.rounds.history import history
from fedpipe.version import __version__
from tests import binaries
from tests.e2e import cluster as clusters
from tests.e2e.cluster import HOST, NODE, Cluster
from tests.e2e.conftest import BUCKET, ENDPOINT, eventually
from tests.e2e.images import REGISTRY
from tests.e2e.sites import Site, in_a_pod

CHART = Path(__file__).parents[2] / "helm" / "fedpipe"
ENGINE, QUEUE = "kube-network-policies", "100"
RULES = (("FORWARD",), ("INPUT", "--in-interface", "pods"))
"""Where packets of pods pass: on their way to others, and to the node itself."""
NEW = ("--match", "conntrack", "--ctstate", "NEW", "--jump", "NFQUEUE", "--queue-num", QUEUE)
RESTRICTED = {
    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True, "runAsUser": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip
LISTENING = """
import selectors, socket
ports, selector = (5300, 8080, 8333, 8887, 8888, 9000), selectors.DefaultSelector()
for port in ports:
    selector.register(socket.create_server(("", port)), selectors.EVENT_READ)
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("", 5300))
selector.register(datagrams, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        if key.fileobj is datagrams:
            datagrams.sendto(b"!", datagrams.recvfrom(9)[1])
        else:
            key.fileobj.accept()[0].close()
"""
PROBING = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor

def reaches(target):
    kind, host, port = target
    try:
        if kind == "tcp":
            return socket.create_connection((host, port), 3).close() is None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.settimeout(3)
            sender.sendto(b"?", (host, port))
            return sender.recv(9) == b"!"
    except OSError:
        return False

targets = json.loads(sys.argv[1])
with ThreadPoolExecutor(len(targets)) as pool:
    print(json.dumps(list(pool.map(reaches, targets))))
"""


class Place(NamedTuple):
    """A pod that listens at some ports, and tries to reach others."""

    core: client.CoreV1Api
    namespace: str
    name: str
    address: str

    def reaches(self, targets: Mapping[str, tuple[str, str, int]]) -> dict[str, bool]:
        """Tries all targets at once; each is a protocol, an address and a port."""
        command = ["python3", "-c", PROBING, json.dumps(list(targets.values()))]
        said = stream(
            self.core.connect_get_namespaced_pod_exec, self.name, self.namespace, command=command, stdout=True, stderr=True,
            stdin=False, tty=False, _preload_content=False,
        )  # fmt: skip
        try:
            said.run_forever(timeout=60)
            return dict(zip(targets, json.loads(said.read_stdout()), strict=True))
        finally:
            said.sock.shutdown()  # `close` does nothing once the server has closed


@pytest.fixture(scope="module")
def enforced(cluster: Cluster, core: client.CoreV1Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The engine, and the rules that queue packets for it; without its answer, a packet is dropped."""
    within = ("nsenter", f"--net=/run/netns/{clusters.NAME}")
    options = ("--hostname-override=node-1", f"--nfqueue-id={QUEUE}", "--metrics-bind-address=127.0.0.1:9080")
    command, environment = in_a_pod(cluster, _engines_account(core), tmp_path_factory.mktemp("engine"))

    def change(act: str, *rule: str) -> None:
        subprocess.run([*within, "iptables", "--wait", "--table", "mangle", act, *rule, *NEW], check=True)

    def is_listening() -> bool:
        queues = subprocess.run(
            [*within, "cat", "/proc/net/netfilter/nfnetlink_queue"], check=True, capture_output=True, text=True
        ).stdout
        return any(line.split()[0] == QUEUE for line in queues.splitlines())

    with contextlib.ExitStack() as stack, (cluster.folder / "network-policies.log").open("wb") as log:
        engine = [*within, *command, str(binaries.find_binary("kube-network-policies")), *options]
        process = subprocess.Popen(engine, env=environment, stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.send_signal, signal.SIGINT)  # so that it removes rules of its own
        eventually(is_listening)
        for rule in RULES:
            change("--append", *rule)
            stack.callback(change, "--delete", *rule)
        yield


def _engines_account(core: client.CoreV1Api) -> tuple[str, str]:
    """Makes the account of the engine, with the rights that its manifest has."""
    access = client.RbacAuthorizationV1Api(core.api_client)
    core.create_namespaced_service_account("kube-system", {"metadata": {"name": ENGINE}})
    rules = [
        {"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["list", "watch"]},
    ]
    access.create_cluster_role({"metadata": {"name": ENGINE}, "rules": rules})
    account = {"kind": "ServiceAccount", "name": ENGINE, "namespace": "kube-system"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ENGINE}
    access.create_cluster_role_binding({"metadata": {"name": ENGINE}, "subjects": [account], "roleRef": role})
    return "kube-system", ENGINE


@pytest.fixture(scope="module")
def others(core: client.CoreV1Api) -> Iterator[tuple[str, str]]:
    """Two namespaces: of Kubeflow Pipelines, and of somebody else."""
    names = tuple(f"{name}-{secrets.token_hex(2)}" for name in ("kubeflow", "others"))
    for name in names:
        core.create_namespace({"metadata": {"name": name}})
    yield names[0], names[1]
    for name in names:
        core.delete_namespace(name)


@pytest.fixture(scope="module")
def policies(
    enforced: None,
    store: str,
    namespace: str,
    others: tuple[str, str],
    kubeconfig: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """The chart's, in the namespace of the federations' pods; all of these federations are called `digits`."""
    values = tmp_path_factory.mktemp("policies") / "values.yaml"
    values.write_text(yaml.safe_dump({
        "replicas": 0, "store": {"uri": f"s3://{BUCKET}/any/digits?endpoint={ENDPOINT}", "existingSecret": "any"},
        "federation": {"name": "digits"}, "federationPolicy": {"kubeflow": others[0]},
        "egress": {"dns": [{"ipBlock": {"cidr": f"{NODE}/32"}}]},
    }))  # fmt: skip
    helm = [str(binaries.find_binary("helm")), "--namespace", namespace]
    subprocess.run([*helm, "install", "policies", str(CHART), "--values", str(values)], check=True, capture_output=True)
    yield
    subprocess.run([*helm, "uninstall", "policies"], check=True, capture_output=True)


@pytest.fixture(scope="module")
def places(core: client.CoreV1Api, namespace: str, others: tuple[str, str]) -> Iterator[dict[str, Place]]:
    """A pod with the labels of a step, of another step, of the server, and of nothing; and pods of other namespaces."""
    step = {"fedpipe/federation": "digits"}
    kinds = ("name", "fedpipe"), ("instance", "policies"), ("component", "serving")
    wanted = {
        "step": (namespace, step), "neighbour": (namespace, step), "pod": (namespace, {}),
        "server": (namespace, {f"app.kubernetes.io/{key}": value for key, value in kinds}),
        "kfp": (others[0], {}), "stranger": (others[1], {}),
    }  # fmt: skip
    for name, (where, labels) in wanted.items():
        core.create_namespaced_pod(where, _pod(f"probe-{name}", labels))

    def started(name: str) -> Place:
        where = wanted[name][0]
        found = eventually(lambda: _running(core, f"probe-{name}", where))
        return Place(core, where, f"probe-{name}", found)

    yield {name: started(name) for name in wanted}
    for name, (where, _) in wanted.items():
        core.delete_namespaced_pod(f"probe-{name}", where, grace_period_seconds=0)


def _pod(name: str, labels: dict[str, str]) -> dict[str, Any]:
    container = {
        "name": "main", "image": f"{REGISTRY}/core:{__version__}", "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", LISTENING], "securityContext": RESTRICTED,
        "ports": [{"name": "http", "containerPort": 8080}],
    }  # fmt: skip
    spec = {"containers": [container], "automountServiceAccountToken": False, "enableServiceLinks": False}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec}


def _running(core: client.CoreV1Api, name: str, where: str) -> str:
    status = core.read_namespaced_pod(name, where).status
    return str(status.pod_ip or "") if status.phase == "Running" else ""


@pytest.fixture
def seaweedfs(core: client.CoreV1Api, places: dict[str, Place]) -> str:
    """The address of KFP's Service `minio-service`, as its manifests have it since 2.15."""
    kfp = places["kfp"]
    core.patch_namespaced_pod(kfp.name, kfp.namespace, {"metadata": {"labels": {"app": "seaweedfs"}}})
    spec = {"selector": {"app": "seaweedfs"}, "ports": [{"name": "http", "port": 9000, "targetPort": 8333}]}
    made = core.create_namespaced_service(kfp.namespace, {"metadata": {"name": "minio-service"}, "spec": spec})
    eventually(lambda: core.read_namespaced_endpoints("minio-service", kfp.namespace).subsets)
    return str(made.spec.cluster_ip)


@pytest.fixture
def outside() -> Iterator[int]:
    """The port of a server beyond the node, which pods reach by the node's cable."""

    class Closing(BaseRequestHandler):
        """Accepts a connection, and closes it."""

    with ThreadingTCPServer((HOST, 0), Closing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield int(server.server_address[1])
        server.shutdown()


def test_what_a_step_reaches_and_what_reaches_it(
    places: dict[str, Place], seaweedfs: str, outside: int, policies: None, core: client.CoreV1Api
) -> None:
    """A pod without the labels of a step reaches all of these, so it is the policy that refuses."""
    service = core.read_namespaced_service("kubernetes", "default").spec.cluster_ip
    kfp, stranger = places["kfp"].address, places["stranger"].address
    allowed = {
        "the store": ("tcp", NODE, 9000), "DNS": ("tcp", NODE, 53), "Kubernetes' API": ("tcp", service, 443),
        "KFP's metadata": ("tcp", kfp, 8080), "KFP's cache": ("tcp", kfp, 8887), "KFP's MinIO": ("tcp", kfp, 9000),
        "KFP's SeaweedFS": ("tcp", seaweedfs, 9000),
    }  # fmt: skip
    refused = {
        "the node's kubelet": ("tcp", NODE, 10250), "another port of KFP": ("tcp", kfp, 8888),
        "datagrams to KFP": ("udp", kfp, 5300), "a pod of its namespace": ("tcp", places["pod"].address, 9000),
        "another namespace": ("tcp", stranger, 9000), "its port of KFP's cache": ("tcp", stranger, 8887),
        "a host outside": ("tcp", HOST, outside),
    }  # fmt: skip
    neighbour = {"a step": ("tcp", places["neighbour"].address, 9000)}
    wanted = dict.fromkeys(allowed, True) | dict.fromkeys(refused, False) | {"a step": False}
    assert places["step"].reaches({**allowed, **refused, **neighbour}) == wanted
    free = dict.fromkeys({**allowed, **refused}, True) | {"a step": False}
    assert places["pod"].reaches({**allowed, **refused, **neighbour}) == free


def test_what_the_server_reaches_and_who_reaches_it(places: dict[str, Place], policies: None) -> None:
    server = places["server"].address
    asked = {"http": ("tcp", server, 8080), "another port": ("tcp", server, 9000)}
    assert places["pod"].reaches(asked) == {"http": True, "another port": False}
    assert places["stranger"].reaches(asked) == {"http": False, "another port": False}
    targets = {
        "the store": ("tcp", NODE, 9000), "DNS": ("tcp", NODE, 53), "KFP": ("tcp", places["kfp"].address, 8887),
        "a pod of its namespace": ("tcp", places["pod"].address, 9000),
    }  # fmt: skip
    wanted = {"the store": True, "DNS": True, "KFP": False, "a pod of its namespace": False}
    assert places["server"].reaches(targets) == wanted


def test_collective_learning_under_the_policies(
    site: Callable[..., Site], policies: None, core: client.CoreV1Api
) -> None:
    """All steps but those after the session start with the first one, propose and vote, and reach what they need."""
    names = ("hospital-a", "hospital-b", "hospital-c")
    made = site(
        "voted", [{"name": name} for name in names], framework="numpy", algorithm={"name": "collective"},
        training={"rounds": 3},
    )  # fmt: skip
    results = made.driver("voted").run({"run": "voted"})
    assert len(results) == 6 + len(names)  # shard to report, learn
    records = list(history(made.store, "voted"))[1:]
    assert tuple(record.proposer for record in records) == names
    assert [len(record.ballots) for record in records] == [3, 3, 3]
    pods = core.list_namespaced_pod(made.namespace, label_selector="pipeline/runid=voted").items
    steps = {pod.metadata.labels["fedpipe/step"]: pod for pod in pods}
    end = steps["shard"].status.container_statuses[0].state.terminated.finished_at
    early = {step for step, pod in steps.items() if pod.metadata.creation_timestamp <= end}
    assert early == {"shard", "initialise", "coordinate", *(f"learn-{name}" for name in names)}
