r"""The steps of a round's trainings, for methods that divide updates by them: FedNova and SCAFFOLD.

Steps follow from the examples of an update and the settings of the training, so no learner reports them.

**FedNova** moves the weights by the mean of the updates, each divided by its steps, times the mean number of steps:

.. math:: x' = x + \tau_{eff} \sum_k p_k \frac{y_k - x}{\tau_k}, \quad
    \tau_{eff} = \sum_k p_k \tau_k, \quad p_k = \frac{n_k}{\sum_j n_j}

Source: Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
section 4, for plain gradient descent. It is a mean with the weights n_k / tau_k, and a longer step to it. So it streams
like any mean.

**SCAFFOLD** keeps control variates, which are estimates of gradients: c_k of each learner, and their mean c.

.. math:: c_k' = c_k - c + \frac{x - y_k}{K_k \eta}, \quad c' = c + \frac{|S|}{N} \sum_k p_k (c_k' - c_k)

Source: Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", Algorithm 1, option
II. The change of c_k follows from the update, so only the update is sent. The paper has equal p_k, which is
`weighting: uniform`. By examples, c is the weighted mean, as the aggregate is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from fedpipe.aggregation import Combined, Source, combine, make_rule
from fedpipe.aggregation.arithmetic import Floats
from fedpipe.aggregation.optimizers import ServerStep, State
from fedpipe.federation.rules import Mean
from fedpipe.federation.training import Training
from fedpipe.rounds.history import record_layout
from fedpipe.rounds.manifests import Record
from fedpipe.store import Store

CONTROL = "control"
"""The slot of a record's state that holds SCAFFOLD's control variate in float64."""


def steps_of(training: Training, examples: int, *, private: bool = False) -> int:
    """Return the steps of the optimizer in a training.

    Args:
        training: epochs or steps, size of a batch, accumulation.
        examples: of the train part.
        private: a private training leaves out the last, smaller batch.
    """
    batches = examples // training.batch_size if private else -(-examples // training.batch_size)
    return (training.local_steps or training.local_epochs * batches) // training.accumulate


def stretched(server: ServerStep, sources: Sequence[Source], steps: Sequence[int]) -> ServerStep:
    """Return a server step that first moves FedNova's way towards the mean of updates with the weights n_k / tau_k.

    Args:
        server: the step from the result.
        sources: the updates, with these weights.
        steps: tau_k, of each.
    """
    if len(set(steps)) == 1:
        return server
    counts = [source.weight * taken for source, taken in zip(sources, steps, strict=True)]
    total = sum(counts)
    effective = sum(count * taken for count, taken in zip(counts, steps, strict=True)) / total
    factor = effective * sum(source.weight for source in sources) / total

    def step(base: Floats, aggregate: Floats, state: State, number: int) -> tuple[Floats, State]:
        moved = base + factor * (aggregate - base)
        return (moved, {}) if server.replaces else server.step(base, moved, state, number)

    return server._replace(replaces=False, step=step)


Attempt = Callable[[Sequence[Source]], Combined]
"""Combines some of a round's updates."""


def combined_by_all(sources: Sequence[Source], attempt: Attempt) -> Combined:
    """Combine updates, and again without those that were refused: the length of FedNova's step depends on all."""
    refused: dict[str, str] = {}
    while True:
        found = attempt(sources)
        refused |= found.refused
        left = [source for source in sources if source.learner in found.accepted]
        if len(left) == len(sources):
            return found._replace(refused=refused)
        sources = left


class Control(NamedTuple):
    """SCAFFOLD's control variate: in the model's form for the learners, and in float64 for the next round."""

    weights: tuple[Path, str]
    state: tuple[Path, str]


def next_control(
    store: Store, previous: Record, sources: Sequence[Source], steps: Sequence[int], folder: Path, *, rate: float,
    learners: Collection[str],
) -> Control:  # fmt: skip
    """Return the control variate after a round, in another pass over its updates.

    Args:
        store: the federation's store.
        previous: the record of the round before.
        sources: the updates that count, with their weights n_k.
        steps: K_k, of each.
        folder: where its files are written.
        rate: eta, the learning rate of the learners.
        learners: all of the federation.
    """
    total = sum(source.weight for source in sources)
    divided = [source._replace(weight=source.weight / taken) for source, taken in zip(sources, steps, strict=True)]
    part = len(sources) / len(learners)
    factor = part * sum(source.weight for source in divided) / total / rate

    def step(base: Floats, aggregate: Floats, state: State, _number: int) -> tuple[Floats, State]:
        control = (1 - part) * state[CONTROL] + factor * (base - aggregate)
        return control, {CONTROL: control}

    folder.mkdir()
    found = combine(
        store, divided, layout=record_layout(store, previous), base=previous.weights, state=previous.state,
        rule=make_rule(Mean()), server=ServerStep((CONTROL,), replaces=False, step=step), folder=folder,
    )  # fmt: skip
    return Control(found.weights, found.state[CONTROL])
