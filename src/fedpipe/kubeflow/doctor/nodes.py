"""Checks whether steps fit on the nodes of the cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import yaml

from fedpipe.federation.federation import Federation
from fedpipe.federation.placement import NodeExpression, Placement
from fedpipe.kubeflow.clients import Kubernetes, cluster_errors
from fedpipe.kubeflow.doctor.finding import REQUEST_SECONDS, Finding

Requests = Mapping[str, Decimal]
"""Cores, bytes and accelerators by resource name."""


class Node(NamedTuple):
    """Describes a node of the cluster; its taints are those that keep pods away."""

    name: str
    labels: Mapping[str, str]
    taints: tuple[Any, ...]
    allocatable: Requests
    images: tuple[str, ...]


def list_nodes(cluster: Kubernetes) -> list[Node]:
    """Lists the nodes of the cluster. Raises ClusterError."""
    from kubernetes.utils.quantity import parse_quantity

    with cluster_errors("nodes"):
        found = cluster.core.list_node(_request_timeout=REQUEST_SECONDS).items
    return [
        Node(
            node.metadata.name,
            node.metadata.labels or {},
            tuple(t for t in node.spec.taints or () if t.effect in ("NoSchedule", "NoExecute")),
            {name: parse_quantity(value) for name, value in (node.status.allocatable or {}).items()},
            tuple(name for image in node.status.images or () for name in image.names or ()),
        )
        for node in found
    ]


def check_nodes(federation: Federation, nodes: list[Node]) -> Iterator[Finding]:
    """Checks that each step fits on a node, and that the learners of a session fit at the same time."""
    for owner, placement in placements_of(federation):
        yield _check_placement(owner, placement, nodes)
    if federation.in_sessions:
        yield from _check_session(federation, nodes)
        yield from _check_start(federation, nodes)


def placements_of(federation: Federation) -> list[tuple[str, Placement]]:
    """Lists owners and placements: the heaviest step of each learner, then the coordinator's steps in the file."""
    kind = "learn" if federation.in_sessions else "train"
    found = [(member.name, federation.placement_of(kind, member.name)) for member in federation.pods]
    steps = [str(name) for name in federation.placement if name not in (kind, "vote", "score")]
    return found + [(f"steps {name}", federation.placement_of(name)) for name in steps]


def requests_of(placement: Placement) -> Requests:
    """Returns the resources that a pod requests from its node."""
    from kubernetes.utils.quantity import parse_quantity

    values = {"cpu": placement.cpu_request or placement.cpu, "memory": placement.memory_request or placement.memory}
    requests = {name: parse_quantity(_kubernetes_unit(value)) for name, value in values.items() if value}
    if placement.accelerator:
        requests[placement.accelerator.type] = Decimal(placement.accelerator.count)
    return requests


def _kubernetes_unit(value: str) -> str:
    return re.sub(r"K$", "k", value)  # KFP writes kilobytes with a capital K


def format_amount(resource: str, amount: Decimal) -> str:
    """Formats memory in Gi, and other resources as plain numbers."""
    return f"{float(amount) / 2**30:.3g}Gi" if resource == "memory" else f"{amount.normalize():f}"


def _check_placement(owner: str, placement: Placement, nodes: list[Node]) -> Finding:
    selected = [node for node in nodes if _selects(placement, node.labels)]
    if not selected:
        return _no_selected_node(owner, placement, nodes)
    tolerated = [node for node in selected if not _untolerated_taints(placement, node)]
    if not tolerated:
        return _no_tolerated_node(owner, _untolerated_taints(placement, selected[0])[0])
    requests = requests_of(placement)
    fitting = [node for node in tolerated if _has_room(node, requests)]
    requested = ", ".join(f"{format_amount(name, amount)} {name}" for name, amount in requests.items())
    if fitting:
        return Finding("ok", owner, f"fits on {len(fitting)} of {len(nodes)} nodes: {requested or 'requests nothing'}")
    most = {name: max(node.allocatable.get(name, Decimal(0)) for node in tolerated) for name in requests}
    short = ", ".join(f"{format_amount(n, most[n])} {n}" for n, amount in requests.items() if most[n] < amount)
    what = f"requests {requested}; its nodes have at most {short}" if short else f"no single node has {requested}"
    return Finding("error", owner, what, "Request less, or add larger nodes to the pool.")


def _no_selected_node(owner: str, placement: Placement, nodes: list[Node]) -> Finding:
    labels = ", ".join(f"{key}={value}" for key, value in placement.node_selector.items())
    what = f"no node has the labels {labels}" if labels else "no node matches the affinity"
    present = sorted({f"{k}={v}" for node in nodes for k, v in node.labels.items() if k in placement.node_selector})
    hint = f" Nodes have {', '.join(present)}." if present else ""
    return Finding("error", owner, what, f"Label a node pool accordingly, or change the placement.{hint}")


