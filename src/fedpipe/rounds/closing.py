"""Close a round: combine its updates, count its ballots, commit its record.

A round of averaging ends in `close_round`, a vote in `close_vote`. The steps `aggregate` and `tally` call them, and so
does the coordinator of a session. Both may be repeated after a crash at any point, and two processes may run them at
once.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import UNSET
from msgspec.structs import replace

from fedpipe.aggregation import (
    Bounds,
    Combined,
    Forest,
    Rule,
    Source,
    TooFewError,
    combine,
    make_rule,
    make_server_step,
)
from fedpipe.aggregation.encoding import Encoding
from fedpipe.errors import CorruptError, DroppedError, NotFoundError, RoundError, WeightsError
from fedpipe.federation.algorithms import Averaging
from fedpipe.federation.exchange import Exchange
from fedpipe.federation.federation import Federation
from fedpipe.federation.methods import FedNova, Scaffold
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.rounds.ballots import collect_ballots
from fedpipe.rounds.history import begun_from, commit, propose_candidate, read_candidate, read_record, record_layout
from fedpipe.rounds.manifests import MOST_METRICS, Dropped, Record, Update, bounded
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.received import cleaned
from fedpipe.rounds.roll import Roll, check_quorum, find_dropped
from fedpipe.rounds.selection import select
from fedpipe.rounds.steps import CONTROL, Control, combined_by_all, next_control, steps_of, stretched
from fedpipe.rounds.updates import collect, fetch_weights, mean_metrics, read_valid
from fedpipe.rounds.voting import proposer_of, tally
from fedpipe.store import Store
from fedpipe.store.objects import put_file
from fedpipe.weights import Layout

log = logging.getLogger("fedpipe")

Combiner = Callable[[Store, Plan, Record, list[Update], Path], Combined]
"""Combines updates, given the round before, the updates, and a folder for the result's files. Raises WeightsError."""


def close_round(
    store: Store, plan: Plan, number: int, base: str, roll: Roll | None = None, combiner: Combiner | None = None,
    *, offered: Mapping[str, Update] = {},
) -> Record:  # fmt: skip
    """Aggregate the valid updates of a round and commit the result; when learners vote, it is the candidate.

    Args:
        store: the federation's store.
        plan: the run's plan.
        number: the round, from 1.
        base: digest of the weights that the round began with.
        roll: the learners that the round asked; by default those that it selects, however long they take.
        combiner: combines the updates; by default in constant memory.
        offered: updates that were read and checked already.

    Raises:
        QuorumError: too few valid updates; nothing is committed.
        RoundError: the round before is not committed, or ended with other weights.
    """
    if found := read_record(store, plan.run, number):
        log.info("round %d is already committed", number)
        return commit(store, found)
    federation = plan.federation
    if federation.vote and (drafted := read_candidate(store, plan.run, number)):
        log.info("the candidate of round %d is already there", number)
        return drafted
    previous = begun_from(store, plan.run, number, base)
    roll = roll or Roll(select(federation, number))
    updates, dropped = collect(store, plan, previous, roll, offered)
    check_quorum(number, len(updates), dropped, federation.min_updates, demanding_rule(federation))
    with tempfile.TemporaryDirectory() as folder:
        try:
            combined = (combiner or in_constant_memory())(store, plan, previous, updates, Path(folder))
        except TooFewError as error:
            dropped = sorted([*dropped, *_refusals(error.refused)], key=lambda d: d.learner)
            check_quorum(number, len(error.left), dropped, federation.min_updates, demanding_rule(federation))
            raise
        except WeightsError as error:
            raise RoundError(f"round {number}: {error}", remedy="HEAD stays at the last good round.") from error
        used = [u for u in updates if u.learner in combined.accepted]
        dropped = sorted([*dropped, *_refusals(combined.refused)], key=lambda d: d.learner)
        check_quorum(number, len(used), dropped, federation.min_updates, demanding_rule(federation))
        state, control = dict(combined.state), _next_control(store, plan, previous, used, Path(folder))
        put_file(store, *combined.weights)
        if control is not None:
            state[CONTROL] = control.state
            put_file(store, *control.weights)
        for path, digest in state.values():
            put_file(store, path, digest, kind="coordinator")
    for drop in dropped:
        log.warning("round %d: %s is dropped: %s", number, drop.learner, drop.why)
    record = _record(plan, previous, combined._replace(state=state), used, dropped)
    if control is not None:
        record = replace(record, control=control.weights[1])
    return propose_candidate(store, record) if federation.vote else commit(store, record)


