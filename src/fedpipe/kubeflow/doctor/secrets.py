"""Checks Secrets and images."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import msgspec

from fedpipe.compiled.compiler import images_of
from fedpipe.errors import ClusterError
from fedpipe.federation.federation import Federation
from fedpipe.kubeflow.clients import Kubernetes, mapped
from fedpipe.kubeflow.doctor.finding import COORDINATOR, SECONDS, Finding
from fedpipe.kubeflow.doctor.nodes import Node
from fedpipe.kubeflow.images import find_image

_KEYS, _SIGNING_KEY = ("accesskey", "secretkey"), "signingkey"


def check_secrets(federation: Federation, cluster: Kubernetes, signers: set[str]) -> Iterator[Finding]:
    """Check that each Secret exists and has its owner's keys."""
    owners: dict[str, list[str]] = {federation.secret: [COORDINATOR]}
    for learner in federation.learners:
        owners.setdefault(learner.secret or federation.secret, []).append(learner.name)
    for name, who in owners.items():
        shared = f"of {', '.join(who)}"
        try:
            with mapped(f"secret {name}"):
                found = cluster.core.read_namespaced_secret(name, cluster.namespace, _request_timeout=SECONDS)
        except ClusterError as error:
            if error.status == 403:
                yield Finding("warning", f"secret {name}", f"{shared}: may not be looked at from here")
                continue
            remedy = f"kubectl apply -n {cluster.namespace} -f keys/NAME.secret.yaml, as `fedpipe enroll` writes it."
            yield Finding("error", f"secret {name}", f"{shared}: {error.what}", remedy)
            continue
        keys = (*_KEYS, _SIGNING_KEY) if signers.intersection(who) else _KEYS
        missing = [key for key in keys if not (found.data or {}).get(key)]
        if missing:
            yield Finding(
                "error", f"secret {name}", f"{shared}: lacks the key {' and '.join(missing)}",
                f"It needs {' and '.join(_KEYS)}, and {_SIGNING_KEY} where its owner is enrolled.",
            )  # fmt: skip
        else:
            yield Finding("ok", f"secret {name}", shared)


def check_images(federation: Federation, cluster: Kubernetes, nodes: list[Node]) -> Iterator[Finding]:
    """Check that each image is on a node or in its registry."""
    auths = _pull_credentials(
        cluster, {name for learner in federation.learners for name in learner.placement.pull_secrets}
    )
    for image in images_of(federation):
        held = [node.name for node in nodes if any(_same_image(image, name) for name in node.images)]
        if held:
            yield Finding("ok", f"image {image}", f"is on {', '.join(held)}")
            continue
        level, what, remedy = find_image(image, auths)
        yield Finding(level, f"image {image}", what, remedy)


def _same_image(wanted: str, name: str) -> bool:
    return name == wanted or name.endswith(f"/{wanted}")


def _pull_credentials(cluster: Kubernetes, names: set[str]) -> dict[str, dict[str, Any]]:
    """What pull secrets say of registries: `auths` of Docker's configuration."""
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(names):
        try:
            with mapped(f"secret {name}"):
                secret = cluster.core.read_namespaced_secret(name, cluster.namespace, _request_timeout=SECONDS)
            found |= msgspec.json.decode(base64.b64decode((secret.data or {})[".dockerconfigjson"]))["auths"]
        except (ClusterError, KeyError, ValueError, msgspec.DecodeError):
            continue  # without it the registry itself says that it may not be read
    return found
