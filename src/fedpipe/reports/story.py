"""Reads a run's story from its records, for `summary.json` and the tables of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from fedpipe.data.disclosure import schema_of
from fedpipe.data.parts import Shard, get_shard
from fedpipe.data.schema import Schema
from fedpipe.errors import CorruptError, DroppedError, NotFoundError, RoundError
from fedpipe.reports.quality import personal_models
from fedpipe.reports.traffic import EXCHANGE, common_rows, traffic_of
from fedpipe.rounds.ballots import start_scores
from fedpipe.rounds.choosing import tests_by_round
from fedpipe.rounds.evaluation import Choice, Evaluation
from fedpipe.rounds.history import origin_of, readable_history
from fedpipe.rounds.manifests import Record, Scores, Spent
from fedpipe.rounds.measures import by_class
from fedpipe.rounds.plan import Plan, current_plan
from fedpipe.rounds.received import Source, cleaned, guarded
from fedpipe.rounds.selection import took_part
from fedpipe.rounds.tallies import ClassTally
from fedpipe.rounds.timings import Timing, read_timings
from fedpipe.rounds.updates import mean_tested
from fedpipe.rounds.voting import electorate, score_of
from fedpipe.sessions.board import Board, Ending
from fedpipe.store import Store, keys
from fedpipe.store.objects import find

T = TypeVar("T")


class Story(Struct, frozen=True, kw_only=True):
    """Holds everything that the store has about a run; `flaw` is why the records end before the run does."""

    store: str
    plan: Plan
    records: tuple[Record, ...]
    shards: tuple[Shard, ...]
    evaluation: Evaluation | None
    onnx: dict[str, Any]
    timings: tuple[Timing, ...]
    start: dict[str, Scores] = {}
    ending: Ending = ""
    flaw: str = ""
    schema: Schema | None = None


def read_story(store: Store, run: str, uri: str = "") -> Story:
    """Reads a run.

    Args:
        store: the federation's folder of the store.
        run: the run's name.
        uri: URI of the whole store, as in `--store`.

    Raises:
        NotFoundError: there is no such run.
        CorruptError: its first record cannot be read.
    """
    found, flaw = readable_history(store, run)
    records = tuple(found)
    if not records and flaw:
        raise CorruptError(flaw, where=store.uri, remedy="Run `fedpipe repair`.")
    if not records:
        raise NotFoundError(f"there is no run {run!r}", where=store.uri)
    plan = current_plan(store, run, records[0].plan)
    names = tuple(learner.name for learner in plan.federation.learners)
    return Story(
        store=uri or store.uri,
        plan=plan,
        records=records,
        shards=tuple(filter(None, (_find_shard(store, run, name, plan.shards[name]) for name in sorted(plan.shards)))),
        evaluation=_found(store, keys.evaluation(run), Evaluation),
        onnx=_found(store, keys.onnx(run), dict) or {},
        timings=tuple(sorted(read_timings(store, run, names, len(records)), key=lambda t: t.started)),
        start=start_scores(store, plan) if plan.federation.vote else {},
        ending=board.ending if (board := _found(store, keys.board(run), Board)) else "",
        flaw=f"{flaw}; see `fedpipe repair`" if flaw else "",
        schema=_find_schema(store, plan),
    )


def _found(store: Store, key: str, kind: type[T]) -> T | None:
    """Returns an object of the coordinator; None also if it is damaged, which hides no other part of the story."""
    try:
        return find(store, key, kind)
    except CorruptError:
        return None


def _find_schema(store: Store, plan: Plan) -> Schema | None:
    """Returns the schema of the run's table; None without one, or if it was deleted or damaged since."""
    try:
        return schema_of(store, plan)
    except (CorruptError, NotFoundError, RoundError):
        return None


def _find_shard(store: Store, run: str, name: str, digest: str) -> Shard | None:
    """Returns a learner's shard; None when it was deleted or damaged since, which hides no other part of the story."""
    source = Source(store, run, keys.content(digest, name), "shard")
    try:
        return guarded(source, lambda: get_shard(store, name, digest))
    except DroppedError:
        return None


def _tested_metrics(records: tuple[Record, ...], number: int) -> dict[str, float]:
    """Returns metrics of a round's model, from the learners' tests at the start of the next round.

    They are means over the learners' test parts, weighted by examples; empty if no learner tested the model.
    """
    following = next((r for r in records if r.round == number + 1), None)
    if following is not None and following.secure:
        tests = "test_"
        return {k.removeprefix(tests): v for k, v in following.metrics.items() if k.startswith(tests)}
    return mean_tested(update.tested for update in following.updates) if following else {}


