"""The policy of a site: what its owner allows, whatever a plan asks for. It is never read from the store.

A policy can only tighten. A plan that asks for more is refused before any data are opened (`objections`). Other
settings, such as event files and limits of the process, become the smaller of the two (`effective`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, time
from typing import Annotated, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from fedpipe.federation.data import Kind
from fedpipe.federation.federation import Federation
from fedpipe.federation.mistakes import mistakes, quantity
from fedpipe.federation.names import BYTES, CORES, Amount, Count, Learners, Positive, Seconds, Section
from fedpipe.rounds.floors import Floors, LeastPrivacy
from fedpipe.rounds.releases import Leaving
from fedpipe.sites.demands import Demands, demands_of
from fedpipe.sites.journal import Usage

HOURS = r"^(([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d)?\Z"
AlgorithmName = Literal["averaging", "collective", "split"]
Text = Annotated[str, Meta(min_length=1, max_length=200)]


class Condition(Section, frozen=True, kw_only=True):
    """A condition on a column; a row without a value never fulfils it."""

    at_least: Annotated[float | None, Meta(description="smallest number")] = None
    at_most: Annotated[float | None, Meta(description="largest number")] = None
    one_of: Annotated[tuple[str, ...], Meta(description="texts, one of which the cell has; empty: any")] = ()


class Policy(Section, frozen=True, kw_only=True):
    """Limits that the site sets. Nothing in the store changes them."""

    data: Annotated[
        str, Meta(description="the site's own data, as in `learners[].data`; a path starts at the folder of site.yaml")
    ] = ""
    columns: Annotated[
        dict[Text, Kind],
        Meta(description="columns that a plan may use, also labels, with their kinds; others are removed. Empty: all"),
    ] = field(default_factory=dict)
    rows: Annotated[
        dict[Text, Condition],
        Meta(description="conditions by column that all rows fulfil, such as `{consent: {one_of: ['yes']}}`"),
    ] = field(default_factory=dict)
    least_examples: Annotated[Count, Meta(description="fewest examples with which the site takes part")] = 0
    algorithms: Annotated[tuple[AlgorithmName, ...], Meta(description="algorithms that may run; empty: all")] = ()
    epochs: Annotated[Positive | None, Meta(description="most passes over the train part in a round")] = None
    steps: Annotated[Positive | None, Meta(description="most steps of the optimizer in a round")] = None
    batch_size: Annotated[Positive | None, Meta(description="most examples in a step of the optimizer")] = None
    rounds_a_day: Annotated[Positive | None, Meta(description="most rounds that are trained in 24 hours")] = None
    bytes_a_day: Annotated[str, Meta(pattern=BYTES, description="most bytes that are sent in 24 hours")] = ""
    hours: Annotated[
        str, Meta(pattern=HOURS, description="hours in which the site trains, such as `18:00-06:00`, in its own time")
    ] = ""
    cpu: Annotated[str, Meta(pattern=CORES, description="most cores of a training")] = ""
    memory: Annotated[str, Meta(pattern=BYTES, description="most memory of a training")] = ""
    gpus: Annotated[Count | None, Meta(description="most GPUs of a training")] = None
    seconds: Annotated[Seconds, Meta(description="most seconds of an answer, such as a training; 0: no limit")] = 0.0
    privacy: Annotated[LeastPrivacy | None, Meta(description="least differential privacy of a plan")] = None
    secure_sums: Annotated[bool, Meta(description="only plans with secure sums run")] = False
    norm: Annotated[
        Amount,
        Meta(description="largest L2 norm of an update; plans limit it by `algorithm.secure.norm`. 0: no limit"),
    ] = 0.0
    learners: Annotated[Learners, Meta(description="fewest learners that form a round")] = 0
    leaves: Annotated[Leaving, Meta(description="numbers and files that may leave besides weights")] = field(
        default_factory=Leaving
    )

    def floors(self, code: tuple[str, ...] | None = None) -> Floors:
        """Return the demands that the process that trains checks again.

        Args:
            code: digests of the code that may run; None leaves that to the decisions.
        """
        return Floors(privacy=self.privacy, code=code, leaves=self.leaves)


class Effective(Struct, frozen=True, kw_only=True):
    """The settings that run at a site, when a plan fulfils its policy; empty: without a limit of the site's own.

    `metrics` is None for the usual ones.
    """

    demands: Demands
    cores: str
    memory: str
    gpus: int
    metrics: tuple[str, ...] | None
    examples: int
    tallies: bool


def objections(policy: Policy, federation: Federation, learner: str, *, examples: int | None = None) -> tuple[str, ...]:
    """Return all that a plan asks beyond a policy, each as a sentence with both values; empty if it fulfils it.

    Args:
        policy: of the site.
        federation: of the plan.
        learner: the site's name.
        examples: number of the site's train examples, if it is known.
    """
    if learner not in {one.name for one in federation.learners}:
        return (f"the plan has no learner {learner!r}; this site has this name",)
    if flaws := tuple(f"the plan has a mistake: {path} {what}" for path, what, _ in mistakes(federation)):
        return flaws
    if (named := federation.learner(learner).data) and not policy.data:
        return (f"the plan reads {named[:200]!r}; this site's policy names no data",)
    asked = demands_of(federation, learner)
    return (*asked.hazards, *_work(policy, asked, examples), *_protection(policy, asked), *_columns(policy, asked))


def _work(policy: Policy, asked: Demands, examples: int | None) -> Iterator[str]:
    if policy.algorithms and asked.algorithm not in policy.algorithms:
        yield _beyond("uses the algorithm", asked.algorithm, ", ".join(policy.algorithms))
    if policy.epochs is not None and asked.epochs > policy.epochs:
        yield _beyond("trains", f"{_counted(asked.epochs, 'epoch')} a round", str(policy.epochs))
    if policy.steps is not None:
        yield from _steps(policy.steps, asked, examples)
    if policy.batch_size is not None and asked.batch_size > policy.batch_size:
        yield _beyond("has batches of", _counted(asked.batch_size, "example"), str(policy.batch_size))
    for what, most, wanted in (
        ("cores", policy.cpu, asked.cores), ("of memory", policy.memory, asked.memory),
    ):  # fmt: skip
        if most and quantity(wanted) > quantity(most):
            yield _beyond("asks for", f"{wanted} {what}", most)
    if policy.gpus is not None and asked.gpus > policy.gpus:
        yield _beyond("asks for", _counted(asked.gpus, "GPU"), str(policy.gpus))


def _steps(most: int, asked: Demands, examples: int | None) -> Iterator[str]:
    """Compare steps; epochs are as many steps as the batches of the examples, where their number is known."""
    steps = asked.steps
    if asked.epochs and examples is None:
        epochs = _counted(asked.epochs, "epoch")
        yield f"the plan trains {epochs} a round; this site's policy needs training.local_steps"
        return
    if asked.epochs and examples is not None:
        steps = asked.epochs * -(-examples // asked.batch_size)
    if steps > most:
        yield _beyond("trains", f"{_counted(steps, 'step')} a round", str(most))


def _protection(policy: Policy, asked: Demands) -> Iterator[str]:
    if policy.privacy is not None and (flaw := policy.privacy.flaw(asked.privacy)):
        yield f"the plan protects less than this site's policy demands: {flaw}"
    if policy.secure_sums and not asked.secure:
        yield "the plan shows single updates to its coordinator; this site's policy allows secure sums only"
    if policy.norm and not 0 < asked.norm <= policy.norm:
        wanted = f"an L2 norm up to {asked.norm:g}" if asked.norm else "any L2 norm"
        yield _beyond("has updates of", wanted, f"{policy.norm:g}")
    if asked.algorithm == "split" and not policy.leaves.activations:
        yield (
            "the plan sends activations or gradients of each row to other parties; this site's policy lets none leave "
            "(leaves.activations)"
        )
    if asked.learners < policy.learners:
        counted = _counted(asked.learners, "learner")
        yield f"a round of the plan can consist of {counted}; this site's policy needs {policy.learners}"
    leaves = policy.leaves
    if asked.criterion and leaves.metrics is not None and asked.criterion not in leaves.metrics:
        allowed = ", ".join(leaves.metrics) or "no metric"
        yield f"the plan votes by {asked.criterion!r}; this site's policy lets {allowed} leave"
    if asked.rare and asked.rare < leaves.examples:
        yield (
            f"the plan has statistics of {_counted(asked.rare, 'example')} (data.statistics.rare); "
            f"this site's policy needs {leaves.examples}"
        )


def _columns(policy: Policy, asked: Demands) -> Iterator[str]:
    if not policy.columns:
        return
    for name, kind in asked.columns.items():
        allowed = policy.columns.get(name)
        if allowed is None:
            yield _beyond("reads the column", repr(name), ", ".join(sorted(policy.columns)))
        elif kind and kind != allowed:
            yield f"the plan reads the column {name!r} as {kind}; this site's policy allows {allowed}"


def _beyond(verb: str, wanted: str, allowed: str) -> str:
    return f"the plan {verb} {wanted}; this site's policy allows {allowed}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def pause(policy: Policy, usage: Usage, now: datetime) -> str:
    """Return why the site does not train at this moment, although the plan is allowed; empty if it does.

    Args:
        policy: of the site.
        usage: the work of the last 24 hours.
        now: the time at the site.
    """
    if policy.hours and not _is_within(policy.hours, now.time()):
        return f"it is {now:%H:%M}; this site's policy allows training at {policy.hours}"
    if policy.rounds_a_day is not None and usage.rounds >= policy.rounds_a_day:
        return f"{_counted(usage.rounds, 'round')} ran in 24 hours; this site's policy allows {policy.rounds_a_day}"
    if policy.bytes_a_day and usage.bytes >= quantity(policy.bytes_a_day):
        return f"{_counted(usage.bytes, 'byte')} left in 24 hours; this site's policy allows {policy.bytes_a_day}"
    return ""


def _is_within(hours: str, moment: time) -> bool:
    """Return whether a moment is in a span such as `18:00-06:00`; equal ends are the whole day.

    >>> [_is_within("18:00-06:00", time(hour)) for hour in (5, 6, 12, 18)]
    [True, False, False, True]
    """
    begin, end = (time.fromisoformat(text) for text in hours.split("-"))
    if begin < end:
        return begin <= moment < end
    return moment >= begin or moment < end


def effective(policy: Policy, asked: Demands) -> Effective:
    """Return what runs when a plan fulfils a policy: the smaller of what is asked and allowed."""
    leaves = policy.leaves
    return Effective(
        demands=replace(asked, tensorboard=asked.tensorboard and leaves.tensorboard),
        cores=policy.cpu,
        memory=policy.memory,
        gpus=asked.gpus if policy.gpus is None else min(asked.gpus, policy.gpus),
        metrics=leaves.metrics,
        examples=leaves.examples,
        tallies=leaves.tallies,
    )
