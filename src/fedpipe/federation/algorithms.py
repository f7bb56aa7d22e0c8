"""Settings of the algorithms: averaging with its rules and optimizers, collective learning, simulation."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from msgspec import Meta, field

from fedpipe.federation.names import (
    CODE_OR_NONE,
    LARGE,
    MOST_NOISE,
    Amount,
    Count,
    Fraction,
    InnerShare,
    Interval,
    Name,
    PositiveAmount,
    Section,
    Share,
    tag_of,
)
from fedpipe.federation.optimizers import OptimizerSettings, Sgd
from fedpipe.federation.placement import Placement
from fedpipe.federation.rules import Clip, Mean, OwnRule, StepBefore, fewest_updates
from fedpipe.federation.schedules import Schedule


class SimulationSettings(Section, frozen=True, kw_only=True):
    """Rehearses with TensorFlow Federated (`fedpipe simulate`); rounds, epochs and batches come from `training`."""

    algorithm: Annotated[
        Literal["fedavg", "fedprox", "fedsgd", "mimelite"],
        Meta(
            description="`fedavg`: federated averaging; `fedprox`: with a proximal term (Li et al. 2020); `fedsgd`: "
            "one gradient step a round; `mimelite`: Karimireddy et al. 2020"
        ),
    ] = "fedavg"
    process: Annotated[
        str,
        Meta(
            pattern=CODE_OR_NONE,
            description="`FILE.py:FUNCTION` of an algorithm of your own, used instead (docs/simulation.md)",
        ),
    ] = ""
    model: Annotated[
        str,
        Meta(
            pattern=CODE_OR_NONE,
            description="`FILE.py:FUNCTION` that returns a TFF model to train instead of the Keras one; its variables "
            "must match the Keras model's shapes, in order",
        ),
    ] = ""
    client_optimizer: Annotated[
        OptimizerSettings | None, Meta(description="optimizer of the clients; none: as compiled in model.py")
    ] = None
    server_optimizer: Annotated[
        OptimizerSettings | None, Meta(description="optimizer of the global weights; none: the algorithm's own")
    ] = None
    proximal_strength: Annotated[
        Amount,
        Meta(
            description="weight of the proximal term of `fedprox`: half of it times the squared distance from the "
            "global weights",
        ),
    ] = 0.1
    held_out: Annotated[
        tuple[Name, ...], Meta(description="learners that never train; the model is tested on them")
    ] = ()
    test_every: Annotated[
        Interval,
        Meta(description="rounds between tests; 0: only after the last round"),
    ] = 1
    placement: Annotated[Placement, Meta(description="node pool and resources of the simulation")] = field(
        default_factory=Placement
    )


class Vote(Section, frozen=True, kw_only=True):
    """Lets learners decide on a proposed model."""

    rule: Annotated[
        Literal["all_vote", "others_vote"],
        Meta(
            description="`all_vote`: all n ballots count; `others_vote`: the proposer's is void, n - 1 count. An "
            "aggregated model has no proposer: all vote"
        ),
    ] = "others_vote"
    threshold: Annotated[
        Fraction, Meta(description="share of the counted ballots that must approve; exact: 0.5 of 5 needs 3")
    ] = 0.5
    criterion: Annotated[
        str, Meta(min_length=1, description="measure that is compared on the vote part: `loss` or a compiled metric")
    ] = "loss"
    minimise: Annotated[bool | None, Meta(description="whether less is better; required for anything but `loss`")] = (
        None
    )
    batches: Annotated[Count, Meta(description="batches of the vote part to use; 0: all")] = 0
    absent: Annotated[
        Literal["against", "left_out"],
        Meta(description="a voter without a ballot counts as a no, or is left out of n"),
    ] = "against"

    @property
    def minimised(self) -> bool:
        """Return whether a lower criterion is better."""
        return self.criterion == "loss" if self.minimise is None else self.minimise


Noise = Annotated[
    float, Meta(ge=0, le=MOST_NOISE, description="standard deviation of the noise, in clipping norms; 0: none")
]
Zeroing = Annotated[bool, Meta(description="sets an update to zero when it is far larger than most; the bound adapts")]
Clipping = Annotated[bool, Meta(description="scales larger updates down to a norm that adapts to most of them")]


class Robust(Section, frozen=True, kw_only=True, tag_field="name", tag="robust"):
    """Averages after zeroing and clipping: `tff.learning.robust_aggregator` (Charles et al. 2021)."""

    zeroing: Zeroing = True
    clipping: Clipping = True


class FixedNoise(Section, frozen=True, kw_only=True, tag_field="name", tag="dp_fixed"):
    """Clips updates to a fixed norm and adds Gaussian noise (McMahan et al. 2018)."""

    noise_multiplier: Noise
    clip: Annotated[PositiveAmount, Meta(description="largest L2 norm of an update")]


class AdaptiveNoise(Section, frozen=True, kw_only=True, tag_field="name", tag="dp_adaptive"):
    """Clips updates to a norm that follows the median and adds Gaussian noise (Andrew et al. 2021)."""

    noise_multiplier: Noise
    initial_clip: Annotated[PositiveAmount, Meta(description="first clipping norm")] = 0.1
    quantile: Annotated[InnerShare, Meta(description="share of updates that the norm should leave unclipped")] = 0.5
    clip_rate: Annotated[Amount, Meta(description="how fast the norm adapts, geometrically")] = 0.2
    zeroing: Zeroing = True


class TreeNoise(Section, frozen=True, kw_only=True, tag_field="name", tag="dp_tree"):
    """Clips updates to a fixed norm and adds noise of a tree over the rounds: DP-FTRL (Kairouz et al. 2021)."""

    noise_multiplier: Noise
    clip: Annotated[PositiveAmount, Meta(description="largest L2 norm of an update")]


class Compressed(Section, frozen=True, kw_only=True, tag_field="name", tag="compression"):
    """Averages updates with 8 bits a number: `tff.learning.compression_aggregator`."""

    zeroing: Zeroing = True
    clipping: Clipping = True


class Secure(Section, frozen=True, kw_only=True, tag_field="name", tag="secure"):
    """Averages by sums of integers: `tff.learning.secure_aggregator`; its sums are not secret here."""

    zeroing: Zeroing = True
    clipping: Clipping = True


class SecureNoise(Section, frozen=True, kw_only=True, tag_field="name", tag="secure_dp"):
    """Adds each learner's Skellam noise to a sum of integers: TFF's `ddp_secure_aggregator` (Agarwal et al. 2021)."""

    noise_multiplier: Noise
    bits: Annotated[int, Meta(ge=8, le=22, description="bits of a number in the sum")] = 20


RuleSettings = OwnRule | Robust | FixedNoise | AdaptiveNoise | TreeNoise | Compressed | Secure | SecureNoise
OWN_RULES = get_args(OwnRule)
"""Rules that fedpipe combines itself; the others, and `mean` too, are TensorFlow Federated's."""
UNWEIGHTED = (FixedNoise, AdaptiveNoise, TreeNoise, SecureNoise)
"""Rules that weight all learners equally: their noise hides one update."""


