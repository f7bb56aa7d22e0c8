"""What a learner does in a round, when a round counts, and how the result is measured and exported."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from fedpipe.federation.names import Positive, Section


class Privacy(Section, frozen=True, kw_only=True):
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


class EarlyStopping(Section, frozen=True, kw_only=True):
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


class Training(Section, frozen=True, kw_only=True):
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


class Quorum(Section, frozen=True, kw_only=True):
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


class EvaluationSettings(Section, frozen=True, kw_only=True):
    """How the shared model is measured."""

    holdout: Annotated[
        float,
        Meta(ge=0, lt=1, description="share of `data` kept away from all learners as the central test set"),
    ] = 0.1
    every_round: Annotated[bool, Meta(description="learners test each round's model before they train it")] = True


class Export(Section, frozen=True, kw_only=True):
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
    tolerance: Annotated[
        float, Meta(gt=0, description="largest allowed difference between the outputs of ONNX and of the trained model")
    ] = 1e-4
