"""What keeps a federation from running on a cluster, found before it runs: nothing is changed.

Each part is looked at on its own: a store that cannot be reached does not hide a node pool that is missing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from fedpipe.errors import ClusterError, FedpipeError, InputError, StoreError
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import read_federation
from fedpipe.kubeflow.clients import Kubernetes, mapped, open_kfp, open_kubernetes
from fedpipe.kubeflow.doctor.finding import SECONDS, Finding
from fedpipe.kubeflow.doctor.nodes import Node, check_pools, find_nodes
from fedpipe.kubeflow.doctor.quotas import check_quotas
from fedpipe.kubeflow.doctor.secrets import check_images, check_secrets
from fedpipe.kubeflow.doctor.store import check_enrolment, check_store, signers_of
from fedpipe.kubeflow.forwarding import reached
from fedpipe.kubeflow.where import Where
from fedpipe.store import chosen_uri

_TESTED = "2.16"


def diagnose(
    source: str | Path, *, where: Where, store: str | None = None, listener: Callable[[Finding], None] = lambda _: None
) -> list[Finding]:
    """Looks at store, KFP, images, secrets, node pools and quotas.

    Args:
        source: the federation file.
        where: where Kubeflow is.
        store: URI of the store instead of the federation's, such as one that this machine can reach.
        listener: hears each finding at once.

    Raises:
        FederationError: the file itself is wrong.
    """
    federation = read_federation(Path(source))
    uri = chosen_uri(store, federation.store_uri)
    found: list[Finding] = []
    parts: tuple[Callable[[], Iterator[Finding]], ...] = (
        lambda: check_store(federation, uri, where),
        lambda: _check_kfp(where),
        lambda: _check_cluster(federation, uri, where),
    )
    for part in parts:
        for finding in part():
            found.append(finding)
            listener(finding)
    return found


def check_startable(federation: Federation, uri: str, where: Where) -> None:
    """Refuses a federation whose pods could never start or would not count, where store and Kubernetes can be asked.

    Args:
        federation: the federation.
        uri: of its store, as pods reach it.
        where: where Kubeflow is.

    Raises:
        InputError: a learner is not enrolled, a Secret lacks, or no node could ever fit a step.
    """
    findings: list[Finding] = []
    with contextlib.suppress(ClusterError, StoreError), reached(uri, where) as near:
        findings += [finding for finding in check_enrolment(federation, near) if finding.subject != "store"]
    with contextlib.suppress(ClusterError):  # nodes may not be looked at: pods will tell, and `watch` shows it
        cluster = open_kubernetes(where)
        findings += [*check_secrets(federation, cluster, signers_of(federation, uri, where))]
        findings += check_pools(federation, find_nodes(cluster))
    for finding in findings:
        if finding.level == "error":
            raise InputError(finding.what, where=finding.subject, remedy=f"{finding.remedy} Or --force.")


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
            "warning", "kubeflow", f"version {version} is outside of 2.5 to 2.17, for which the client is made",
            f"fedpipe's pipelines were run on {_TESTED}.",
        )  # fmt: skip


def _check_cluster(federation: Federation, uri: str, where: Where) -> Iterator[Finding]:
    try:
        cluster = open_kubernetes(where)
        with mapped("Kubernetes"):
            cluster.core.list_namespaced_pod(cluster.namespace, limit=1, _request_timeout=SECONDS)
    except FedpipeError as error:
        yield Finding("error", "kubernetes", str(error))
        return
    yield Finding("ok", "kubernetes", f"answers; runs are in namespace {cluster.namespace}")
    yield from _check_launcher(cluster)
    yield from check_secrets(federation, cluster, signers_of(federation, uri, where))
    nodes: list[Node] | None = None
    try:
        nodes = find_nodes(cluster)
    except ClusterError as error:
        yield Finding("warning", "nodes", f"cannot be looked at: {error.what}", "Ask for the right to list nodes.")
    yield from check_images(federation, cluster, nodes or [])
    if nodes is not None:
        yield from check_pools(federation, nodes)
    yield from check_quotas(federation, cluster)


def _check_launcher(cluster: Kubernetes) -> Iterator[Finding]:
    try:
        with mapped("kfp-launcher"):
            found = cluster.core.read_namespaced_config_map("kfp-launcher", cluster.namespace, _request_timeout=SECONDS)
    except ClusterError as error:
        remedy = "Make it with `defaultPipelineRoot`, or give --pipeline-root when you submit."
        yield Finding("warning", "kfp-launcher", f"is not to be read: {error.what}; KFP takes its own defaults", remedy)
        return
    root = (found.data or {}).get("defaultPipelineRoot", "")
    if not re.match(r"(minio|s3|gs)://[^/]+", root):
        what = f"defaultPipelineRoot {root!r} is no place for artifacts" if root else "sets no defaultPipelineRoot"
        yield Finding("warning", "kfp-launcher", what, "Such as s3://bucket/artifacts, with `providers` for its keys.")
    else:
        yield Finding("ok", "kfp-launcher", f"artifacts go to {root}")
