"""Checks the namespace's quotas."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from fedpipe.errors import ClusterError
from fedpipe.federation.federation import Federation
from fedpipe.kubeflow.clients import Kubernetes, cluster_errors
from fedpipe.kubeflow.doctor.finding import REQUEST_SECONDS, Finding
from fedpipe.kubeflow.doctor.nodes import Requests, at_once, format_amount, placements_of, requests_of


def check_quotas(federation: Federation, cluster: Kubernetes) -> Iterator[Finding]:
    """Checks that quotas allow the requests of all learners of a session, or those of the largest step."""
    try:
        with cluster_errors("quotas"):
            quotas = cluster.core.list_namespaced_resource_quota(
                cluster.namespace, _request_timeout=REQUEST_SECONDS
            ).items
    except ClusterError as error:
        yield Finding("warning", "quotas", f"cannot be listed: {error.what}", "Ask for permission to list quotas.")
        return
    placements = [placement for _, placement in placements_of(federation)]
    requests = [requests_of(one) for one in (at_once(federation) if federation.in_sessions else placements)]
    for quota in quotas:
        yield _check_quota(quota, requests, in_sessions=federation.in_sessions)


def _check_quota(quota: Any, requests: list[Requests], *, in_sessions: bool) -> Finding:
    from kubernetes.utils.quantity import parse_quantity

    too_small, in_use = [], []
    for name, hard in (quota.status.hard or {}).items():
        resource = name.removeprefix("requests.")
        amounts = [requested.get(resource, Decimal(0)) for requested in requests]
        needed = sum(amounts, Decimal(0)) if in_sessions else max(amounts)
        limit, used = parse_quantity(hard), parse_quantity((quota.status.used or {}).get(name, "0"))
        line = f"{format_amount(resource, needed)} {name} needed, {format_amount(resource, limit)} allowed"
        if needed > limit:
            too_small.append(line)
        elif needed > limit - used:
            in_use.append(f"{line}, {format_amount(resource, used)} used now")
    subject = f"quota {quota.metadata.name}"
    if too_small:
        needed_by = "by the pods of a session at the same time" if in_sessions else "by the largest step"
        remedy = "Raise it, or set training.rounds_per_step to 1." if in_sessions else "Raise it."
        return Finding("error", subject, f"{'; '.join(too_small)}, {needed_by}", remedy)
    if in_use:
        return Finding("warning", subject, "; ".join(in_use), "Raise it, or let steps wait until others have ended.")
    return Finding("ok", subject, "is large enough")
