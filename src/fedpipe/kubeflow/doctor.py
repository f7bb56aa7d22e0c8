"""What keeps a federation from running on a cluster, found before it runs: nothing is changed.

Each part is looked at on its own: a store that cannot be reached does not hide a node pool that is missing.
"""

from __future__ import annotations

import base64
import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import urllib3
import yaml

from fedpipe.enrolment import read_enrolled
from fedpipe.errors import ClusterError, FedpipeError, InputError, StoreError
from fedpipe.federation import Federation, NodeExpression, Placement
from fedpipe.federation_file import read_federation
from fedpipe.kubeflow.clients import Kubernetes, open_kfp, open_kubernetes, told
from fedpipe.kubeflow.compilation import images_of
from fedpipe.kubeflow.forwarding import reached
from fedpipe.kubeflow.registry import find_image
from fedpipe.kubeflow.where import Where
from fedpipe.store import chosen_uri, endpoint_of, open_store

_TESTED = "2.16"
_SKEW = 60.0
"""Seconds by which clocks may differ before it is told; S3 refuses requests from 15 minutes on."""
_KEYS, _SIGNING_KEY = ("accesskey", "secretkey"), "signingkey"
_COORDINATOR = "the coordinator"
_SECONDS = 20


class Finding(NamedTuple):
    """Something that was looked at: what it is, whether it is well, and what to do if it is not."""

    level: Literal["ok", "warning", "error"]
    subject: str
    what: str
    remedy: str = ""


class _Node(NamedTuple):
    name: str
    labels: Mapping[str, str]
    taints: tuple[Any, ...]
    room: Mapping[str, Decimal]
    images: tuple[str, ...]


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
        lambda: _of_store(federation, uri, where),
        lambda: _of_kfp(where),
        lambda: _of_cluster(federation, uri, where),
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
        findings += [finding for finding in _of_enrolment(federation, near) if finding.subject != "store"]
    with contextlib.suppress(ClusterError):  # nodes may not be looked at: pods will tell, and `watch` shows it
        cluster = open_kubernetes(where)
        findings += [*_of_secrets(federation, cluster, _signers(federation, uri, where))]
        findings += _of_pools(federation, _nodes(cluster))
    for finding in findings:
        if finding.level == "error":
            raise InputError(finding.what, where=finding.subject, remedy=f"{finding.remedy} Or --force.")


def _of_store(federation: Federation, far: str, where: Where) -> Iterator[Finding]:
    if not far.startswith("s3://"):
        yield Finding("error", "store", f"pods cannot reach {far}", "Set `store` to an s3:// URI.")
        return
    try:
        with reached(far, where) as uri:
            yield from _of_reached(federation, uri)
    except ClusterError as error:
        yield Finding("error", "store", error.what, error.remedy or "")


def _of_reached(federation: Federation, uri: str) -> Iterator[Finding]:
    try:
        yield from _of_clock(uri)
        open_store(uri).probe()
    except FedpipeError as error:
        yield Finding("error", "store", error.what, error.remedy or "")
        return
    yield Finding("ok", "store", f"{uri} can be written, and honours conditional writes")
    yield from _of_enrolment(federation, uri)


def _of_enrolment(federation: Federation, uri: str) -> Iterator[Finding]:
    """Where some learners are enrolled, all must be; where none is, nobody signs."""
    try:
        enrolled = read_enrolled(open_store(uri).below(federation.name))
    except FedpipeError as error:
        yield Finding("error", "store", error.what, error.remedy or "")
        return
    if enrolled.coordinator is not None and enrolled.coordinator.revoked is not None:
        what = "is revoked: no server takes the models that it publishes"
        yield Finding("error", "coordinator", what, "fedpipe enroll --coordinator")
    elif enrolled.coordinator is not None:
        yield Finding("ok", "coordinator", "is enrolled, and signs the models that it publishes")
    known = enrolled.learners
    for learner in federation.learners if known else ():
        enrolment = known.get(learner.name)
        if enrolment is None or enrolment.revoked is not None:
            what = "is revoked" if enrolment else "is not enrolled, while others are: its updates are refused"
            yield Finding("error", learner.name, what, f"fedpipe enroll {learner.name}")
        else:
            yield Finding("ok", learner.name, "is enrolled")