def demanding_rule(federation: Federation) -> str:
    """Return the name of the rule if it needs more updates than the quorum has."""
    algorithm = federation.algorithm
    demanding = isinstance(algorithm, Averaging) and federation.min_updates > federation.min_learners
    return algorithm.rule_in_words if isinstance(algorithm, Averaging) and demanding else ""


def source_of(plan: Plan, update: Update) -> Source:
    """Return an update as the aggregation takes it."""
    weight, steps = weight_of(plan, update), _steps(plan, update)
    if isinstance(plan.federation.method, FedNova):
        weight /= steps
    return Source(update.learner, update.weights, update.size, weight, places_of(plan)[update.learner], steps)


def weight_of(plan: Plan, update: Update) -> float:
    """Return how much an update counts."""
    algorithm = plan.federation.algorithm
    return update.examples if isinstance(algorithm, Averaging) and algorithm.weighting == "examples" else 1


def _steps(plan: Plan, update: Update) -> int:
    private = plan.federation.privacy_of(update.learner) is not None
    return max(1, steps_of(plan.federation.training, update.examples, private=private))


def _next_control(store: Store, plan: Plan, previous: Record, used: list[Update], folder: Path) -> Control | None:
    """Return SCAFFOLD's control variate after a round; None for other methods."""
    federation = plan.federation
    if not isinstance(federation.method, Scaffold):
        return None
    sources = [source_of(plan, update) for update in used]
    return next_control(
        store, previous, sources, [s.steps for s in sources], folder / "control", learners=places_of(plan),
        rate=federation.training.at(previous.round + 1).learning_rate,
    )  # fmt: skip


def bounds_of(plan: Plan) -> Bounds:
    """Return what one update may do to a round at most."""
    algorithm = plan.federation.algorithm
    assert isinstance(algorithm, Averaging)
    return Bounds(norm=algorithm.norm_limit, share=algorithm.most_share)


def encoding_of(plan: Plan, layout: Layout, base: Path) -> Encoding | None:
    """Return how updates are encoded; None: as the weights themselves.

    Args:
        plan: the run's plan.
        layout: of the model.
        base: where the global weights are, once they are needed.
    """
    exchange = plan.federation.training.exchange
    return Encoding(exchange, layout, base) if exchange else None


def places_of(plan: Plan) -> dict[str, int]:
    """Return each learner's position among all of the federation, sorted by name."""
    return _places(tuple(learner.name for learner in plan.federation.learners))


@functools.lru_cache(maxsize=4)
def _places(names: tuple[str, ...]) -> dict[str, int]:
    return {name: place for place, name in enumerate(sorted(names))}


def rate_factor(plan: Plan, number: int) -> float:
    """Return the factor of the server's learning rate in a round."""
    algorithm = plan.federation.algorithm
    assert isinstance(algorithm, Averaging)
    return algorithm.schedule.factor(number, plan.federation.training.rounds) if algorithm.schedule else 1.0


def rule_of(plan: Plan, number: int) -> Rule:
    """Return the aggregation rule of a round."""
    algorithm = plan.federation.algorithm
    assert isinstance(algorithm, Averaging)
    return make_rule(algorithm.rule, algorithm.before, number)


def in_constant_memory(forest: Forest | None = None, layout: Layout | None = None) -> Combiner:
    """Return a combiner that streams updates from the store.

    Args:
        forest: updates that were fetched and added up already.
        layout: of the model; by default it is read from the store.
    """

    def combined(store: Store, plan: Plan, previous: Record, updates: list[Update], folder: Path) -> Combined:
        algorithm = plan.federation.algorithm
        assert isinstance(algorithm, Averaging)
        server = make_server_step(algorithm.server_optimizer, rate_factor(plan, previous.round + 1))
        nova = isinstance(plan.federation.method, FedNova)

        def attempt(sources: Sequence[Source]) -> Combined:
            return combine(
                store,
                sources,
                layout=layout or record_layout(store, previous),
                base=previous.weights,
                state=previous.state,
                rule=rule_of(plan, previous.round + 1),
                server=stretched(server, sources, [s.steps for s in sources]) if nova else server,
                folder=folder,
                forest=forest,
                bounds=bounds_of(plan),
                exchange=plan.federation.training.exchange,
            )

        sources = [source_of(plan, update) for update in updates]
        return combined_by_all(sources, attempt) if nova else attempt(sources)

    return combined


def _refusals(refused: dict[str, str]) -> list[Dropped]:
    return [Dropped(learner=name, why=why) for name, why in refused.items()]