FEWEST_SUMMED = 3
"""Learners in a secure sum at least: two would know each other's updates from it."""
MOST_SUMMED = 64
"""Learners in a secure sum at most: each exchanges secrets with each other one."""


def least_threshold(learners: int) -> int:
    """Return the fewest members of a secure sum: more than two thirds, so that two lists share an honest signer.

    >>> [least_threshold(n) for n in (3, 4, 6, 10, 64)]
    [3, 3, 5, 7, 43]
    """
    return 2 * learners // 3 + 1


LEAST_BOUND = 1e-12
"""The least bound of a secure sum: its steps are still numbers."""
_Bound = Annotated[float, Meta(ge=LEAST_BOUND, le=LARGE)]


class QuantileBound(Section, frozen=True, kw_only=True):
    """Follows the changes of earlier rounds, whose magnitudes are counted under the masks."""

    quantile: Annotated[
        float, Meta(gt=0, lt=1, description="share of the changes, without zeros, that the next bound has to cover")
    ]
    margin: Annotated[
        float, Meta(ge=1, le=1000, description="the next bound is this multiple of the magnitude at the quantile")
    ] = 2.0
    initial: Annotated[_Bound, Meta(description="the bound of the first round")] = 1.0


class SecureSums(Section, frozen=True, kw_only=True):
    """Hides each update from the coordinator and the store, which learn the sum alone (docs/secure-sums.md)."""

    bits: Annotated[
        int, Meta(ge=8, le=32, description="bits of a masked value: it is rounded at random to one of 2^bits points")
    ] = 16
    bound: Annotated[
        _Bound | QuantileBound,
        Meta(
            description="largest change of a weight in a round, by magnitude; larger changes are clipped. A number, or "
            "`{quantile: 0.999}` to follow the changes of earlier rounds"
        ),
    ] = 1.0
    most_clipped: Annotated[
        Fraction, Meta(description="a round fails when a larger share of its values was clipped")
    ] = 0.01
    norm: Annotated[
        Amount,
        Meta(description="largest L2 norm of an update, to which each learner scales its own; 0: no limit"),
    ] = 0.0
    threshold: Annotated[
        Count,
        Meta(description="fewest learners in a sum, more than two thirds of them; 0: as few as that allows"),
    ] = 0


