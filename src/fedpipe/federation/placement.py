"""Places: the store, the nodes of the pods, and the images of the steps."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field
from msgspec.structs import replace

from fedpipe.federation.environments import Environment
from fedpipe.federation.names import BYTES, CORES, Positive, Section, WholeSeconds
from fedpipe.store.objects import Digest


class StorePlace(Section, frozen=True, kw_only=True):
    """Places the federation's objects, where a URI alone is not enough."""

    uri: Annotated[str, Meta(description="`s3://bucket/prefix`, `file:///folder` or a path relative to this file")]
    endpoint: Annotated[str, Meta(description="`http(s)://host[:port]` of an S3 server; AWS when empty")] = ""
    region: Annotated[str, Meta(description="region of the bucket")] = "us-east-1"
    style: Annotated[
        Literal["", "path", "virtual"],
        Meta(
            description="place of the bucket's name: in the path, or in the host's name; empty: `virtual` on AWS only"
        ),
    ] = ""


class Toleration(Section, frozen=True, kw_only=True):
    """Tolerates a Kubernetes taint."""

    key: Annotated[str, Meta(description="key of the taint; empty: all keys")] = ""
    operator: Annotated[Literal["Equal", "Exists"], Meta(description="how the value is compared")] = "Equal"
    value: Annotated[str, Meta(description="value of the taint")] = ""
    effect: Annotated[
        Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"],
        Meta(description="effect of the taint; empty: all effects"),
    ] = ""


class Accelerator(Section, frozen=True, kw_only=True):
    """Requests GPUs for a step."""

    type: Annotated[str, Meta(description="resource name")] = "nvidia.com/gpu"
    count: Annotated[Positive, Meta(description="number of them")] = 1


class NodeExpression(Section, frozen=True, kw_only=True):
    """Compares a label of a node."""

    key: Annotated[str, Meta(min_length=1, description="the label")]
    operator: Annotated[
        Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"], Meta(description="comparison")
    ] = "In"
    values: Annotated[
        tuple[str, ...], Meta(description="values to compare with; none for Exists and DoesNotExist")
    ] = ()


class Affinity(Section, frozen=True, kw_only=True):
    """Selects nodes that a pod requires or prefers."""

    expressions: Annotated[
        tuple[NodeExpression, ...], Meta(min_length=1, description="comparisons that must all be true")
    ]
    weight: Annotated[int, Meta(ge=0, le=100, description="0: such a node is required; 1 to 100: it is preferred")] = 0


class Placement(Section, frozen=True, kw_only=True):
    """Sets the nodes and the resources of pods."""

    node_selector: Annotated[dict[str, str], Meta(description="labels that the node must have")] = field(
        default_factory=dict
    )
    tolerations: Annotated[tuple[Toleration, ...], Meta(description="taints that are tolerated")] = ()
    accelerator: Annotated[Accelerator | None, Meta(description="GPUs; none by default")] = None
    affinity: Annotated[
        tuple[Affinity, ...], Meta(description="nodes that are required or preferred, where a selector is not enough")
    ] = ()
    cpu: Annotated[str, Meta(pattern=CORES, description="limit of cores, such as `4` or `500m`")] = ""
    cpu_request: Annotated[
        str, Meta(pattern=CORES, description="cores to reserve; empty: the limit, or by the kind of step")
    ] = ""
    memory: Annotated[str, Meta(pattern=BYTES, description="limit, such as `8Gi`")] = ""
    memory_request: Annotated[
        str, Meta(pattern=BYTES, description="memory to reserve; empty: the limit, or by the kind of step")
    ] = ""
    shared_memory: Annotated[
        str, Meta(pattern=BYTES, description="size of `/dev/shm`, such as `2Gi`; counts as memory")
    ] = ""
    pull_secrets: Annotated[tuple[str, ...], Meta(description="Secrets for pulling images")] = ()
    labels: Annotated[dict[str, str], Meta(description="labels of the pod, such as `kueue.x-k8s.io/queue-name`")] = (
        field(default_factory=dict)
    )
    annotations: Annotated[dict[str, str], Meta(description="annotations of the pod")] = field(default_factory=dict)
    timeout: Annotated[WholeSeconds, Meta(description="seconds after which a step is ended; 0: no limit")] = 0
    in_form: Annotated[
        bool,
        Meta(description="makes a learner's selector, tolerations and accelerator parameters of the pipeline"),
    ] = False

    def over(self, other: Placement) -> Placement:
        """Return this placement, with the other's settings where this one has defaults."""
        nothing = Placement()
        given = {f: getattr(self, f) for f in self.__struct_fields__ if getattr(self, f) != getattr(nothing, f)}
        for limit, request in (("cpu", "cpu_request"), ("memory", "memory_request")):
            if limit in given:  # the other's request could exceed this limit
                given.setdefault(request, "")
        return replace(other, **given)

    def with_requests(self, default: Placement) -> Placement:
        """Return this placement, with the default's requests where it has neither a request nor a limit."""
        cpu = "" if self.cpu or self.cpu_request else default.cpu_request
        memory = "" if self.memory or self.memory_request else default.memory_request
        return replace(self, cpu_request=self.cpu_request or cpu, memory_request=self.memory_request or memory)


_LIGHT = ("100m", "256Mi")
_REQUESTS: dict[Environment, tuple[str, str]] = {
    "core": ("250m", "512Mi"),
    "keras": ("500m", "1Gi"),
    "custom": ("500m", "1Gi"),
    "tff": ("500m", "2Gi"),
    "serve": _LIGHT,
}
"""Cores and memory that a step reserves by default: TensorFlow takes 0.7 GiB before it has read any data."""
_LIGHT_STEPS = ("tally", "report")


def default_placement(step: str, environment: Environment) -> Placement:
    """Return the requests of a step for which the file sets none. A pod without any would get what others leave."""
    cpu, memory = _LIGHT if step in _LIGHT_STEPS else _REQUESTS[environment]
    return Placement(cpu_request=cpu, memory_request=memory)


class Images(Section, frozen=True, kw_only=True):
    """Names the container images of the steps."""

    registry: Annotated[str, Meta(description="prefix of `/core:TAG` and `/keras:TAG`")] = "fedpipe"
    tag: Annotated[str, Meta(description="tag; empty: the version of fedpipe")] = ""
    digests: Annotated[
        dict[Environment, Digest],
        Meta(description="`sha256:...` by environment, as `make images` writes them; they replace the tag"),
    ] = field(default_factory=dict)


StepKind = Literal[
    "shard", "explore", "describe", "initialise", "train", "learn", "vote", "score", "aggregate", "coordinate", "tally",
    "evaluate", "export", "report",
]  # fmt: skip
