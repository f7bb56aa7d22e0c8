"""Checks whether an image can be pulled, by the registry's API (OCI Distribution Specification 1.1, section "Pull")."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import urlencode

import urllib3

from fedpipe.store.network import Pool

_ACCEPT = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1", "oci.image.manifest.v1", "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)  # fmt: skip
RegistryAnswer = tuple[Literal["ok", "warning", "error"], str, str]


class Reference(NamedTuple):
    """Holds the parts of an image's name; an empty `registry` stands for the nodes' default."""

    registry: str
    repository: str
    version: str


def parse_reference(image: str) -> Reference:
    """Splits `[host[:port]/]repository[:tag][@digest]` into its parts."""
    name, at, digest = image.partition("@")
    head, slash, rest = name.partition("/")
    registry = head if slash and re.search(r"[.:]|^localhost$", head) else ""
    path = rest if registry else name
    repository, colon, tag = path.rpartition(":")
    return Reference(registry, repository if colon else path, digest if at else (tag if colon else "latest"))


def find_image(image: str, auths: Mapping[str, Mapping[str, Any]]) -> RegistryAnswer:
    """Requests the image's manifest from its registry.

    Args:
        image: its name.
        auths: `auths` of Docker's configuration: credentials by registry.

    Returns:
        The level, the observation and the remedy of a finding.
    """
    reference = parse_reference(image)
    if not reference.registry:
        what = "has no registry in its name, and no node has it"
        return "warning", what, "Set `images.registry` to the registry that you pushed it to."
    path = f"{reference.registry}/v2/{reference.repository}/manifests/{reference.version}"
    pool = Pool(timeout=urllib3.Timeout(10), retries=False)
    basic = _basic_header(auths.get(reference.registry, {}))
    try:
        answer = _request_manifest(pool, path, basic)
    except urllib3.exceptions.HTTPError as error:
        why = re.sub(r"<[^>]*>:? ?", "", str(error))[:200]
        return "warning", f"its registry cannot be reached from here: {why}", "Check whether the nodes can reach it."
    if answer.status == 200:
        return "ok", "can be pulled", ""
    if answer.status in (401, 403):
        remedy = "Name a Secret with credentials in `placement.pull_secrets`."
        return "error", f"the registry refuses access (HTTP {answer.status})", remedy
    if answer.status == 404:
        return "error", "the registry does not have it", "Push it: REGISTRY=... images/build --push"
    return "warning", f"the registry answers with HTTP {answer.status}", "Try again later."


def _basic_header(auth: Mapping[str, Any]) -> dict[str, str]:
    token = auth.get("auth") or ""
    if not token and auth.get("username"):
        token = base64.b64encode(f"{auth['username']}:{auth.get('password', '')}".encode()).decode()
    return {"Authorization": f"Basic {token}"} if token else {}


def _request_manifest(pool: Pool, path: str, basic: dict[str, str]) -> Any:
    """Returns the answer to HEAD, with a token if required; local registries may also use http."""
    local = re.match(r"(localhost|127\.|10\.|192\.168\.)", path)
    for scheme in ("https", "http") if local else ("https",):
        try:
            answer = pool.request("HEAD", f"{scheme}://{path}", headers={"Accept": _ACCEPT, **basic})
        except urllib3.exceptions.SSLError:
            if scheme == "https" and local:
                continue
            raise
        challenge = answer.headers.get("WWW-Authenticate", "")
        if answer.status == 401 and challenge.lower().startswith("bearer "):
            bearer = _bearer(pool, challenge, basic)
            if bearer:
                headers = {"Accept": _ACCEPT, "Authorization": f"Bearer {bearer}"}
                return pool.request("HEAD", f"{scheme}://{path}", headers=headers)
        return answer
    raise urllib3.exceptions.HTTPError("no answer")


def _bearer(pool: Pool, challenge: str, basic: dict[str, str]) -> str:
    """Requests a token from the realm in the registry's challenge (Docker's token authentication)."""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = fields.pop("realm", "")
    if not re.match(r"https?://", realm):
        return ""
    answer = pool.request("GET", f"{realm}?{urlencode(fields)}", headers=basic)
    try:
        content = json.loads(answer.data)
        return str(content.get("token") or content.get("access_token") or "")
    except (ValueError, AttributeError):
        return ""
