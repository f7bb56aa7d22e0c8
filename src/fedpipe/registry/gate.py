"""Decide whether a model is good enough to be published after another one."""

from __future__ import annotations

from collections.abc import Mapping

from fedpipe.federation.training import Export
from fedpipe.registry.publication import ModelVersion, Origin, find_origin, versions
from fedpipe.rounds.choosing import gain, tests_by_round, value_of
from fedpipe.rounds.evaluation import Evaluation, tests_in
from fedpipe.rounds.history import history
from fedpipe.rounds.manifests import Tested
from fedpipe.rounds.plan import Plan
from fedpipe.store import Store, keys
from fedpipe.store.objects import find


def refusal(store: Store, plan: Plan, weights: str) -> str:
    """Return why the model of a run is not published by `export.publish_if`; empty if it may be.

    It is compared with the newest published version. If the run began from that model, its learners tested both on the
    same examples in this run. Otherwise the tests at the end of that version's own run count.

    Args:
        store: the federation's folder of the store.
        plan: the run's plan.
        weights: digest of the weights to publish.

    Raises:
        CorruptError: an evaluation or an origin cannot be read.
    """
    export = plan.federation.exported
    served = _newest(store, plan.federation.model_name)
    if export is None or export.publish_if is None or served is None:
        return ""
    entry, origin = served
    if origin.weights == weights:
        return ""
    old, new = _tests_of(store, plan, origin), _evaluated(store, plan.run, weights)
    both = {name for name in old.keys() & new.keys() if export.compared in old[name].metrics.keys() & new[name].metrics}
    if not both:
        return f"no learner has tested {export.compared} of both this model and {entry}"
    return _flaw({name: old[name] for name in both}, {name: new[name] for name in both}, export, str(entry))


def _newest(store: Store, name: str) -> tuple[ModelVersion, Origin] | None:
    models = store.below(keys.MODELS)
    for version in reversed(versions(models).get(name, [])):
        entry = ModelVersion(name, version)
        if origin := find_origin(models, entry):
            return entry, origin
    return None


def _tests_of(store: Store, plan: Plan, origin: Origin) -> Mapping[str, Tested]:
    """Return the learners' tests of the published weights: in this run if it began from them, or in their own run."""
    records = history(store, plan.run)
    if records and records[0].weights == origin.weights and len(records) > 1:
        tests = {update.learner: update.tested for update in records[1].updates}
        tests |= {ballot.learner: ballot.current.test for ballot in records[1].ballots}
        if known := {name: tested for name, tested in tests.items() if tested}:
            return known
    if evaluated := _evaluated(store, origin.run, origin.weights):
        return evaluated
    earlier = history(store, origin.run)
    by_round = tests_by_round(earlier, voted=any(record.ballots for record in earlier))
    rounds = {record.round for record in earlier if record.accepted and record.weights == origin.weights}
    return next((tests for number, tests in by_round.items() if number in rounds), {})


def _evaluated(store: Store, run: str, weights: str) -> Mapping[str, Tested]:
    found = find(store, keys.evaluation(run), Evaluation)
    return tests_in(found) if found and found.weights == weights else {}


def _flaw(old: Mapping[str, Tested], new: Mapping[str, Tested], export: Export, entry: str) -> str:
    """Return why the new tests are not good enough; both are of the same learners."""
    condition, name = export.publish_if, export.compared
    assert condition is not None
    before, after = value_of(old, export), value_of(new, export)
    assert before is not None
    assert after is not None
    better = gain(before, after, export)
    if better <= 0 or better < condition.better_by:
        by = f" by {condition.better_by:g}" if condition.better_by else ""
        return f"{name} is {after:.4g}, not better than {before:.4g} of {entry}{by}"
    if condition.no_learner_worse_by is None:
        return ""
    losses = {k: -gain(old[k].metrics[name], new[k].metrics[name], export) for k in sorted(new)}
    worst = max(losses, key=losses.__getitem__)
    if losses[worst] <= condition.no_learner_worse_by:
        return ""
    return (
        f"{name} of {worst} is {new[worst].metrics[name]:.4g}, {old[worst].metrics[name]:.4g} with {entry}: worse by "
        f"more than {condition.no_learner_worse_by:g}"
    )