def _signers(federation: Federation, far: str, where: Where) -> set[str]:
    """Who must sign, by name; nobody where the store cannot be asked, which is told elsewhere."""
    with contextlib.suppress(FedpipeError), reached(far, where) as uri:
        enrolled = read_enrolled(open_store(uri).below(federation.name))
        known = enrolled.learners | ({_COORDINATOR: enrolled.coordinator} if enrolled.coordinator else {})
        return {name for name, enrolment in known.items() if enrolment.revoked is None}
    return set()


def _of_clock(uri: str) -> Iterator[Finding]:
    """Compares this machine's clock with the store's; steps take the store's where it matters."""
    endpoint = endpoint_of(uri)
    pool = urllib3.PoolManager(timeout=urllib3.Timeout(5), retries=False)
    try:
        stamp = pool.request("HEAD", endpoint).headers.get("Date")
    except urllib3.exceptions.HTTPError:
        return  # the probe says that it cannot be reached
    if stamp is None:
        return
    skew = time.time() - parsedate_to_datetime(stamp).timestamp()
    if abs(skew) > _SKEW:
        side = "ahead of" if skew > 0 else "behind"
        yield Finding(
            "warning", "clock", f"this machine is {abs(skew):.0f} s {side} the store", "Set the clocks, such as by NTP."
        )


def _of_kfp(where: Where) -> Iterator[Finding]:
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


def _of_cluster(federation: Federation, uri: str, where: Where) -> Iterator[Finding]:
    try:
        cluster = open_kubernetes(where)
        with told("Kubernetes"):
            cluster.core.list_namespaced_pod(cluster.namespace, limit=1, _request_timeout=_SECONDS)
    except FedpipeError as error:
        yield Finding("error", "kubernetes", str(error))
        return
    yield Finding("ok", "kubernetes", f"answers; runs are in namespace {cluster.namespace}")
    yield from _of_launcher(cluster)
    yield from _of_secrets(federation, cluster, _signers(federation, uri, where))
    nodes: list[_Node] | None = None
    try:
        nodes = _nodes(cluster)
    except ClusterError as error:
        yield Finding("warning", "nodes", f"cannot be looked at: {error.what}", "Ask for the right to list nodes.")
    yield from _of_images(federation, cluster, nodes or [])
    if nodes is not None:
        yield from _of_pools(federation, nodes)
    yield from _of_quotas(federation, cluster)


def _of_launcher(cluster: Kubernetes) -> Iterator[Finding]:
    try:
        with told("kfp-launcher"):
            found = cluster.core.read_namespaced_config_map(
                "kfp-launcher", cluster.namespace, _request_timeout=_SECONDS
            )
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


def _of_secrets(federation: Federation, cluster: Kubernetes, signers: set[str]) -> Iterator[Finding]:
    owners: dict[str, list[str]] = {federation.secret: [_COORDINATOR]}
    for learner in federation.learners:
        owners.setdefault(learner.secret or federation.secret, []).append(learner.name)
    for name, who in owners.items():
        shared = f"of {', '.join(who)}"
        try:
            with told(f"secret {name}"):
                found = cluster.core.read_namespaced_secret(name, cluster.namespace, _request_timeout=_SECONDS)
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


def _of_images(federation: Federation, cluster: Kubernetes, nodes: list[_Node]) -> Iterator[Finding]:
    auths = _credentials(cluster, {name for learner in federation.learners for name in learner.placement.pull_secrets})
    for image in images_of(federation):
        held = [node.name for node in nodes if any(_same_image(image, name) for name in node.images)]
        if held:
            yield Finding("ok", f"image {image}", f"is on {', '.join(held)}")
            continue
        level, what, remedy = find_image(image, auths)
        yield Finding(level, f"image {image}", what, remedy)


def _same_image(wanted: str, name: str) -> bool:
    return name == wanted or name.endswith(f"/{wanted}")


