"""Checks whether steps fit on the nodes of the cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import yaml

from fedpipe.federation.federation import Federation
from fedpipe.federation.placement import NodeExpression, Placement
from fedpipe.kubeflow.clients import Kubernetes, mapped
from fedpipe.kubeflow.doctor.finding import SECONDS, Finding


class Node(NamedTuple):
    """A node of the cluster: its labels, taints, room and images."""

    name: str
    labels: Mapping[str, str]
    taints: tuple[Any, ...]
    room: Mapping[str, Decimal]
    images: tuple[str, ...]


def find_nodes(cluster: Kubernetes) -> list[Node]:
    """List the nodes of the cluster. Raises ClusterError."""
    from kubernetes.utils.quantity import parse_quantity

    with mapped("nodes"):
        found = cluster.core.list_node(_request_timeout=SECONDS).items
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


def check_pools(federation: Federation, nodes: list[Node]) -> Iterator[Finding]:
    """Whether each learner's steps could ever be placed."""
    for who, placement in placements_of(federation):
        yield _placed(who, placement, nodes)
    if federation.in_sessions:
        yield from _together(federation, nodes)


def _together(federation: Federation, nodes: list[Node]) -> Iterator[Finding]:
    """Whether learners that share nodes want no more at the same time, as in a session, than these nodes have."""
    learners = [
        (requests_of(placement), frozenset(node.name for node in _fitting(placement, nodes)))
        for _, placement in placements_of(federation)[: len(federation.learners)]
    ]
    for pool in sorted({names for _, names in learners if names}, key=sorted):
        sharing = [wanted for wanted, names in learners if names <= pool and names]
        members = [node for node in nodes if node.name in pool]
        short = []
        for resource in sorted({name for wanted in sharing for name in wanted}):
            asked = sum((wanted.get(resource, Decimal(0)) for wanted in sharing), Decimal(0))
            there = sum((node.room.get(resource, Decimal(0)) for node in members), Decimal(0))
            if asked > there:
                short.append(f"{amount_text(resource, asked)} {resource} wanted, {amount_text(resource, there)} there")
        if short:
            yield Finding(
                "warning", f"{len(sharing)} learners of {', '.join(sorted(pool)[:3])}{' ...' if len(pool) > 3 else ''}",
                f"{'; '.join(short)}, at the same time, as a session needs them",
                "Rounds go on without those that wait. Unless the pool grows by itself, give it more nodes, or set "
                "training.rounds_per_step to 1: then trainings take turns.",
            )  # fmt: skip


def placements_of(federation: Federation) -> list[tuple[str, Placement]]:
    """Who is placed how: each learner's heaviest kind of step, and the coordinator's kinds of which the file tells."""
    kind = "learn" if federation.in_sessions else "train"
    by_kind = {str(name): placement for name, placement in federation.placement.items()}
    found = [(m.name, m.placement.over(by_kind.get(kind, Placement()))) for m in federation.learners]
    found += [(f"steps {name}", p) for name, p in by_kind.items() if name not in (kind, "vote", "score")]
    return found


def _placed(who: str, placement: Placement, nodes: list[Node]) -> Finding:
    wanted = requests_of(placement)
    labels = ", ".join(f"{key}={value}" for key, value in placement.node_selector.items())
    matching = [node for node in nodes if _matches(placement, node.labels)]
    if not matching:
        what = f"no node has the labels {labels}" if labels else "no node has what the affinity asks"
        known = sorted({f"{k}={v}" for n in nodes for k, v in n.labels.items() if k in placement.node_selector})
        seen = f" Nodes have {', '.join(known)}." if known else ""
        return Finding("error", who, what, f"Label a node pool so, or change the placement.{seen}")
    tolerated = [node for node in matching if not _untolerated(placement, node)]
    if not tolerated:
        taint = _untolerated(placement, matching[0])[0]
        toleration = {"key": taint.key, "effect": taint.effect}
        toleration |= {"value": taint.value} if taint.value else {"operator": "Exists"}
        shown = yaml.safe_dump([toleration], default_flow_style=True, width=1000).strip()
        return Finding(
            "error", who, f"the taint {taint.key}={taint.value or ''}:{taint.effect} of its nodes is not tolerated",
            f"Add to its placement: tolerations: {shown}",
        )  # fmt: skip
    fitting = _fitting(placement, tolerated)
    asked = (
        ", ".join(f"{amount_text(name, amount)} {name}" for name, amount in wanted.items()) or "nothing in particular"
    )
    if not fitting:
        most = {name: max(node.room.get(name, Decimal(0)) for node in tolerated) for name in wanted}
        short = ", ".join(f"{amount_text(n, most[n])} {n}" for n, v in wanted.items() if most[n] < v)
        what = f"asks for {asked}; its nodes have at most {short}" if short else f"no one node has {asked} together"
        return Finding("error", who, what, "Ask for less, or give the pool larger nodes.")
    return Finding("ok", who, f"fits on {len(fitting)} of {len(nodes)} nodes: {asked}")


def _fitting(placement: Placement, nodes: list[Node]) -> list[Node]:
    """Nodes on which a pod could run, were they empty."""
    wanted = requests_of(placement)
    return [
        node for node in nodes
        if _matches(placement, node.labels) and not _untolerated(placement, node)
        and all(node.room.get(resource, Decimal(0)) >= amount for resource, amount in wanted.items())
    ]  # fmt: skip


def requests_of(placement: Placement) -> dict[str, Decimal]:
    """What a pod asks of its node: cores, bytes and accelerators by resource name."""
    from kubernetes.utils.quantity import parse_quantity

    asked = {"cpu": placement.cpu_request or placement.cpu, "memory": placement.memory_request or placement.memory}
    found = {name: parse_quantity(_as_kubernetes(value)) for name, value in asked.items() if value}
    if placement.accelerator:
        found[placement.accelerator.type] = Decimal(placement.accelerator.count)
    return found


def _as_kubernetes(value: str) -> str:
    return re.sub(r"K$", "k", value)  # KFP writes kilobytes with a large K


def amount_text(name: str, amount: Decimal) -> str:
    """Bytes in Gi, all else as a number."""
    return f"{float(amount) / 2**30:.3g}Gi" if name == "memory" else f"{amount.normalize():f}"


def _matches(placement: Placement, labels: Mapping[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in placement.node_selector.items()):
        return False
    needed = [affinity for affinity in placement.affinity if not affinity.weight]
    return all(_true(expression, labels) for affinity in needed for expression in affinity.expressions)


def _true(expression: NodeExpression, labels: Mapping[str, str]) -> bool:
    """A requirement of a node selector; Kubernetes compares Gt and Lt as integers."""
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


def _untolerated(placement: Placement, node: Node) -> list[Any]:
    return [taint for taint in node.taints if not any(_tolerates(t, taint) for t in placement.tolerations)]


def _tolerates(toleration: Any, taint: Any) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.key and toleration.key != taint.key:
        return False
    return toleration.operator == "Exists" or (bool(toleration.key) and toleration.value == (taint.value or ""))