class Averaging(Section, frozen=True, kw_only=True, tag_field="name", tag="averaging"):
    """Combines the learners' updates: federated averaging (McMahan et al. 2017)."""

    engine: Annotated[
        Literal["fedpipe", "tff"],
        Meta(description="engine that combines updates: fedpipe in constant memory, or TensorFlow Federated"),
    ] = "fedpipe"
    rule: Annotated[
        RuleSettings,
        Meta(
            description="how updates are combined; a `name` alone takes its defaults; those of TFF need `engine: tff`"
        ),
    ] = field(default_factory=Mean)
    before: Annotated[
        tuple[StepBefore, ...],
        Meta(max_length=10, description="steps that change the updates before the rule combines them, in this order"),
    ] = ()
    weighting: Annotated[
        Literal["examples", "uniform"], Meta(description="weight of an update: its train examples, or 1")
    ] = "examples"
    most_share: Annotated[
        Share,
        Meta(
            description="largest share of a round's weight that one update may have; all weigh the same when there are "
            "too few for it; 0: no limit"
        ),
    ] = 0.0
    most_norm: Annotated[
        Amount,
        Meta(
            description="an update is refused when its change has more than this multiple of the median norm of the "
            "others, at least three; 0: no limit. Its norm must also exceed that of the global weights, and more steps "
            "may go further. Only for `mean`: other rules have a defence of their own"
        ),
    ] = 10.0
    most_examples: Annotated[
        Count, Meta(description="an update that claims more train examples is refused; 0: no limit")
    ] = 0
    server_optimizer: Annotated[
        OptimizerSettings,
        Meta(description="step of the global weights; `sgd` with rate 1.0 takes the aggregate as it is"),
    ] = field(default_factory=lambda: Sgd(learning_rate=1.0))
    schedule: Annotated[
        Schedule | None, Meta(description="how the rate of `server_optimizer` changes over the rounds of a run")
    ] = None
    vote: Annotated[
        Vote | None, Meta(description="learners vote on each aggregated model; none: every model is accepted")
    ] = None

    secure: Annotated[
        SecureSums | None, Meta(description="the coordinator learns the sum of the updates alone; none: it reads each")
    ] = None

    @property
    def norm_limit(self) -> float:
        """Return `most_norm`; 0 for a rule with a defence of its own, and for secure sums."""
        rule = self.rule
        if self.secure:
            return 0.0
        bare = isinstance(rule, Robust | Compressed | Secure) and not (rule.zeroing or rule.clipping)
        return self.most_norm if bare or (isinstance(rule, Mean) and not self.before) else 0.0

    @property
    def ignores_examples(self) -> bool:
        """Return whether the rule, or a step before it, weighs all updates the same."""
        mixes = any(not isinstance(step, Clip) for step in self.before)
        weighs = isinstance(self.rule, Mean | Robust | Compressed | Secure)
        return mixes or not weighs

    @property
    def rule_in_words(self) -> str:
        """Return the names of the rule and of the steps before it, such as `clip, median`."""
        return ", ".join(tag_of(part) for part in (*self.before, self.rule))

    @property
    def fewest_updates(self) -> int:
        """Return the fewest updates with which the rule's guarantee holds; 1 for the rules of TFF."""
        return fewest_updates(self.before, self.rule) if isinstance(self.rule, OWN_RULES) else 1


class Collective(Section, frozen=True, kw_only=True, tag_field="name", tag="collective"):
    """Lets one learner propose and all vote; an accepted proposal becomes the shared model (Fetch.ai colearn)."""

    vote: Annotated[Vote, Meta(description="how a proposal is accepted")] = field(default_factory=Vote)
    proposers: Annotated[
        tuple[Name, ...], Meta(description="learners that propose, one a round in this order; empty: all, as listed")
    ] = ()