def _record(plan: Plan, previous: Record, combined: Combined, used: list[Update], dropped: list[Dropped]) -> Record:
    algorithm = plan.federation.algorithm
    assert isinstance(algorithm, Averaging)
    return Record(
        format=plan.format,
        federation=plan.federation.name, run=plan.run, round=previous.round + 1, previous=previous.parent,
        plan=previous.plan, base=previous.weights, weights=combined.weights[1], layout=previous.layout,
        state={slot: digest for slot, (_, digest) in combined.state.items()},
        rule=_named(algorithm, plan.federation.training.exchange),
        updates=tuple(used), dropped=tuple(dropped), metrics=_metrics(used, combined),
        not_chosen=combined.not_chosen or UNSET,
    )  # fmt: skip


def _named(algorithm: Averaging, exchange: Exchange | None) -> str:
    rule = algorithm.rule_in_words if exchange is None else f"{algorithm.rule_in_words} of {exchange.in_words}"
    return rule if algorithm.engine == "fedpipe" else f"{algorithm.engine} {rule}"


def _metrics(used: list[Update], combined: Combined) -> dict[str, float]:
    """Return the updates' means, and as many of the aggregation's own numbers as a record takes."""
    found = mean_metrics(used)
    measured = {k: v for k, v in bounded(combined.measured).items() if k not in found}
    return found | dict(list(measured.items())[: max(0, MOST_METRICS - len(found))])


def close_vote(store: Store, plan: Plan, previous: Record, proposed: Record, roll: Roll) -> Record:
    """Decide a round by its ballots and commit it.

    Args:
        store: the federation's store.
        plan: the run's plan.
        previous: the record of the round before.
        proposed: the record to commit if the vote accepts it, with its candidate.
        roll: the learners that the vote asked.

    Raises:
        QuorumError: too few learners voted; nothing is committed.
    """
    if found := read_record(store, plan.run, proposed.round):
        log.info("round %d is already committed", proposed.round)
        return commit(store, found)
    record = _decided(store, plan, previous, proposed, roll)
    log.info("round %d: %s", record.round, "accepted" if record.accepted else "rejected")
    return commit(store, record)


def proposal_of(store: Store, plan: Plan, previous: Record, roll: Roll) -> Record:
    """Return the record to commit if the vote accepts the proposer's update; without a proposal it is a rejection."""
    number = previous.round + 1
    proposer = proposer_of(plan.federation.proposers, number)
    record = Record(
        format=plan.format,
        federation=plan.federation.name, run=plan.run, round=number, previous=previous.parent, plan=previous.plan,
        base=previous.weights, weights=previous.weights, layout=previous.layout, rule="collective", accepted=False,
        proposer=proposer,
    )  # fmt: skip
    if why := roll.excused.get(proposer):
        return replace(record, dropped=(Dropped(learner=proposer, why=why),))
    try:
        update = read_valid(store, plan, previous, read_enrolled(store), proposer)
        if update is None:
            found = find_dropped(store, proposer, plan.run, number)
            return replace(record, dropped=(found or Dropped(learner=proposer, why="no proposal"),))
    except DroppedError as error:
        return replace(record, dropped=(Dropped(learner=proposer, why=cleaned(error.what)),))
    return replace(
        record,
        updates=(update,),
        metrics=update.metrics,
        candidate=update.weights,
        weights=update.weights,
        accepted=True,
    )


def _decided(store: Store, plan: Plan, previous: Record, proposed: Record, roll: Roll) -> Record:
    federation, number = plan.federation, proposed.round
    assert federation.vote is not None
    assert proposed.candidate is not None
    ballots, absent = collect_ballots(
        store, plan, number=number, base=previous.weights, candidate=proposed.candidate, roll=roll
    )
    for item in absent:
        log.warning("round %d: %s does not vote: %s", number, item.learner, item.why)
    check_quorum(number, len(ballots), absent, federation.min_learners)
    names = [learner.name for learner in federation.learners]
    outcome = tally(federation.vote, names, ballots, proposed.proposer)
    record = replace(proposed, ballots=tuple(ballots), absent=tuple(absent), outcome=outcome)
    rejected = replace(record, accepted=False, weights=previous.weights, state=previous.state, control=previous.control)
    if not outcome.accepted:
        return rejected
    try:
        if proposed.proposer:
            _adopt(store, plan.run, proposed.updates[0], weights_of=previous)
    except (CorruptError, NotFoundError) as error:
        refused = Dropped(learner=proposed.proposer, why=cleaned(error.what))
        log.warning("round %d: the proposal cannot be adopted: %s", number, refused.why)
        return replace(rejected, dropped=(refused,))
    return record


def _adopt(store: Store, run: str, update: Update, *, weights_of: Record) -> None:
    """Make a learner's proposal a global object, after checking it: voters only measured it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        layout = record_layout(store, weights_of)
        fetch_weights(store, update.weights, layout, path, update.learner, "proposals", run)
        put_file(store, path, update.weights)
