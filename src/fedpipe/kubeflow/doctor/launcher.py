"""Checks where KFP's launcher puts the artifacts of runs: its ConfigMap in the namespace of the pods.

Source: `defaultPipelineRoot` and `providers` of `kfp-launcher` (kubeflow/pipelines, object store configuration).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from fedpipe.errors import ClusterError
from fedpipe.federation.names import KUBEFLOWS_SECRET
from fedpipe.kubeflow.clients import Kubernetes, cluster_errors
from fedpipe.kubeflow.doctor.finding import REQUEST_SECONDS, Finding
from fedpipe.kubeflow.doctor.secrets import read_secret
from fedpipe.store import endpoint_of

LAUNCHER = "kfp-launcher"
_ROOT = re.compile(r"(minio|s3|gs)://[^/]+")
_KEYS = {"accessKeyKey": "accesskey", "secretKeyKey": "secretkey"}


def check_launcher(cluster: Kubernetes, pod_uri: str) -> Iterator[Finding]:
    """Checks that artifacts go to a bucket, and that the Secret for it is there.

    Args:
        cluster: the cluster.
        pod_uri: URI of the federation's store, as pods reach it; the remedy puts artifacts in its bucket.
    """
    remedy = f"Put them in the store's bucket: {_command(cluster.namespace, pod_uri)}"
    if not pod_uri.startswith("s3://"):
        remedy = "Create it with `defaultPipelineRoot`, or pass --pipeline-root when you submit."
    try:
        with cluster_errors(LAUNCHER):
            read = cluster.core.read_namespaced_config_map(
                LAUNCHER, cluster.namespace, _request_timeout=REQUEST_SECONDS
            )
    except ClusterError as error:
        yield Finding("warning", LAUNCHER, f"cannot be read: {error.what}; KFP uses its own defaults", remedy)
        return
    settings = read.data or {}
    root = settings.get("defaultPipelineRoot", "")
    if not _ROOT.match(root):
        wrong = f"defaultPipelineRoot {root!r} is not a valid URI for artifacts"
        yield Finding("warning", LAUNCHER, wrong if root else "has no defaultPipelineRoot", remedy)
        return
    yield Finding("ok", LAUNCHER, f"artifacts go to {root}")
    yield from _check_provider(cluster, settings.get("providers", ""), root.partition(":")[0])


def settings_for(pod_uri: str) -> dict[str, str]:
    """Returns settings that put artifacts in the bucket of a store, with the Secret that KFP itself uses.

    >>> settings_for("s3://bucket/prefix?endpoint=http://minio.store:9000")["defaultPipelineRoot"]
    's3://bucket/artifacts'
    """
    endpoint, query = urlsplit(endpoint_of(pod_uri)), dict(parse_qsl(urlsplit(pod_uri).query))
    provider = {
        "endpoint": endpoint.netloc, "disableSSL": endpoint.scheme == "http",
        "region": query.get("region", "us-east-1"),
        "credentials": {"fromEnv": False, "secretRef": {"secretName": KUBEFLOWS_SECRET, **_KEYS}},
    }  # fmt: skip
    root = f"s3://{urlsplit(pod_uri).netloc}/artifacts"
    return {"defaultPipelineRoot": root, "providers": json.dumps({"s3": {"default": provider}})}


def _command(namespace: str, pod_uri: str) -> str:
    literals = [f"--from-literal={name}={value}" for name, value in settings_for(pod_uri).items()]
    made = shlex.join(["kubectl", "create", "configmap", LAUNCHER, "-n", namespace, *literals])
    return f"{made} --dry-run=client -o yaml | kubectl apply -f -"


def _check_provider(cluster: Kubernetes, text: str, scheme: str) -> Iterator[Finding]:
    """Checks the Secret of the provider for artifacts; without one, pods have the identity of their account."""
    try:
        given: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        yield Finding("warning", LAUNCHER, "its `providers` are not YAML", "Write them as KFP's documentation says.")
        return
    for name in (scheme, "default", "credentials", "secretRef"):
        given = given.get(name) if isinstance(given, dict) else None
    if not isinstance(given, dict) or not given.get("secretName"):
        return
    secret, keys = str(given["secretName"]), [str(given.get(key, own)) for key, own in _KEYS.items()]
    subject = f"secret {secret}"
    try:
        data = read_secret(cluster, secret)
    except ClusterError as error:
        if error.status != 403:
            yield Finding("warning", subject, f"of {LAUNCHER}: {error.what}", "Create it in the namespace of the pods.")
        return
    if missing := [key for key in keys if not data.get(key)]:
        yield Finding("warning", subject, f"of {LAUNCHER}: lacks {' and '.join(missing)}", "Add them.")