def shared_scores(story: Story) -> list[dict[str, Scores]]:
    """Returns each learner's scores of the shared model after each round of votes, from round 0 on.

    A learner that did not vote on an accepted model has no scores of it.
    """
    by_round = [dict(story.start)]
    for record in story.records[1:]:
        if record.accepted:
            by_round.append({ballot.learner: ballot.proposed for ballot in record.ballots})
        else:
            by_round.append({**by_round[-1], **{ballot.learner: ballot.current for ballot in record.ballots}})
    return by_round


Tests = Mapping[int, Mapping[str, Mapping[str, float]]]
"""Metrics of the model of each round at each learner."""


def tests_of_rounds(story: Story) -> dict[int, dict[str, dict[str, float]]]:
    """Returns each learner's metrics of each round's model, by round and learner; without rounds that nobody tested."""
    found = {
        number: {name: dict(tested.metrics) for name, tested in sorted(tests.items())}
        for number, tests in tests_by_round(story.records, voted=story.plan.federation.vote is not None).items()
    }
    last, evaluation = story.records[-1], story.evaluation
    if evaluation and last.round and last.accepted and last.round not in found:
        tests = evaluation.learners if evaluation.weights == last.weights else {}
        if evaluation.choice and evaluation.last == last.weights:
            tests = evaluation.choice.last
        if tests:
            found[last.round] = {name: dict(measured.metrics) for name, measured in sorted(tests.items())}
    return found


def global_metrics(story: Story, number: int) -> dict[str, float]:
    """Returns metrics of a round's model over the learners' test parts, weighted by examples; empty if not tested.

    They come from the next round's updates, for the last round from the federated evaluation, and in a run with votes
    from the voters' scores.
    """
    if story.plan.federation.vote:
        return mean_tested(scores.test for scores in shared_scores(story)[number].values())
    record = story.records[number]
    metrics = _tested_metrics(story.records, number) or {  # a simulated round records its own tests
        name.removeprefix("test_"): value for name, value in record.metrics.items() if name.startswith("test_")
    }
    last, evaluation = story.records[-1], story.evaluation
    if metrics or number != last.round or evaluation is None or evaluation.weights != last.weights:
        return metrics
    return dict(evaluation.federated.metrics) if evaluation.federated else {}


_ROUND_STEPS = ("train", "propose", "aggregate", "simulate", "vote", "tally", "exchange", "join")


def round_seconds(story: Story, number: int) -> float:
    """Returns the seconds from the start of a round's first step to the end of its last."""
    spans = [(t.started, t.started + t.seconds) for t in story.timings if t.round == number and t.step in _ROUND_STEPS]
    return max(e for _, e in spans) - min(s for s, _ in spans) if spans else 0.0


def summarise(story: Story, tests: Tests | None = None) -> dict[str, Any]:
    """Returns the content of `summary.json`.

    `loss` and metrics without a prefix describe the learners' training in the round. Metrics `test_...` describe the
    model of the round, on the learners' test parts; `tests` has them by learner. In a run with votes, each round has
    its decision, and round 0 has the learners' scores before any training. `begun_from` is the round whose model the
    run continues; null if none.

    Args:
        story: the run.
        tests: `tests_of_rounds` of it, if they are known already.
    """
    voted = story.plan.federation.vote is not None
    tests = tests_of_rounds(story) if tests is None else tests
    rounds = [_round(story, record, tests) for record in story.records if record.round or voted]
    timings = story.timings
    ends = [t.started + t.seconds for t in timings]
    return {
        "federation": story.plan.federation.name,
        "run": story.plan.run,
        "store": story.store,
        "begun_from": {"run": origin.run, "round": origin.round} if (origin := origin_of(story.records[0])) else None,
        "rounds": rounds,
        "evaluation": _evaluated(story.evaluation) if story.evaluation else {},
        **({"choice": _chosen(choice)} if (choice := story.evaluation and story.evaluation.choice) else {}),
        **({"rejected": story.onnx["rejected"]} if "rejected" in story.onnx else {}),
        "onnx": {k: story.onnx[k] for k in ("path", "digest", "max_abs_difference", "opset") if k in story.onnx},
        **({"traffic": traffic} if (traffic := _traffic(story)) else {}),
        **({"rows": rows} if (rows := {k: v._asdict() for k, v in common_rows(story.records).items()}) else {}),
        "seconds": round(max(ends) - min(t.started for t in timings), 3) if timings else 0.0,
        **({"ending": story.ending} if story.ending else {}),
        **({"flaw": story.flaw} if story.flaw else {}),
        **({"privacy": msgspec.to_builtins(spent)} if (spent := privacy(story)) else {}),
    }


