"""The federation file: the one thing a user writes, as frozen typed structs.

Field descriptions are part of the types: `docs/federation.md` and the JSON schema are generated from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import replace

SAFE_NAME = r"^[a-z0-9]([a-z0-9\-]{0,38}[a-z0-9])?\Z"
"""What a name must be, so that it can be part of an object key, a pod's name and a short step name."""

Name = Annotated[str, Meta(pattern=SAFE_NAME)]
KUBEFLOWS_SECRET = "mlpipeline-minio-artifact"  # noqa: S105  (the name of a secret)
"""Where Kubeflow keeps the keys of its own store."""
Fraction = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[int, Meta(ge=1)]


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the file: unknown keys are errors."""


class StorePlace(_Section, frozen=True, kw_only=True):
    """Where the federation's objects live, when a URI alone does not say it."""

    uri: Annotated[str, Meta(description="`s3://bucket/prefix`, `file:///folder` or a path beside this file")]
    endpoint: Annotated[str, Meta(description="`http(s)://host[:port]` of an S3 server; AWS when empty")] = ""
    region: Annotated[str, Meta(description="region of the bucket")] = "us-east-1"


class Iid(_Section, frozen=True, kw_only=True, tag_field="by", tag="iid"):
    """Random shards of equal size."""

    seed: Annotated[int, Meta(ge=0, description="seed of the split")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


class ByLabel(_Section, frozen=True, kw_only=True, tag_field="by", tag="label"):
    """Sorted by label, cut into pieces, dealt at random: each learner sees few labels (McMahan et al. 2017)."""

    pieces: Annotated[int, Meta(ge=1, description="pieces for each learner")] = 2
    seed: Annotated[int, Meta(ge=0, description="seed of the deal")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


class ByKey(_Section, frozen=True, kw_only=True, tag_field="by", tag="key"):
    """All examples of one key (a writer, a user) go to one learner; sizes are kept as even as keys allow."""

    column: Annotated[str, Meta(description="array or column that holds the key of each example")]
    seed: Annotated[int, Meta(ge=0, description="seed of the order among keys of the same size")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


class Dirichlet(_Section, frozen=True, kw_only=True, tag_field="by", tag="dirichlet"):
    """Each label is spread over the learners by a draw from Dirichlet(alpha) (Hsu et al. 2019)."""

    alpha: Annotated[float, Meta(gt=0, description="small: few labels each; large: nearly iid")]
    seed: Annotated[int, Meta(ge=0, description="seed of the draws")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


class BySize(_Section, frozen=True, kw_only=True, tag_field="by", tag="size"):
    """Random shards of given sizes, which must add up to all examples."""

    sizes: Annotated[tuple[Positive, ...], Meta(description="examples of each learner, in the learners' order")]
    seed: Annotated[int, Meta(ge=0, description="seed of the split")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


class ByFractions(_Section, frozen=True, kw_only=True, tag_field="by", tag="fractions"):
    """Random shards of given fractions, which must add up to 1."""

    fractions: Annotated[tuple[Fraction, ...], Meta(description="share of each learner, in the learners' order")]
    seed: Annotated[int, Meta(ge=0, description="seed of the split")] = 0
    minimum: Annotated[int, Meta(ge=1, description="fewest examples that a learner may get")] = 1


Scheme = Iid | ByLabel | ByKey | Dirichlet | BySize | ByFractions


class Parts(_Section, frozen=True, kw_only=True):
    """How each learner's examples are split; the three add up to 1."""

    train: Annotated[Fraction, Meta(description="what the learner trains on")] = 0.8
    vote: Annotated[Fraction, Meta(description="what the learner votes with")] = 0.1
    test: Annotated[Fraction, Meta(description="what the learner tests the shared model on")] = 0.1


class Data(_Section, frozen=True, kw_only=True):
    """The dataset that is sharded over the learners without data of their own."""

    uri: Annotated[
        str,
        Meta(
            description="an .npz or .parquet file, or TFF's .h5 or .sqlite (docs/simulation.md): a path beside this "
            "file, or `s3://...`"
        ),
    ] = ""
    features: Annotated[
        str, Meta(description="array of the features; in Parquet a list column, or empty: all others")
    ] = "x"
    labels: Annotated[str, Meta(description="array or column of the labels")] = "y"
    split: Annotated[str, Meta(description="of a SQLite file that has several, such as `train`")] = ""
    shards: Annotated[Scheme, Meta(description="how the examples are dealt out")] = field(default_factory=Iid)
    parts: Annotated[Parts, Meta(description="train, vote and test part of each learner")] = field(
        default_factory=Parts
    )

    @property
    def columns(self) -> dict[str, str]:
        """What is read of a file: the arguments of `read_examples`."""
        return {"features": self.features, "labels": self.labels, "split": self.split}


class Toleration(_Section, frozen=True, kw_only=True):
    """A Kubernetes toleration."""

    key: Annotated[str, Meta(description="key of the taint; empty tolerates all")] = ""
    operator: Annotated[Literal["Equal", "Exists"], Meta(description="how the value is compared")] = "Equal"
    value: Annotated[str, Meta(description="value of the taint")] = ""
    effect: Annotated[
        Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"], Meta(description="effect; empty: all")
    ] = ""


class Accelerator(_Section, frozen=True, kw_only=True):
    """GPUs of a step."""

    type: Annotated[str, Meta(description="resource name")] = "nvidia.com/gpu"
    count: Annotated[Positive, Meta(description="how many")] = 1


class NodeExpression(_Section, frozen=True, kw_only=True):
    """What a label of a node must be."""

    key: Annotated[str, Meta(min_length=1, description="the label")]
    operator: Annotated[
        Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"], Meta(description="how it is compared")
    ] = "In"
    values: Annotated[tuple[str, ...], Meta(description="with what; nothing for Exists and DoesNotExist")] = ()


class Affinity(_Section, frozen=True, kw_only=True):
    """Nodes that a pod needs, or prefers."""

    expressions: Annotated[tuple[NodeExpression, ...], Meta(min_length=1, description="all of them must be true")]
    weight: Annotated[int, Meta(ge=0, le=100, description="0: such a node is needed; 1 to 100: it is preferred")] = 0


_CORES = r"^(\d+(\.\d+)?m?)?\Z"
_BYTES = r"^(\d+(\.\d+)?(E|P|T|G|M|K|Ei|Pi|Ti|Gi|Mi|Ki)?)?\Z"


class Placement(_Section, frozen=True, kw_only=True):
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


class Privacy(_Section, frozen=True, kw_only=True):
    """Differential privacy of a learner's train examples (DP-SGD, Abadi et al. 2016); what protects has no default."""

    noise_multiplier: Annotated[
        float, Meta(gt=0, description="standard deviation of the noise, as a multiple of `l2_norm_clip`")
    ]
    l2_norm_clip: Annotated[float, Meta(gt=0, description="largest norm of a microbatch's gradient")]
    microbatches: Annotated[
        Positive,
        Meta(description="parts of a batch that are clipped on their own; `batch_size`: every example"),
    ]
    delta: Annotated[float, Meta(gt=0, lt=1, description="well below 1 / (train examples)")]
    target_epsilon: Annotated[
        float, Meta(gt=0, description="what all training of this learner may spend, over all runs")
    ]
    accountant: Annotated[
        Literal["rdp", "pld"], Meta(description="how epsilon is computed: Renyi, or privacy loss distributions")
    ] = "rdp"
    sampling: Annotated[
        Literal["poisson", "none"],
        Meta(description="what the budget assumes: batches amplify privacy as if drawn by Poisson sampling, or do not"),
    ] = "poisson"


class Learner(_Section, frozen=True, kw_only=True):
    """A data owner."""

    name: Annotated[
        Name, Meta(description="lower-case letters, digits and `-`, at most 40; part of keys and step names")
    ]
    data: Annotated[
        str,
        Meta(description="the learner's own data (.npz, .parquet, or what `load` of model.py takes); empty: a shard"),
    ] = ""
    secret: Annotated[
        str, Meta(description="Kubernetes secret with the learner's store keys; empty: the federation's")
    ] = ""
    privacy: Annotated[Privacy | None, Meta(description="instead of the federation's `privacy`")] = None
    placement: Annotated[Placement, Meta(description="node pool and resources")] = field(default_factory=Placement)


class EarlyStopping(_Section, frozen=True, kw_only=True):
    """When a session ends before its last round; the model of the last round is kept."""

    patience: Annotated[Positive, Meta(description="rounds without an improvement after which it ends")]
    metric: Annotated[
        str,
        Meta(
            min_length=1,
            description="`loss` or a compiled metric of the training, or `test_` and its name: of the shared model on "
            "the learners' test parts",
        ),
    ] = "test_loss"
    minimise: Annotated[
        bool | None, Meta(description="whether less is better; must be said for anything but a loss")
    ] = None
    min_delta: Annotated[float, Meta(ge=0, description="smallest change that is an improvement")] = 0.0

    @property
    def minimised(self) -> bool:
        """Whether less of the metric is better."""
        return self.metric in ("loss", "test_loss") if self.minimise is None else self.minimise


class Training(_Section, frozen=True, kw_only=True):
    """What a learner does in a round."""

    rounds: Annotated[Positive, Meta(description="rounds of the run")]
    batch_size: Annotated[Positive, Meta(description="examples per step of the optimizer")]
    rounds_per_step: Annotated[
        Positive | Literal["all"],
        Meta(
            description="rounds that one step works through: `all` or more than 1 make sessions (docs/sessions.md), "
            "1 makes a step of every training"
        ),
    ] = "all"
    early_stopping: Annotated[
        EarlyStopping | None, Meta(description="ends a session when a metric improves no more; none by default")
    ] = None
    max_seconds: Annotated[
        float,
        Meta(ge=0, description="a session begins no round when its run is older, by the store's clock; 0: any age"),
    ] = 0.0
    local_epochs: Annotated[
        int, Meta(ge=0, description="passes over the train part per round; 0 with `local_steps`")
    ] = 1
    local_steps: Annotated[int, Meta(ge=0, description="batches per round instead of epochs; 0: epochs count")] = 0
    preprocessing: Annotated[
        str,
        Meta(
            description="what a round trains on, as calls of tf.data: `repeat(5).shuffle(100, seed=1).batch(20)`, "
            "instead of epochs and shuffling; `map(f)` names a function of model.py (docs/simulation.md)"
        ),
    ] = ""
    learning_rate: Annotated[float, Meta(ge=0, description="of the local optimizer; 0: as compiled in model.py")] = 0.0
    optimizer: Annotated[
        Literal["reset", "keep"],
        Meta(description="`reset`: a fresh local optimizer each round; `keep`: its state goes on"),
    ] = "reset"
    precision: Annotated[
        Literal["float32", "mixed_float16", "mixed_bfloat16"], Meta(description="Keras dtype policy")
    ] = "float32"
    fit: Annotated[
        dict[str, Any], Meta(description="more arguments of Keras's `Model.fit`, such as `class_weight`")
    ] = field(default_factory=dict)
    evaluate: Annotated[dict[str, Any], Meta(description="more arguments of Keras's `Model.evaluate`")] = field(
        default_factory=dict
    )
    callbacks: Annotated[
        dict[str, dict[str, Any]], Meta(description="Keras callbacks by name, each with its arguments")
    ] = field(default_factory=dict)
    tensorboard: Annotated[bool, Meta(description="write TensorBoard event files to the store")] = True
    start: Annotated[
        Literal["head", "fresh"],
        Meta(description="a new run goes on from HEAD, or begins with fresh weights"),
    ] = "head"
    seed: Annotated[int, Meta(ge=0, description="seed of initial weights, shuffling and dropout")] = 0


Rate = Annotated[float, Meta(gt=0, description="learning rate")]
Decay = Annotated[float, Meta(ge=0, lt=1)]


class Sgd(_Section, frozen=True, kw_only=True, tag_field="name", tag="sgd"):
    """Gradient descent: v = momentum * v + g, w - learning_rate * v."""

    learning_rate: Rate
    momentum: Annotated[Decay, Meta(description="0: none")] = 0.0


class Adagrad(_Section, frozen=True, kw_only=True, tag_field="name", tag="adagrad"):
    """Adagrad (Duchi et al. 2011)."""

    learning_rate: Rate
    initial_preconditioner: Annotated[float, Meta(ge=0, description="what squares of gradients are added to")] = 0.1
    epsilon: Annotated[float, Meta(ge=0, description="keeps the division stable")] = 1e-7


class Adam(_Section, frozen=True, kw_only=True, tag_field="name", tag="adam"):
    """Adam (Kingma and Ba 2015), with TFF's correction of the bias by the step."""

    learning_rate: Rate
    beta_1: Annotated[Decay, Meta(description="decay of the mean of gradients")] = 0.9
    beta_2: Annotated[Decay, Meta(description="decay of the mean of their squares")] = 0.999
    epsilon: Annotated[float, Meta(ge=0, description="keeps the division stable")] = 1e-7


class Yogi(_Section, frozen=True, kw_only=True, tag_field="name", tag="yogi"):
    """Yogi (Zaheer et al. 2018), with TFF's correction of the bias by the step."""

    learning_rate: Rate
    beta_1: Annotated[Decay, Meta(description="decay of the mean of gradients")] = 0.9
    beta_2: Annotated[Decay, Meta(description="decay of the estimate of their squares")] = 0.999
    epsilon: Annotated[float, Meta(ge=0, description="keeps the division stable")] = 1e-3
    initial_preconditioner: Annotated[float, Meta(ge=0, description="first estimate of the squares")] = 1e-6


Optimizer = Sgd | Adagrad | Adam | Yogi


class Simulation(_Section, frozen=True, kw_only=True):
    """How `fedpipe simulate` rehearses with TensorFlow Federated; rounds, epochs and batches are of `training`."""

    algorithm: Annotated[
        Literal["fedavg", "fedprox", "fedsgd", "mimelite"],
        Meta(
            description="federated averaging; the same with a proximal term (Li et al. 2020); one gradient step of all "
            "data a round; MimeLite (Karimireddy et al. 2020)"
        ),
    ] = "fedavg"
    process: Annotated[
        str,
        Meta(
            pattern=r"^([^:]+\.py(:[A-Za-z_]\w*)?)?\Z",
            description="`FILE.py:FUNCTION`, an algorithm of your own instead (docs/simulation.md)",
        ),
    ] = ""
    model: Annotated[
        str,
        Meta(
            pattern=r"^([^:]+\.py(:[A-Za-z_]\w*)?)?\Z",
            description="`FILE.py:FUNCTION` that returns a TFF model to train instead of the Keras one; its variables "
            "must have the shapes of the Keras model's, in order",
        ),
    ] = ""
    client_optimizer: Annotated[
        Optimizer | None, Meta(description="of the clients' training; by default what model.py compiles")
    ] = None
    server_optimizer: Annotated[
        Optimizer | None, Meta(description="of the global weights; by default the algorithm's")
    ] = None
    proximal_strength: Annotated[
        float, Meta(ge=0, description="of `fedprox`: half of it times the squared distance from the global weights")
    ] = 0.1
    held_out: Annotated[
        tuple[Name, ...], Meta(description="learners that never train; the model is tested on them")
    ] = ()
    test_every: Annotated[int, Meta(ge=0, description="rounds from test to test; 0: only after the last")] = 1
    placement: Annotated[Placement, Meta(description="node pool and resources of the simulation")] = field(
        default_factory=Placement
    )


class Vote(_Section, frozen=True, kw_only=True):
    """How learners decide on a proposed model."""

    rule: Annotated[
        Literal["all_vote", "others_vote"],
        Meta(
            description="`all_vote`: all n ballots count; `others_vote`: the proposer's is void, n - 1 count. A model "
            "that was aggregated has no proposer: all vote"
        ),
    ] = "others_vote"
    threshold: Annotated[
        Fraction, Meta(description="share of the counted ballots that must be a yes; exact: 0.5 of 5 needs 3")
    ] = 0.5
    criterion: Annotated[
        str, Meta(min_length=1, description="what is compared on the vote part: `loss`, or a compiled metric")
    ] = "loss"
    minimise: Annotated[
        bool | None, Meta(description="whether less is better; must be said for anything but `loss`")
    ] = None
    batches: Annotated[int, Meta(ge=0, description="batches of the vote part that are used; 0: all")] = 0
    absent: Annotated[
        Literal["against", "left_out"],
        Meta(description="a voter without a ballot counts as a no, or is left out of n"),
    ] = "against"

    @property
    def minimised(self) -> bool:
        """Whether less of the criterion is better."""
        return self.criterion == "loss" if self.minimise is None else self.minimise


Noise = Annotated[float, Meta(ge=0, description="standard deviation of the noise, in clipping norms; 0: none")]
Zeroing = Annotated[bool, Meta(description="an update far larger than most becomes zero; the bound adapts")]
Clipping = Annotated[bool, Meta(description="larger updates are scaled to a norm that adapts to most of them")]


class Mean(_Section, frozen=True, kw_only=True, tag_field="name", tag="mean"):
    """The mean of all updates (McMahan et al. 2017)."""


class Robust(_Section, frozen=True, kw_only=True, tag_field="name", tag="robust"):
    """The mean after zeroing and clipping, `tff.learning.robust_aggregator` (Charles et al. 2021)."""

    zeroing: Zeroing = True
    clipping: Clipping = True


class FixedNoise(_Section, frozen=True, kw_only=True, tag_field="name", tag="dp_fixed"):
    """Updates clipped to a fixed norm, and Gaussian noise (McMahan et al. 2018)."""

    noise_multiplier: Noise
    clip: Annotated[float, Meta(gt=0, description="largest L2 norm of an update")]


class AdaptiveNoise(_Section, frozen=True, kw_only=True, tag_field="name", tag="dp_adaptive"):
    """Updates clipped to a norm that adapts to the median, and Gaussian noise (Andrew et al. 2021)."""

    noise_multiplier: Noise
    initial_clip: Annotated[float, Meta(gt=0, description="first clipping norm")] = 0.1
    quantile: Annotated[float, Meta(gt=0, lt=1, description="share of updates that the norm shall not clip")] = 0.5
    clip_rate: Annotated[float, Meta(ge=0, description="how fast the norm adapts, geometrically")] = 0.2
    zeroing: Zeroing = True


class TreeNoise(_Section, frozen=True, kw_only=True, tag_field="name", tag="dp_tree"):
    """Updates clipped to a fixed norm, and noise of a tree over the rounds: DP-FTRL (Kairouz et al. 2021)."""

    noise_multiplier: Noise
    clip: Annotated[float, Meta(gt=0, description="largest L2 norm of an update")]


class Compressed(_Section, frozen=True, kw_only=True, tag_field="name", tag="compression"):
    """The mean of updates with 8 bits a number, `tff.learning.compression_aggregator`."""

    zeroing: Zeroing = True
    clipping: Clipping = True


class Secure(_Section, frozen=True, kw_only=True, tag_field="name", tag="secure"):
    """The mean by sums of integers, `tff.learning.secure_aggregator`; its sums are not secret here."""

    zeroing: Zeroing = True
    clipping: Clipping = True


class SecureNoise(_Section, frozen=True, kw_only=True, tag_field="name", tag="secure_dp"):
    """Skellam noise of each learner in a sum of integers, TFF's `ddp_secure_aggregator` (Agarwal et al. 2021)."""

    noise_multiplier: Noise
    bits: Annotated[int, Meta(ge=8, le=22, description="bits of a number in the sum")] = 20


def tag_of(settings: Struct) -> str:
    """The `name` by which the federation file tells these settings from others."""
    return str(settings.__struct_config__.tag)


Rule = Mean | Robust | FixedNoise | AdaptiveNoise | TreeNoise | Compressed | Secure | SecureNoise
UNWEIGHTED = (FixedNoise, AdaptiveNoise, TreeNoise, SecureNoise)
"""Rules in which no learner may count more than another: the noise hides one update."""


class Averaging(_Section, frozen=True, kw_only=True, tag_field="name", tag="averaging"):
    """Federated averaging (McMahan et al. 2017)."""

    engine: Annotated[
        Literal["fedpipe", "tff"],
        Meta(description="who combines updates: fedpipe in constant memory, or TensorFlow Federated"),
    ] = "fedpipe"
    rule: Annotated[
        Rule,
        Meta(
            description="how updates are combined; its `name` alone stands for its defaults; all but `mean` are TFF's"
        ),
    ] = field(default_factory=Mean)
    weighting: Annotated[
        Literal["examples", "uniform"], Meta(description="weight of an update: its train examples, or 1")
    ] = "examples"
    server_optimizer: Annotated[
        Optimizer, Meta(description="the step of the global weights; `sgd` with 1.0 takes the aggregate as it is")
    ] = field(default_factory=lambda: Sgd(learning_rate=1.0))
    vote: Annotated[
        Vote | None, Meta(description="learners vote on each aggregated model; without it, every one is taken")
    ] = None


class Collective(_Section, frozen=True, kw_only=True, tag_field="name", tag="collective"):
    """Collective learning (Fetch.ai colearn): one proposes, all vote, an accepted proposal becomes everyone's model."""

    vote: Annotated[Vote, Meta(description="how a proposal is accepted")] = field(default_factory=Vote)
    proposers: Annotated[
        tuple[Name, ...], Meta(description="who proposes, in this order, round robin; empty: all learners, as listed")
    ] = ()


class Quorum(_Section, frozen=True, kw_only=True):
    """When a round counts."""

    min_learners: Annotated[
        int, Meta(ge=0, description="fewest learners of a valid round; 0: more than half of those that it asks")
    ] = 0
    deadline: Annotated[float, Meta(gt=0, description="seconds after which a learner's training is too late")] = 3600.0
    retries: Annotated[
        int, Meta(ge=0, description="how often a session tries a round again that ended below the quorum")
    ] = 2
    learners_per_round: Annotated[
        int, Meta(ge=0, description="learners whose updates make a round, drawn anew for each by the seed; 0: all")
    ] = 0
    over_selection: Annotated[
        float,
        Meta(ge=1, description="asks so many times more learners; a session's round ends with the first that answer"),
    ] = 1.0


class Evaluation(_Section, frozen=True, kw_only=True):
    """How the shared model is measured."""

    holdout: Annotated[
        float,
        Meta(ge=0, lt=1, description="share of `data` kept away from all learners as the central test set"),
    ] = 0.1
    every_round: Annotated[bool, Meta(description="learners test each round's model before they train it")] = True


class Export(_Section, frozen=True, kw_only=True):
    """The ONNX model."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^([a-z0-9]([a-z0-9\-]{0,38}[a-z0-9])?)?\Z",
            description="model name; empty: the federation's",
        ),
    ] = ""
    opset: Annotated[int, Meta(ge=13, le=18, description="ONNX operator set")] = 17
    classes: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=100)], ...],
        Meta(max_length=10_000, description="names of the classes that a classifier's outputs stand for, in order"),
    ] = ()
    tolerance: Annotated[float, Meta(gt=0, description="largest allowed difference between ONNX and Keras outputs")] = (
        1e-4
    )


Environment = Literal["core", "keras", "tff", "serve"]
Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]


class Images(_Section, frozen=True, kw_only=True):
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


class Federation(_Section, frozen=True, kw_only=True):
    """A federation file."""

    name: Annotated[Name, Meta(description="name of the federation; its folder in the store")]
    learners: Annotated[tuple[Learner, ...], Meta(min_length=1, description="the data owners")]
    training: Annotated[Training, Meta(description="what a learner does in a round")]
    store: Annotated[
        str | StorePlace, Meta(description="where objects live: a URI, a path, or uri, endpoint and region")
    ] = "store"
    model: Annotated[
        str,
        Meta(
            pattern=r"^[^:]+\.py(:[A-Za-z_]\w*)?\Z",
            description="`FILE.py:FUNCTION` that returns a compiled Keras model",
        ),
    ] = "model.py:build"
    data: Annotated[Data, Meta(description="the dataset to shard")] = field(default_factory=Data)
    algorithm: Annotated[
        Averaging | Collective,
        Meta(description="how learners learn together; its `name` alone stands for all defaults"),
    ] = field(default_factory=Averaging)
    privacy: Annotated[Privacy | None, Meta(description="differential privacy of every learner's training")] = None
    quorum: Annotated[Quorum, Meta(description="when a round counts")] = field(default_factory=Quorum)
    evaluation: Annotated[Evaluation, Meta(description="how the shared model is measured")] = field(
        default_factory=Evaluation
    )
    export: Annotated[Export, Meta(description="the ONNX model")] = field(default_factory=Export)
    simulation: Annotated[Simulation, Meta(description="a rehearsal with TensorFlow Federated")] = field(
        default_factory=Simulation
    )
    placement: Annotated[
        dict[StepKind, Placement],
        Meta(
            description="node pool and resources by kind of step, such as `train` or `evaluate`; what a learner's own "
            "placement says comes first"
        ),
    ] = field(default_factory=dict)
    images: Annotated[Images, Meta(description="container images of the steps")] = field(default_factory=Images)
    secret: Annotated[str, Meta(description="Kubernetes secret with the store's keys (`accesskey`, `secretkey`)")] = (
        KUBEFLOWS_SECRET
    )

    @property
    def store_uri(self) -> str:
        """The store as one URI that says everything."""
        if isinstance(self.store, str):
            return self.store
        query = {"endpoint": self.store.endpoint, "region": self.store.region if self.store.endpoint else ""}
        text = "&".join(f"{k}={v}" for k, v in query.items() if v)
        return f"{self.store.uri}?{text}" if text and self.store.uri.startswith("s3://") else self.store.uri

    @property
    def sharded(self) -> tuple[str, ...]:
        """Names of the learners that get a shard of `data`, in their order."""
        return tuple(learner.name for learner in self.learners if not learner.data)

    @property
    def vote(self) -> Vote | None:
        """How learners vote on models; None when they do not."""
        return self.algorithm.vote

    @property
    def proposers(self) -> tuple[str, ...]:
        """Who proposes, in order; nobody when updates are averaged."""
        if isinstance(self.algorithm, Averaging):
            return ()
        return self.algorithm.proposers or tuple(learner.name for learner in self.learners)

    def privacy_of(self, name: str) -> Privacy | None:
        """Differential privacy of a learner's training: its own, or the federation's. Raises KeyError."""
        return self.learner(name).privacy or self.privacy

    @property
    def learners_asked(self) -> int:
        """How many learners' updates make a round."""
        return self.quorum.learners_per_round or len(self.learners)

    @property
    def min_learners(self) -> int:
        """The quorum as a number."""
        return self.quorum.min_learners or self.learners_asked // 2 + 1

    @property
    def aggregated_by_tff(self) -> bool:
        """Whether TensorFlow Federated combines the updates."""
        return isinstance(self.algorithm, Averaging) and self.algorithm.engine == "tff"

    @property
    def in_sessions(self) -> bool:
        """Whether a step works through several rounds."""
        return self.training.rounds_per_step != 1

    @property
    def model_name(self) -> str:
        """The name under which the model is exported."""
        return self.export.name or self.name

    def learner(self, name: str) -> Learner:
        """The learner of that name. Raises KeyError."""
        return {learner.name: learner for learner in self.learners}[name]
