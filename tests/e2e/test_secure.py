"""Secure sums as pods: the administrator's key comes from each learner's Secret, and one pod dies between its vectors."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from kubernetes import client

import fedpipe
from fedpipe.kubeflow.clients import open_kubernetes
from fedpipe.kubeflow.pods import pods_of
from fedpipe.rounds.history import history
from tests.e2e import cluster as clusters
from tests.e2e.cluster import Cluster
from tests.e2e.conftest import ENDPOINT
from tests.e2e.sites import Site
from tests.e2e.stall import Stall

NAMES = tuple(f"hospital-{letter}" for letter in "abcd")


def test_a_pod_is_killed_while_it_uploads_its_masked_vector(
    site: Callable[..., Site], cluster: Cluster, core: client.CoreV1Api
) -> None:
    """Its keys die with it, so the others reveal what opens the sum without it. The new pod is in the next sum."""
    stall = Stall(clusters.HOST, ENDPOINT, "fedpipe-digits-hospital-d")
    made = site(
        "summed", [{"name": name} for name in NAMES], endpoint=stall.endpoint, framework="numpy",
        algorithm={"name": "averaging", "secure": {}}, quorum={"min_learners": 3, "deadline": 600},
    )  # fmt: skip

    def kill() -> None:
        assert stall.held.wait(300)
        (pod,) = [one for one in pods_of(open_kubernetes(made.where), "summed") if one.step == "learn-hospital-d"]
        status = core.read_namespaced_pod(pod.name, made.namespace).status.container_statuses[0]
        cluster.kill(status.container_id.removeprefix("containerd://"))
        stall.go_on.set()

    with ThreadPoolExecutor(1) as beside:
        killing = beside.submit(kill)
        try:
            made.driver("summed").run({"run": "summed"}, until="coordinate")
        finally:
            stall.held.set()  # nobody waits for an upload any more
        killing.result()
    stall.close()
    pods = [pod for pod in pods_of(open_kubernetes(made.where), "summed") if pod.step == "learn-hospital-d"]
    assert [pod.state for pod in pods] == ["Failed", "Succeeded"]
    first, second = history(made.store, "summed")[1:]
    assert (first.contributors, second.contributors) == (NAMES[:3], NAMES)
    assert [(one.learner, one.why.partition(":")[0]) for one in first.dropped] == [
        ("hospital-d", "this process has no key of the round")
    ]
    assert second.metrics["accuracy"] > 0.5
    assert [(one.round, one.learners) for one in fedpipe.verify(made.file, "summed")] == [(1, 3), (2, 4)]