def _no_tolerated_node(owner: str, taint: Any) -> Finding:
    toleration = {"key": taint.key, "effect": taint.effect}
    toleration |= {"value": taint.value} if taint.value else {"operator": "Exists"}
    yaml_line = yaml.safe_dump([toleration], default_flow_style=True, width=1000).strip()
    return Finding(
        "error", owner, f"the taint {taint.key}={taint.value or ''}:{taint.effect} of its nodes is not tolerated",
        f"Add to its placement: tolerations: {yaml_line}",
    )  # fmt: skip


def _check_session(federation: Federation, nodes: list[Node]) -> Iterator[Finding]:
    """Checks that learners with the same nodes do not request more in total than these nodes have."""
    learners = [
        (requests_of(placement), frozenset(node.name for node in _fitting_nodes(placement, nodes)))
        for _, placement in placements_of(federation)[: len(federation.pods)]
    ]
    for pool in sorted({names for _, names in learners if names}, key=sorted):
        sharing = [requests for requests, names in learners if names <= pool and names]
        members = [node for node in nodes if node.name in pool]
        short = []
        for resource in sorted({name for requests in sharing for name in requests}):
            needed = sum((requests.get(resource, Decimal(0)) for requests in sharing), Decimal(0))
            available = sum((node.allocatable.get(resource, Decimal(0)) for node in members), Decimal(0))
            if needed > available:
                needed_text, available_text = format_amount(resource, needed), format_amount(resource, available)
                short.append(f"{needed_text} {resource} needed, {available_text} available")
        if short:
            yield Finding(
                "warning", f"{len(sharing)} learners of {', '.join(sorted(pool)[:3])}{' ...' if len(pool) > 3 else ''}",
                f"{'; '.join(short)}, by the learners of a session at the same time",
                "Rounds continue without the learners that wait. Unless the pool scales by itself, add nodes, or set "
                "training.rounds_per_step to 1 so that trainings take turns.",
            )  # fmt: skip


def at_once(federation: Federation) -> list[Placement]:
    """Lists the placements of all pods that a session has at the same time."""
    learners = [federation.placement_of("learn", learner.name) for learner in federation.pods]
    return learners + [federation.placement_of(step) for step in federation.beside_learners]


def _check_start(federation: Federation, nodes: list[Node]) -> Iterator[Finding]:
    """Checks that the nodes have room for the steps that learners await in their pods, next to these pods."""
    if len(federation.beside_learners) == 1:
        return
    needed: dict[str, Decimal] = {}
    for placement in at_once(federation):
        for resource, amount in requests_of(placement).items():
            needed[resource] = needed.get(resource, Decimal(0)) + amount
    available = {name: sum((n.allocatable.get(name, Decimal(0)) for n in nodes), Decimal(0)) for name in needed}
    short = [name for name in ("cpu", "memory") if needed.get(name, Decimal(0)) > available.get(name, Decimal(0))]
    if short:
        text = "; ".join(
            f"{format_amount(n, needed[n])} {n} needed, {format_amount(n, available[n])} available" for n in short
        )
        yield Finding(
            "warning", "steps that start together", f"{text}, by shard, initialise, coordinate and the learners",
            "Unless the pool scales by itself, set placement.learn.early to false, so that learners start later.",
        )  # fmt: skip


def _fitting_nodes(placement: Placement, nodes: list[Node]) -> list[Node]:
    """Lists the nodes on which a pod could run if they were empty."""
    requests = requests_of(placement)
    return [
        node for node in nodes
        if _selects(placement, node.labels) and not _untolerated_taints(placement, node) and _has_room(node, requests)
    ]  # fmt: skip


def _has_room(node: Node, requests: Requests) -> bool:
    return all(node.allocatable.get(resource, Decimal(0)) >= amount for resource, amount in requests.items())


def _selects(placement: Placement, labels: Mapping[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in placement.node_selector.items()):
        return False
    required = [affinity for affinity in placement.affinity if not affinity.weight]
    return all(_matches(expression, labels) for affinity in required for expression in affinity.expressions)


def _matches(expression: NodeExpression, labels: Mapping[str, str]) -> bool:
    """Evaluates one expression of a node selector; Kubernetes compares Gt and Lt as integers."""
    value = labels.get(expression.key)
    match expression.operator:
        case "In":
            return value in expression.values
        case "NotIn":
            return value not in expression.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    if value is None or not re.fullmatch(r"-?\d+", value):
        return False
    bound = int(expression.values[0])
    return int(value) > bound if expression.operator == "Gt" else int(value) < bound


def _untolerated_taints(placement: Placement, node: Node) -> list[Any]:
    return [taint for taint in node.taints if not any(_tolerates(t, taint) for t in placement.tolerations)]


def _tolerates(toleration: Any, taint: Any) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.key and toleration.key != taint.key:
        return False
    return toleration.operator == "Exists" or (bool(toleration.key) and toleration.value == (taint.value or ""))