def _chosen(choice: Choice) -> dict[str, Any]:
    """Returns a choice without the tests of the last model, which are those of its round."""
    found: dict[str, Any] = msgspec.to_builtins(choice)
    del found["last"]
    return found


_MOST_CLASSES = 20
"""Most classes whose metrics `summary.json` lists."""


def _evaluated(evaluation: Evaluation) -> dict[str, Any]:
    """Returns an evaluation without tallies, and with the metrics of each class of the first output."""
    found: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(evaluation, tallies={}))
    del found["tallies"]
    if personal := personal_models(evaluation):
        found["personal_models"] = personal._asdict()
    for kind, tallies in evaluation.tallies.items():
        first = next(iter(tallies.values()), None)
        if isinstance(first, ClassTally) and len(first.true) <= _MOST_CLASSES:
            names = evaluation.classes if len(evaluation.classes) == len(first.true) else range(len(first.true))
            lines = zip(map(str, names), by_class(first), strict=True)
            found[kind]["classes"] = {name: line._asdict() for name, line in lines}
    return found


def _round(story: Story, record: Record, tests: Tests) -> dict[str, Any]:
    metrics = {k: v for k, v in record.metrics.items() if k != "loss"}
    metrics |= {f"test_{k}": v for k, v in global_metrics(story, record.round).items()}
    vote = {"vote": decision(story, record)} if story.plan.federation.vote else {}
    return {
        "round": record.round,
        "loss": record.metrics.get("loss"),
        "metrics": metrics,
        "learners": list(took_part(story.plan.federation, record)),
        "dropped": [{"learner": d.learner, "why": d.why} for d in record.dropped],
        **({"not_chosen": list(record.not_chosen)} if record.not_chosen else {}),
        "record": record.ref.record,
        "weights": record.weights,
        "seconds": round(round_seconds(story, record.round), 3),
        **({"tests": tests[record.round]} if record.round in tests else {}),
        **vote,
    }


def _traffic(story: Story) -> dict[str, dict[str, Any]]:
    """Returns the traffic of each party in all rounds, and in each phase."""
    found: dict[str, dict[str, Any]] = {}
    for name, phases in traffic_of(story.plan.federation, story.timings).items():
        numbers = {phase: {k: round(v, 3) for k, v in one._asdict().items()} for phase, one in phases.items()}
        found[name] = {**numbers.get(EXCHANGE, {}), "phases": numbers}
    return found


def decision(story: Story, record: Record) -> dict[str, Any]:
    """Describes how a round was decided: proposer, outcome, epsilon, and each learner's ballot and scores."""
    spent = record.spent_by(record.proposer)
    return {
        "proposer": record.proposer,
        "accepted": record.accepted,
        "approvals": record.outcome.approvals if record.outcome else 0,
        "voters": record.outcome.voters if record.outcome else 0,
        "code": next((d.code for d in record.dropped if d.learner == record.proposer), ""),
        "epsilon": spent.epsilon if spent and math.isfinite(spent.epsilon) else None,
        "learners": {learner.name: _voter(story, record, learner.name) for learner in story.plan.federation.learners},
    }


def _voter(story: Story, record: Record, name: str) -> dict[str, Any]:
    """Describes a voter; `ballot` is yes, no, void (a proposer's under `others_vote`), absent, or none."""
    vote = story.plan.federation.vote
    assert vote is not None
    ballot = next((b for b in record.ballots if b.learner == name), None)
    scores = ballot.proposed if ballot else story.start.get(name) if not record.round else None
    why = next((a.why for a in record.absent if a.learner == name), cleaned(ballot.why) if ballot else "")
    answer = "none" if record.outcome is None else "absent"
    if ballot is not None:
        counts = name in electorate(vote, [name], record.proposer)
        answer = "void" if not counts else "yes" if ballot.approve else "no"
    return {
        "ballot": answer,
        "vote_score": score_of(vote, scores.vote) if scores else None,
        "test_score": score_of(vote, scores.test) if scores else None,
        **({"why": why} if why else {}),
    }


def privacy(story: Story) -> dict[str, Spent]:
    """Returns the privacy that each private learner had spent by its last update or refusal in the run."""
    spent_by: dict[str, Spent] = {}
    for record in story.records:
        for learner in story.plan.federation.learners:
            if spent := record.spent_by(learner.name):
                spent_by[learner.name] = spent
    return dict(sorted(spent_by.items()))
