"""Settings of a learner's training, the quorum of a round, and how the result is measured and exported."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, field
from msgspec.structs import force_setattr, replace

from fedpipe.federation.exchange import Exchange
from fedpipe.federation.methods import Method
from fedpipe.federation.names import (
    MOST_DIFFERENCE,
    MOST_NOISE,
    SAFE_NAME_OR_NONE,
    Amount,
    Count,
    InnerShare,
    Learners,
    Positive,
    PositiveAmount,
    PositiveSeconds,
    Rounds,
    Seconds,
    Section,
    Seed,
    Share,
    Tries,
)
from fedpipe.federation.schedules import Schedule
from fedpipe.federation.values import as_text_keys


class Privacy(Section, frozen=True, kw_only=True):
    """Trains with differential privacy (DP-SGD, Abadi et al. 2016); settings that protect have no default."""

    noise_multiplier: Annotated[
        float, Meta(gt=0, le=MOST_NOISE, description="standard deviation of the noise as a multiple of `l2_norm_clip`")
    ]
    l2_norm_clip: Annotated[PositiveAmount, Meta(description="largest norm of a microbatch's gradient")]
    microbatches: Annotated[
        Positive,
        Meta(description="parts of a batch that are clipped one by one; `batch_size`: every example"),
    ]
    delta: Annotated[InnerShare, Meta(description="well below 1 / (train examples)")]
    target_epsilon: Annotated[
        PositiveAmount, Meta(description="most epsilon that all trainings of this learner may spend, over all runs")
    ]
    accountant: Annotated[
        Literal["rdp", "pld"], Meta(description="accounting method: Renyi divergence, or privacy loss distributions")
    ] = "rdp"
    sampling: Annotated[
        Literal["poisson", "none"],
        Meta(description="assumption of the budget: batches amplify privacy like Poisson samples, or do not"),
    ] = "poisson"


class EarlyStopping(Section, frozen=True, kw_only=True):
    """Ends a session before its last round; the model of its last round is kept."""

    patience: Annotated[Rounds, Meta(description="rounds without an improvement before the session ends")]
    metric: Annotated[
        str,
        Meta(
            min_length=1,
            description="`loss` or a compiled metric of the training; with the prefix `test_`, of the shared model on "
            "the learners' test parts",
        ),
    ] = "test_loss"
    minimise: Annotated[bool | None, Meta(description="whether less is better; required for anything but a loss")] = (
        None
    )
    min_delta: Annotated[Amount, Meta(description="smallest change that counts as an improvement")] = 0.0

    @property
    def minimised(self) -> bool:
        """Return whether a lower metric is better."""
        return self.metric in ("loss", "test_loss") if self.minimise is None else self.minimise


class Training(Section, frozen=True, kw_only=True):
    """Describes the training of a learner in a round."""

    rounds: Annotated[Rounds, Meta(description="rounds of the run")]
    batch_size: Annotated[Positive, Meta(description="examples per step of the optimizer")]
    rounds_per_step: Annotated[
        Rounds | Literal["all"],
        Meta(
            description="rounds that one step works through: `all` or more than 1 form sessions (docs/sessions.md), "
            "1 gives every training its own step"
        ),
    ] = "all"
    early_stopping: Annotated[
        EarlyStopping | None, Meta(description="ends a session when a metric stops improving")
    ] = None
    max_seconds: Annotated[
        Seconds,
        Meta(description="age of a run, by the store's clock, after which no round begins; 0: no limit"),
    ] = 0.0
    local_epochs: Annotated[Count, Meta(description="passes over the train part per round; 0 with `local_steps`")] = 1
    local_steps: Annotated[Count, Meta(description="batches per round instead of epochs; 0: epochs count")] = 0
    preprocessing: Annotated[
        str,
        Meta(
            description="calls of tf.data that replace epochs and shuffling, such as "
            "`repeat(5).shuffle(100, seed=1).batch(20)`; `map(f)` names a function of model.py (docs/simulation.md)"
        ),
    ] = ""
    learning_rate: Annotated[Amount, Meta(description="rate of the local optimizer; 0: as compiled in model.py")] = 0.0
    schedule: Annotated[
        Schedule | None,
        Meta(description="how `learning_rate`, which is required then, changes over the rounds of a run"),
    ] = None
    optimizer: Annotated[
        Literal["reset", "keep"],
        Meta(description="`reset`: a fresh local optimizer each round; `keep`: its state carries over"),
    ] = "reset"
    exchange: Annotated[
        Exchange | None,
        Meta(description="sends updates in fewer bytes (docs/aggregation.md#fewer-bytes); none: whole weights"),
    ] = None
    method: Annotated[
        Method | None,
        Meta(description="how learners train when their data differ (docs/personal.md); none: plain training"),
    ] = None
    clip_norm: Annotated[
        Amount, Meta(description="largest norm of all gradients of a step together; 0: as compiled in model.py")
    ] = 0.0
    accumulate: Annotated[
        Annotated[int, Meta(ge=1, le=10_000)],
        Meta(description="batches whose gradients are averaged before the optimizer takes a step"),
    ] = 1
    precision: Annotated[
        Literal["float32", "mixed_float16", "mixed_bfloat16"], Meta(description="Keras dtype policy")
    ] = "float32"
    fit: Annotated[
        dict[str, Any],
        Meta(description="further arguments of Keras's `Model.fit`, such as `class_weight: {0: 1.0, 1: 2.0}`"),
    ] = field(default_factory=dict)
    evaluate: Annotated[
        dict[str, Any],
        Meta(
            description="further arguments of Keras's `Model.evaluate`; fedpipe gives all of them, and a message "
            "names the key to set instead"
        ),
    ] = field(default_factory=dict)
    callbacks: Annotated[
        dict[str, dict[str, Any]], Meta(description="Keras callbacks by name, each with its arguments")
    ] = field(default_factory=dict)
    tensorboard: Annotated[bool, Meta(description="write TensorBoard event files to the store")] = True
    start: Annotated[
        Literal["head", "fresh"],
        Meta(description="`head`: a new run continues from HEAD; `fresh`: it begins with new weights"),
    ] = "head"
    seed: Annotated[Seed, Meta(description="seed of initial weights, shuffling and dropout")] = 0

    def at(self, number: int) -> Training:
        """Return the settings of a round, from 1: with its learning rate."""
        if self.schedule is None:
            return self
        return replace(self, learning_rate=self.learning_rate * self.schedule.factor(number, self.rounds))

    def __post_init__(self) -> None:
        for name in ("fit", "evaluate", "callbacks"):
            force_setattr(self, name, as_text_keys(getattr(self, name)))


class Quorum(Section, frozen=True, kw_only=True):
    """Decides when a round counts."""

    min_learners: Annotated[
        Learners, Meta(description="fewest learners of a valid round; 0: more than half of those asked")
    ] = 0
    deadline: Annotated[
        PositiveSeconds, Meta(description="seconds after which a learner's training or vote is too late")
    ] = 3600.0
    retries: Annotated[Tries, Meta(description="how often a session repeats a round that ended below the quorum")] = 2
    learners_per_round: Annotated[
        Learners, Meta(description="learners whose updates form a round, redrawn each round by the seed; 0: all")
    ] = 0
    over_selection: Annotated[
        float,
        Meta(
            ge=1, le=100, description="factor by which more learners are asked; a session takes the first that answer"
        ),
    ] = 1.0


class EvaluationSettings(Section, frozen=True, kw_only=True):
    """Measures the shared model."""

    holdout: Annotated[
        Share,
        Meta(description="share of `data` kept away from all learners as the central test set"),
    ] = 0.1
    every_round: Annotated[bool, Meta(description="learners test each round's model before they train it")] = True


class PublishIf(Section, frozen=True, kw_only=True):
    """Publishes a model only if it is better than the newest published version, by `export.metric`."""

    better_by: Annotated[Amount, Meta(description="smallest improvement; 0: any")] = 0.0
    no_learner_worse_by: Annotated[
        Amount | None, Meta(description="most by which the metric of a single learner may become worse; none: any")
    ] = None


class Export(Section, frozen=True, kw_only=True):
    """Exports the shared model to ONNX."""

    name: Annotated[
        str,
        Meta(
            pattern=SAFE_NAME_OR_NONE,
            description="model name; empty: the federation's",
        ),
    ] = ""
    opset: Annotated[int, Meta(ge=13, le=18, description="ONNX operator set")] = 17
    classes: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=100)], ...],
        Meta(max_length=10_000, description="class names of a classifier's outputs, in order"),
    ] = ()
    choose: Annotated[
        Literal["last", "best"],
        Meta(description="the model of the last round, or that of the best round by the learners' tests"),
    ] = "last"
    metric: Annotated[
        str, Meta(max_length=100, description="`loss` or a compiled metric, by which models are compared")
    ] = ""
    over: Annotated[
        Literal["mean", "worst_learner"],
        Meta(description="compares means over all test examples, or the worst learner's metric"),
    ] = "mean"
    minimise: Annotated[
        bool | None,
        Meta(description="whether less is better; required for a metric that fedpipe does not know"),
    ] = None
    publish_if: Annotated[PublishIf | None, Meta(description="condition for a model that replaces a published one")] = (
        None
    )
    tolerance: Annotated[
        float,
        Meta(
            ge=0,
            le=MOST_DIFFERENCE,
            description="largest allowed difference between outputs of ONNX and of the model, as a share of the "
            "largest above 1; 0: by the model's precision (docs/models.md)",
        ),
    ] = 0.0
    registry: Annotated[
        str,
        Meta(
            description="`http(s)://host[:port]` of Kubeflow's Model Registry, where each run's model is registered "
            "([tracking](tracking.md#model-registry)); empty: none"
        ),
    ] = ""

    @property
    def compares(self) -> bool:
        """Return whether models are compared by the metric."""
        return self.choose == "best" or self.publish_if is not None

    @property
    def compared(self) -> str:
        """Return the name of the metric, as learners report it."""
        return self.metric.removeprefix("test_")

    @property
    def minimised(self) -> bool | None:
        """Return whether a lower metric is better; None if that is unclear.

        >>> Export(metric="mean_absolute_error").minimised, Export(metric="accuracy").minimised
        (True, False)
        >>> Export(metric="perplexity").minimised
        """
        if self.minimise is not None:
            return self.minimise
        words = set(self.compared.lower().split("_"))
        if words & _LESS:
            return True
        return False if words & _MORE else None


_LESS = {"loss", "error", "mse", "mae", "rmse", "crossentropy"}
_MORE = {"accuracy", "acc", "auc", "precision", "recall", "f1", "r2"}
"""Words in the names of metrics of which less, or more, is better."""