def _credentials(cluster: Kubernetes, names: set[str]) -> dict[str, dict[str, Any]]:
    """What pull secrets say of registries: `auths` of Docker's configuration."""
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(names):
        try:
            with told(f"secret {name}"):
                secret = cluster.core.read_namespaced_secret(name, cluster.namespace, _request_timeout=_SECONDS)
            found |= msgspec.json.decode(base64.b64decode((secret.data or {})[".dockerconfigjson"]))["auths"]
        except (ClusterError, KeyError, ValueError, msgspec.DecodeError):
            continue  # without it the registry itself says that it may not be read
    return found


def _nodes(cluster: Kubernetes) -> list[_Node]:
    from kubernetes.utils.quantity import parse_quantity

    with told("nodes"):
        found = cluster.core.list_node(_request_timeout=_SECONDS).items
    return [
        _Node(
            node.metadata.name,
            node.metadata.labels or {},
            tuple(t for t in node.spec.taints or () if t.effect in ("NoSchedule", "NoExecute")),
            {name: parse_quantity(value) for name, value in (node.status.allocatable or {}).items()},
            tuple(name for image in node.status.images or () for name in image.names or ()),
        )
        for node in found
    ]


def _of_pools(federation: Federation, nodes: list[_Node]) -> Iterator[Finding]:
    """Whether each learner's steps could ever be placed."""
    for who, placement in placements_of(federation):
        yield _placed(who, placement, nodes)
    if federation.in_sessions:
        yield from _together(federation, nodes)


def _together(federation: Federation, nodes: list[_Node]) -> Iterator[Finding]:
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
                short.append(f"{told_amount(resource, asked)} {resource} wanted, {told_amount(resource, there)} there")
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


def _placed(who: str, placement: Placement, nodes: list[_Node]) -> Finding:
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
        ", ".join(f"{told_amount(name, amount)} {name}" for name, amount in wanted.items()) or "nothing in particular"
    )
    if not fitting:
        most = {name: max(node.room.get(name, Decimal(0)) for node in tolerated) for name in wanted}
        short = ", ".join(f"{told_amount(n, most[n])} {n}" for n, v in wanted.items() if most[n] < v)
        what = f"asks for {asked}; its nodes have at most {short}" if short else f"no one node has {asked} together"
        return Finding("error", who, what, "Ask for less, or give the pool larger nodes.")
    return Finding("ok", who, f"fits on {len(fitting)} of {len(nodes)} nodes: {asked}")


def _fitting(placement: Placement, nodes: list[_Node]) -> list[_Node]:
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


def told_amount(name: str, amount: Decimal) -> str:
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


def _untolerated(placement: Placement, node: _Node) -> list[Any]:
    return [taint for taint in node.taints if not any(_tolerates(t, taint) for t in placement.tolerations)]


def _tolerates(toleration: Any, taint: Any) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.key and toleration.key != taint.key:
        return False
    return toleration.operator == "Exists" or (bool(toleration.key) and toleration.value == (taint.value or ""))


def _of_quotas(federation: Federation, cluster: Kubernetes) -> Iterator[Finding]:
    """Whether the namespace lets all learners of a session, or the largest step, have what they ask for."""
    from kubernetes.utils.quantity import parse_quantity

    try:
        with told("quotas"):
            quotas = cluster.core.list_namespaced_resource_quota(cluster.namespace, _request_timeout=_SECONDS).items
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
            line = f"{told_amount(resource, wanted)} {name} wanted, {told_amount(resource, limit)} allowed"
            if wanted > limit:
                short.append(line)
            elif wanted > limit - used:
                tight.append(f"{line}, {told_amount(resource, used)} used now")
        when = "at the same time, as a session needs them" if federation.in_sessions else "by the largest step"
        if short:
            remedy = "Raise it, or set training.rounds_per_step to 1." if federation.in_sessions else "Raise it."
            yield Finding("error", subject, f"{'; '.join(short)}, {when}", remedy)
        elif tight:
            yield Finding("warning", subject, "; ".join(tight), "Steps wait until others have ended.")
        else:
            yield Finding("ok", subject, "allows it")
