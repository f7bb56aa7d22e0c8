"""Checks the namespace's quotas."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from fedpipe.errors import ClusterError
from fedpipe.federation.federation import Federation
from fedpipe.kubeflow.clients import Kubernetes, mapped
from fedpipe.kubeflow.doctor.finding import SECONDS, Finding
from fedpipe.kubeflow.doctor.nodes import amount_text, placements_of, requests_of


def check_quotas(federation: Federation, cluster: Kubernetes) -> Iterator[Finding]:
    """Whether the namespace lets all learners of a session, or the largest step, have what they ask for."""
    from kubernetes.utils.quantity import parse_quantity

    try:
        with mapped("quotas"):
            quotas = cluster.core.list_namespaced_resource_quota(cluster.namespace, _request_timeout=SECONDS).items
    except ClusterError as error:
        yield Finding("warning", "quotas", f"cannot be looked at: {error.what}")
        return
    asked = [requests_of(placement) for _, placement in placements_of(federation)]
    for quota in quotas:
        subject = f"quota {quota.metadata.name}"
        short, tight = [], []
        for name, hard in (quota.status.hard or {}).items():
            resource = name.removeprefix("requests.")
            amounts = [one.get(resource, Decimal(0)) for one in asked]
            wanted = sum(amounts, Decimal(0)) if federation.in_sessions else max(amounts)
            limit, used = parse_quantity(hard), parse_quantity((quota.status.used or {}).get(name, "0"))
            line = f"{amount_text(resource, wanted)} {name} wanted, {amount_text(resource, limit)} allowed"
            if wanted > limit:
                short.append(line)
            elif wanted > limit - used:
                tight.append(f"{line}, {amount_text(resource, used)} used now")
        when = "at the same time, as a session needs them" if federation.in_sessions else "by the largest step"
        if short:
            remedy = "Raise it, or set training.rounds_per_step to 1." if federation.in_sessions else "Raise it."
            yield Finding("error", subject, f"{'; '.join(short)}, {when}", remedy)
        elif tight:
            yield Finding("warning", subject, "; ".join(tight), "Steps wait until others have ended.")
        else:
            yield Finding("ok", subject, "allows it")
