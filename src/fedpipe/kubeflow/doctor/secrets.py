"""Checks Secrets and images."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import msgspec

from fedpipe.codec import read_json
from fedpipe.compiled.compiler import images_of
from fedpipe.errors import ClusterError
from fedpipe.federation.federation import Federation
from fedpipe.federation.tracking import TRACKING_KEYS
from fedpipe.kubeflow.clients import Kubernetes, cluster_errors
from fedpipe.kubeflow.doctor.finding import REQUEST_SECONDS, THE_COORDINATOR, Finding
from fedpipe.kubeflow.doctor.nodes import Node
from fedpipe.kubeflow.images import find_image

_STORE_KEYS, _SIGNING_KEY = ("accesskey", "secretkey"), "signingkey"
_ADMINISTRATOR = "administrator"
"""The key of a learner's Secret with the public key of the administrator, for secure sums."""


def check_secrets(federation: Federation, cluster: Kubernetes, signers: set[str]) -> Iterator[Finding]:
    """Checks that each Secret exists and has its owners' keys.

    Args:
        federation: the federation.
        cluster: the cluster with the Secrets.
        signers: names of those whose Secret needs a signing key.
    """
    owners_of: dict[str, list[str]] = {federation.secret: [THE_COORDINATOR]}
    for learner in federation.pods:
        owners_of.setdefault(learner.secret or federation.secret, []).append(learner.name)
    for name, owners in owners_of.items():
        if not name:
            what = f"{', '.join(owners)}: the pods use the identity of their service account"
            yield Finding("ok", "no secret", what)
            continue
        keys = (*_STORE_KEYS, _SIGNING_KEY) if signers.intersection(owners) else _STORE_KEYS
        if federation.secure and owners != [THE_COORDINATOR]:
            keys = (*keys, _ADMINISTRATOR)
        yield _check_secret(cluster, name, owners, keys)
    if federation.tracking.secret:
        yield _check_tracking(cluster, federation.tracking.secret)


def _check_tracking(cluster: Kubernetes, name: str) -> Finding:
    """Checks the Secret of the tracking server; a run does without it, so nothing about it is an error."""
    subject = f"secret {name}"
    try:
        data = read_secret(cluster, name)
    except ClusterError as error:
        denied = error.status == 403
        what = "you are not allowed to read it" if denied else f"{error.what}; runs are not tracked where it is needed"
        remedy = (
            "" if denied else f"kubectl create secret generic {name} -n {cluster.namespace} --from-literal=token=..."
        )
        return Finding("warning", subject, f"of tracking: {what}", remedy)
    if data.get("token") or (data.get("username") and data.get("password")):
        return Finding("ok", subject, "of tracking")
    what = "of tracking: has neither `token` nor `username` and `password`"
    unknown = sorted(set(data) - set(TRACKING_KEYS))
    return Finding("warning", subject, what, f"Add them{f' instead of {unknown[0]!r}' if unknown else ''}.")


def _check_secret(cluster: Kubernetes, name: str, owners: list[str], keys: tuple[str, ...]) -> Finding:
    subject, of_owners = f"secret {name}", f"of {', '.join(owners)}"
    try:
        data = read_secret(cluster, name)
    except ClusterError as error:
        if error.status == 403:
            return Finding("warning", subject, f"{of_owners}: you are not allowed to read it")
        apply = f"kubectl apply -n {cluster.namespace} -f keys/NAME.secret.yaml"
        remedy = f"Apply the one that `fedpipe enroll` writes: {apply}"
        return Finding("error", subject, f"{of_owners}: {error.what}", remedy)
    missing = [key for key in keys if not data.get(key)]
    if missing:
        return Finding(
            "error", subject, f"{of_owners}: lacks {' and '.join(missing)}",
            f"Add {' and '.join(_STORE_KEYS)}, and {_SIGNING_KEY} if its owner is enrolled.",
        )  # fmt: skip
    return Finding("ok", subject, of_owners)


def check_images(federation: Federation, cluster: Kubernetes, nodes: list[Node]) -> Iterator[Finding]:
    """Checks that each image is on a node or in its registry."""
    placements = [*federation.placement.values(), *(learner.placement for learner in federation.learners)]
    pull_secrets = {name for placement in placements for name in placement.pull_secrets}
    credentials = _pull_credentials(cluster, pull_secrets)
    for image in images_of(federation):
        holders = [node.name for node in nodes if any(_same_image(image, name) for name in node.images)]
        if holders:
            yield Finding("ok", f"image {image}", f"is on {', '.join(holders)}")
            continue
        level, what, remedy = find_image(image, credentials)
        yield Finding(level, f"image {image}", what, remedy)


def _same_image(wanted: str, name: str) -> bool:
    return name == wanted or name.endswith(f"/{wanted}")


def _pull_credentials(cluster: Kubernetes, names: set[str]) -> dict[str, dict[str, Any]]:
    """Merges the credentials of pull secrets: `auths` of Docker's configuration, by registry."""
    credentials: dict[str, dict[str, Any]] = {}
    for name in sorted(names):
        try:
            data = read_secret(cluster, name)
            credentials |= read_json(base64.b64decode(data[".dockerconfigjson"]))["auths"]
        except (ClusterError, KeyError, ValueError, msgspec.DecodeError):
            continue  # without credentials, the registry's own answer becomes the finding
    return credentials


def read_secret(cluster: Kubernetes, name: str) -> dict[str, str]:
    """Returns the data of a Secret, base64-encoded. Raises ClusterError."""
    with cluster_errors(f"secret {name}"):
        secret = cluster.core.read_namespaced_secret(name, cluster.namespace, _request_timeout=REQUEST_SECONDS)
    return secret.data or {}
