"""The digits federation as pods: compiled by fedpipe, each learner with its own pool, its own user of the store and key."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kubernetes import client

from fedpipe.commands.run import run
from fedpipe.federation.file import read_federation
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.kubeflow.clients import open_kubernetes
from fedpipe.kubeflow.pods import logs, pods_of
from fedpipe.registry.publication import ModelVersion, Origin, check_publication, versions
from fedpipe.rounds.history import history, read_head
from fedpipe.rounds.selection import took_part
from fedpipe.store import keys
from fedpipe.store.objects import decode
from tests.e2e import cluster as clusters
from tests.e2e.cluster import Cluster
from tests.e2e.conftest import ENDPOINT
from tests.e2e.sites import JOB, Site
from tests.e2e.stall import Stall


def test_a_session_of_pods(trained: Site, core: client.CoreV1Api) -> None:
    made, store = trained, trained.store
    record = list(history(store, "session"))[-1]
    assert record.round == 2
    assert took_part(read_federation(made.file), record) == ("hospital-a", "hospital-b")
    assert read_head(store)[0].weights == record.weights
    summary = json.loads(store.read("runs/session/summary.json").data)
    assert summary["evaluation"]["central"]["metrics"]["accuracy"] > 0.5
    models, enrolled = store.below("models"), read_enrolled(store)
    assert versions(models) == {"digits": [1]}
    version = ModelVersion("digits", 1)
    assert enrolled.coordinator is not None
    check_publication(models, version, decode(models.read(keys.origin(*version)).data, Origin, where=""), enrolled)
    pods = core.list_namespaced_pod(made.namespace, label_selector=f"pipeline/runid={JOB}").items
    assert {pod.spec.containers[0].image.rpartition("/")[2].partition("@")[0] for pod in pods} == {"core", "keras"}
    assert all("@sha256:" in pod.spec.containers[0].image for pod in pods)
    assert "BestEffort" not in {pod.status.qos_class for pod in pods}
    said = list(logs(JOB, where=made.where, learner="hospital-b"))
    assert {step for step, _ in said} == {"learn-hospital-b"}
    assert any("round 2 score" in line for _, line in logs(JOB, where=made.where))
    assert any("round 2" in line for _, line in said)


def test_a_killed_pod_and_a_killed_process(
    site: Callable[..., Site], cluster: Cluster, core: client.CoreV1Api, tmp_path: Path
) -> None:
    """Kubernetes starts the pod again, killed in the middle of an upload. The other learner's work is killed alone.

    Its parent starts it again in the same pod. The federation comes to the very bytes that it comes to on this machine
    undisturbed.
    """
    stall = Stall(clusters.HOST, ENDPOINT, "fedpipe-digits-hospital-b")
    made = site("disturbed", [{"name": name} for name in ("hospital-a", "hospital-b")], endpoint=stall.endpoint)
    killed = []

    def kill() -> None:
        assert stall.held.wait(300)
        kubernetes = open_kubernetes(made.where)

        def running(step: str) -> tuple[str, str]:
            (pod,) = [one for one in pods_of(kubernetes, "killed") if one.step == step]
            status = kubernetes.core.read_namespaced_pod(pod.name, made.namespace).status.container_statuses[0]
            return pod.name, status.container_id.removeprefix("containerd://")

        assert cluster.kill_work(running("learn-hospital-a")[1]) == 1
        name, container = running("learn-hospital-b")
        cluster.kill(container)
        killed.append(name)
        stall.go_on.set()

    with ThreadPoolExecutor(1) as beside:
        killing = beside.submit(kill)
        made.driver("killed").run({"run": "killed"}, until="coordinate")
        killing.result()
    stall.close()
    pods = pods_of(open_kubernetes(made.where), "killed")
    again = [pod for pod in pods if pod.step == "learn-hospital-b"]
    assert [pod.state for pod in again] == ["Failed", "Succeeded"]
    assert [again[0].name] == killed
    (same,) = [pod for pod in pods if pod.step == "learn-hospital-a"]
    assert same.state == "Succeeded"
    said = core.read_namespaced_pod_log(same.name, made.namespace, _preload_content=False).data.decode()
    assert "step learn failed and is tried again in 10 s: the process was ended by SIGKILL" in said

    alone = run(made.file, store=str(tmp_path / "alone"), out=tmp_path / "out", name="killed")
    head = read_head(made.store)
    assert head is not None
    assert head[0].weights == alone.summary["rounds"][-1]["weights"]
