"""Runs the checks of `fedpipe doctor` before a federation runs on a cluster; changes nothing.

Each part is checked on its own: a store that cannot be reached does not hide a missing node pool.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from fedpipe.errors import ClusterError, FedpipeError, InputError, StoreError
from fedpipe.federation.federation import Federation
from fedpipe.federation.sources import Source, read_source
from fedpipe.kubeflow.clients import Kubernetes, cluster_errors, open_kfp, open_kubernetes
from fedpipe.kubeflow.doctor.datasets import check_datasets
from fedpipe.kubeflow.doctor.finding import REQUEST_SECONDS, Finding
from fedpipe.kubeflow.doctor.launcher import check_launcher
from fedpipe.kubeflow.doctor.nodes import Node, check_nodes, list_nodes
from fedpipe.kubeflow.doctor.quotas import check_quotas
from fedpipe.kubeflow.doctor.retries import check_pace, check_retries
from fedpipe.kubeflow.doctor.secrets import check_images, check_secrets
from fedpipe.kubeflow.doctor.store import check_enrolment, check_store, find_signers
from fedpipe.kubeflow.forwarding import reachable_store
from fedpipe.kubeflow.where import Where
from fedpipe.store import chosen_uri
from fedpipe.suggestion import suggestion

_TESTED_VERSION = "2.17"


def diagnose(
    source: Source, *, where: Where, store: str | None = None, listener: Callable[[Finding], None] = lambda _: None
) -> list[Finding]:
    """Checks store, KFP, images, secrets, node pools and quotas.

    Args:
        source: the federation file.
        where: where Kubeflow is.
        store: URI of the store instead of the federation's, such as one that this machine can reach.
        listener: receives each finding as soon as it is made.

    Raises:
        FederationError: the file itself is wrong.
    """
    federation = read_source(source)
    uri = chosen_uri(store, federation.store_uri)
    findings: list[Finding] = []
    parts: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: check_store(federation, uri, where),
        lambda: check_datasets(federation, uri, where),
        lambda: _check_kfp(where),
        lambda: _check_cluster(federation, uri, where),
    )
    for part in parts:
        for finding in part():
            findings.append(finding)
            listener(finding)
    return findings


def check_startable(federation: Federation, pod_uri: str, where: Where) -> None:
    """Refuses a federation whose pods could never start, or whose updates would be refused.

    A store or a cluster that does not answer does not lead to a refusal.

    Args:
        federation: the federation.
        pod_uri: URI of its store, as pods reach it.
        where: where Kubeflow is.

    Raises:
        InputError: a learner is not enrolled, the namespace, a dataset or a Secret is missing, or a step fits on no
            node.
    """
    findings: list[Finding] = []
    with contextlib.suppress(ClusterError, StoreError), reachable_store(pod_uri, where) as uri:
        enrolled = list(check_enrolment(federation, uri))
        findings += [finding for finding in enrolled if finding.subject != "store"]
        if findings == enrolled:  # the store answers
            findings += check_datasets(federation, pod_uri, where)
    with contextlib.suppress(ClusterError):  # listing nodes may be forbidden: then `watch` shows pods that wait
        cluster = open_kubernetes(where)
        if (missing := missing_namespace(cluster)) is not None:
            raise InputError(missing.what, where="--namespace", remedy=missing.remedy)
        findings += [*check_secrets(federation, cluster, find_signers(federation, pod_uri, where))]
        findings += check_nodes(federation, list_nodes(cluster))
    for finding in findings:
        if finding.level == "error":
            remedy = f"{finding.remedy.rstrip('.')}. Or use --force to submit anyway."
            raise InputError(finding.what, where=finding.subject, remedy=remedy)


def _check_kfp(where: Where) -> Iterator[Finding]:
    try:
        kfp = open_kfp(where)
    except FedpipeError as error:
        yield Finding("error", "kubeflow", str(error))
        return
    version = str(kfp.health.get("tag_name") or "of unknown version")
    yield Finding("ok", "kubeflow", f"Kubeflow Pipelines {version} answers at {kfp.host}")
    if (numbers := re.match(r"v?(\d+)\.(\d+)", version)) and not (2, 5) <= tuple(map(int, numbers.groups())) < (2, 18):
        yield Finding(
            "warning", "kubeflow", f"version {version} is outside the range 2.5 to 2.17 that the client supports",
            f"Use version {_TESTED_VERSION}, on which fedpipe's pipelines were run.",
        )  # fmt: skip


def missing_namespace(cluster: Kubernetes) -> Finding | None:
    """Returns the finding about a namespace that does not exist: Kubernetes lists its pods as none.

    Args:
        cluster: the cluster, and the namespace.
    """
    core, name = cluster.core, cluster.namespace
    try:
        with cluster_errors("Kubernetes"):
            core.read_namespace(name, _request_timeout=REQUEST_SECONDS)
    except ClusterError as error:
        if error.status != 404:  # perhaps it may not be read
            return None
        names: list[str] = []
        with contextlib.suppress(ClusterError), cluster_errors("namespaces"):
            names = [one.metadata.name for one in core.list_namespace(_request_timeout=REQUEST_SECONDS).items]
        remedy = suggestion(name, names, listed="Choose one of") if names else "Check --namespace."
        return Finding("error", "kubernetes", f"there is no namespace {name!r}", remedy)
    return None


def _check_cluster(federation: Federation, pod_uri: str, where: Where) -> Iterator[Finding]:
    try:
        cluster = open_kubernetes(where)
        with cluster_errors("Kubernetes"):
            cluster.core.list_namespaced_pod(cluster.namespace, limit=1, _request_timeout=REQUEST_SECONDS)
    except FedpipeError as error:
        yield Finding("error", "kubernetes", str(error))
        return
    if (missing := missing_namespace(cluster)) is not None:
        yield missing
        return
    yield Finding("ok", "kubernetes", f"answers; runs are in namespace {cluster.namespace}")
    yield from check_launcher(cluster, pod_uri)
    yield from check_retries(cluster, where.kfp_namespace)
    yield from check_pace(cluster, where.kfp_namespace)
    yield from check_secrets(federation, cluster, find_signers(federation, pod_uri, where))
    nodes: list[Node] | None = None
    try:
        nodes = list_nodes(cluster)
    except ClusterError as error:
        yield Finding("warning", "nodes", f"cannot be listed: {error.what}", "Ask for permission to list nodes.")
    yield from check_images(federation, cluster, nodes or [])
    if nodes is not None:
        yield from check_nodes(federation, nodes)
    yield from check_quotas(federation, cluster)
