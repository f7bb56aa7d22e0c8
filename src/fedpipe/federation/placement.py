"""Where things are: the store, the nodes of the pods, and the images of the steps."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field
from msgspec.structs import replace

from fedpipe.federation.environments import Environment
from fedpipe.federation.names import Positive, Section


class StorePlace(Section, frozen=True, kw_only=True):
    """Where the federation's objects live, when a URI alone does not say it."""

    uri: Annotated[str, Meta(description="`s3://bucket/prefix`, `file:///folder` or a path beside this file")]
    endpoint: Annotated[str, Meta(description="`http(s)://host[:port]` of an S3 server; AWS when empty")] = ""
    region: Annotated[str, Meta(description="region of the bucket")] = "us-east-1"


class Toleration(Section, frozen=True, kw_only=True):
    """A Kubernetes toleration."""

    key: Annotated[str, Meta(description="key of the taint; empty tolerates all")] = ""
    operator: Annotated[Literal["Equal", "Exists"], Meta(description="how the value is compared")] = "Equal"
    value: Annotated[str, Meta(description="value of the taint")] = ""
    effect: Annotated[
        Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"], Meta(description="effect; empty: all")
    ] = ""


class Accelerator(Section, frozen=True, kw_only=True):
    """GPUs of a step."""

    type: Annotated[str, Meta(description="resource name")] = "nvidia.com/gpu"
    count: Annotated[Positive, Meta(description="how many")] = 1


class NodeExpression(Section, frozen=True, kw_only=True):
    """What a label of a node must be."""

    key: Annotated[str, Meta(min_length=1, description="the label")]
    operator: Annotated[
        Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"], Meta(description="how it is compared")
    ] = "In"
    values: Annotated[tuple[str, ...], Meta(description="with what; nothing for Exists and DoesNotExist")] = ()


class Affinity(Section, frozen=True, kw_only=True):
    """Nodes that a pod needs, or prefers."""

    expressions: Annotated[tuple[NodeExpression, ...], Meta(min_length=1, description="all of them must be true")]
    weight: Annotated[int, Meta(ge=0, le=100, description="0: such a node is needed; 1 to 100: it is preferred")] = 0


_CORES = r"^(\d+(\.\d+)?m?)?\Z"
_BYTES = r"^(\d+(\.\d+)?(E|P|T|G|M|K|Ei|Pi|Ti|Gi|Mi|Ki)?)?\Z"


class Placement(Section, frozen=True, kw_only=True):
    """Where pods run and what they get."""

    node_selector: Annotated[dict[str, str], Meta(description="labels that the node must have")] = field(
        default_factory=dict
    )
    tolerations: Annotated[tuple[Toleration, ...], Meta(description="taints that are tolerated")] = ()
    accelerator: Annotated[Accelerator | None, Meta(description="GPUs; none by default")] = None
    affinity: Annotated[
        tuple[Affinity, ...], Meta(description="nodes that are needed or preferred, where a selector says too little")
    ] = ()
    cpu: Annotated[str, Meta(pattern=_CORES, description="limit of cores, such as `4` or `500m`")] = ""
    cpu_request: Annotated[str, Meta(pattern=_CORES, description="cores that are kept free; empty: the limit")] = ""
    memory: Annotated[str, Meta(pattern=_BYTES, description="limit, such as `8Gi`")] = ""
    memory_request: Annotated[str, Meta(pattern=_BYTES, description="memory that is kept free; empty: the limit")] = ""
    shared_memory: Annotated[
        str, Meta(pattern=_BYTES, description="size of `/dev/shm`, such as `2Gi`; counts as memory")
    ] = ""
    pull_secrets: Annotated[tuple[str, ...], Meta(description="secrets with which images are pulled")] = ()
    labels: Annotated[dict[str, str], Meta(description="of the pod, such as `kueue.x-k8s.io/queue-name`")] = field(
        default_factory=dict
    )
    annotations: Annotated[dict[str, str], Meta(description="of the pod")] = field(default_factory=dict)
    timeout: Annotated[int, Meta(ge=0, description="seconds after which a step is ended; 0: none")] = 0
    in_form: Annotated[
        bool,
        Meta(description="of a learner: selector, tolerations and accelerator are run-time parameters of the pipeline"),
    ] = False

    def over(self, other: Placement) -> Placement:
        """This placement, with the other's settings where it says nothing."""
        nothing = Placement()
        told = {f: getattr(self, f) for f in self.__struct_fields__ if getattr(self, f) != getattr(nothing, f)}
        return replace(other, **told)


Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]


class Images(Section, frozen=True, kw_only=True):
    """Container images of the steps."""

    registry: Annotated[str, Meta(description="what stands before `/core:TAG` and `/keras:TAG`")] = "fedpipe"
    tag: Annotated[str, Meta(description="tag; empty: this version of fedpipe")] = ""
    digests: Annotated[
        dict[Environment, Digest],
        Meta(description="`sha256:...` by environment, as `make images` writes them; instead of the tag"),
    ] = field(default_factory=dict)


StepKind = Literal[
    "shard", "explore", "initialise", "train", "learn", "vote", "score", "aggregate", "coordinate", "tally", "evaluate",
    "export", "report",
]  # fmt: skip
