"""Checks a federation before a run, without writing anything; every error has a remedy."""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fedpipe.data.alike import alike_note
from fedpipe.data.examples import Examples, examples_joined, first_labels
from fedpipe.data.parts import dump_examples, load_examples
from fedpipe.data.schema import Schema
from fedpipe.data.settling import settle, settled
from fedpipe.data.shards import dealt
from fedpipe.data.statistics import ColumnSummary
from fedpipe.engine.workers import beside
from fedpipe.errors import BudgetError, DataError, FederationError, StoreError
from fedpipe.federation.algorithms import Averaging, Vote
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import tag_of
from fedpipe.learners.check import check_own_data, check_private_model, warm, weight_shapes
from fedpipe.learners.describe import described
from fedpipe.learners.own_data import check_own_parts, check_own_tables
from fedpipe.learners.own_rows import check_parties
from fedpipe.learners.parts import Part
from fedpipe.learners.reading import own_parts
from fedpipe.registry.rehearsal import recalled, rehearse
from fedpipe.rounds.budget import Budget, training_event
from fedpipe.rounds.voting import bar, electorate, proposer_of
from fedpipe.steps.simulate import check_simulated
from fedpipe.store import open_store, with_endpoint

_FIRST = 30
NO_STATISTICS = "no statistics"
"""Begins the finding on a learner that is left out of a table's statistics."""


class SimulationFiles(NamedTuple):
    """Holds the texts of the user's files for a simulation; empty for missing files."""

    process: str = ""
    model: str = ""


class Checked(NamedTuple):
    """Describes a passed check."""

    subject: str
    what: str


class CheckedData(NamedTuple):
    """The result of checking the data.

    Args:
        findings: the passed checks.
        examples: those with the smallest and the largest label; None without a common dataset.
        sizes: number of train examples by learner with a shard.
        schema: of a table; None for arrays, or if it depends on data that cannot be read here.
    """

    findings: list[Checked]
    examples: Examples | None = None
    sizes: Mapping[str, int] = {}
    schema: Schema | None = None


def check_reached(federation: Federation, uri: str) -> None:
    """Checks that all processes of a run reach its store. Raises StoreError."""
    if uri.startswith("memory://") and federation.environment_of("initialise") != "core":
        raise StoreError(
            "the store is in the memory of one process, and the steps of a run have several", where=uri,
            remedy="Choose a folder, or an s3:// URI.",
        )  # fmt: skip


def check_data(federation: Federation, uri: str) -> CheckedData:
    """Deals the dataset without writing shards, and settles the schema of a table.

    Raises:
        DataError: the data cannot be dealt as the federation file requires.
    """
    if not federation.sharded:
        schema = _settled_schema(federation, {}, findings := [Checked("data", "each learner has its own")])
        return CheckedData(findings, schema=schema)
    parts, test = dealt(federation, uri)
    findings = [Checked("data", f"{test.count if test else 0} examples for the central test")]
    for name, part in parts.items():
        findings.append(Checked(name, ", ".join(f"{e.count} {p}" for p, e in part.items())))
    whole = [e for part in parts.values() for e in part.values()] + ([test] if test else [])
    schema = _settled_schema(federation, parts, findings)
    whole = [settled(e, schema, federation.class_names, where=uri) for e in whole if e.count]
    sizes = {name: part["train"].count for name, part in parts.items()}
    return CheckedData(findings, _few(whole), sizes, schema)


def _doubts(schema: Schema) -> str:
    """Returns remarks about names of classes and categories that are probably one."""
    notes = [alike_note(schema.classes, "classes")]
    for column in schema.columns:
        note = alike_note(column.categories, "categories")
        notes.append(f"column {column.name!r}: {note}" if note else "")
    found = [note for note in notes if note]
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return f"; note: {'; '.join(found[:3])}{more}" if found else ""


def _styles(columns: Sequence[ColumnSummary]) -> str:
    """Returns how numbers and dates were read that are not written as 1.5 or YYYY-MM-DD."""
    named: dict[str, list[str]] = {}
    for column in columns:
        for style in column.styles:
            named.setdefault(style, []).append(repr(column.name))
    return "".join(f", {style} in {', '.join(names[:5])}{' ...' * (len(names) > 5)}" for style, names in named.items())


def _settled_schema(
    federation: Federation, dealt_out: Mapping[str, Mapping[str, Examples]], findings: list[Checked]
) -> Schema | None:
    """Returns the schema that a run would settle, from the shards and the own files that can be read here."""
    if not federation.data.is_table:
        return None
    reports = []
    for learner in federation.pods:
        try:
            parts: Mapping[str, Part] = dealt_out.get(learner.name) or own_parts(federation, learner.name, None)
            reports.append(described(federation, learner.name, parts))
        except (DataError, StoreError) as error:
            findings.append(Checked(learner.name, f"its table is not read here: {error}"))
    if not reports:
        return None
    outcome = settle(federation, reports)
    kinds = Counter(column.kind for column in outcome.schema.columns)
    text = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    classes = f", classes {', '.join(outcome.schema.classes)[:100]}" if outcome.schema.classes else ""
    findings.append(Checked("table", f"{text}{classes}{_styles(outcome.columns)}{_doubts(outcome.schema)}"))
    findings += [Checked(name, f"{NO_STATISTICS}: {why}") for name, why in sorted(outcome.left_out.items())]
    return outcome.schema


def _few(sets: list[Examples]) -> Examples:
    """Returns the first examples, and those with the smallest and the largest label."""
    picked = []
    for choose in (np.argmin, np.argmax):
        labels = [(e, first_labels(e.y).reshape(e.count, -1)[:, 0]) for e in sets if e.count]
        found = [(e, int(choose(y)), y) for e, y in labels]
        e, i, _ = found[int(choose(np.array([y[i] for _, i, y in found])))]
        picked.append(e.rows(slice(i, i + 1)))
    first = next(e for e in sets if e.count)
    return examples_joined([*picked, first.rows(slice(_FIRST))])


def check_budgets(federation: Federation, sizes: Mapping[str, int], uri: str) -> list[Checked]:
    """Reports the privacy that learners with a shard have spent, and the cost of this run.

    Args:
        federation: the federation with its run-time settings.
        sizes: train examples by learner; unknown for learners with their own data.
        uri: URI of the store.

    Raises:
        FederationError: a learner cannot train even once more, or its delta is too large for its examples.
    """
    store, found = open_store(uri).below(federation.name), []
    for position, learner in enumerate(federation.learners):
        privacy = federation.privacy_of(learner.name)
        count = turns(federation, learner.name)
        if privacy is None or learner.name not in sizes or not count:
            continue
        path, examples = f"learners[{position}].privacy" if learner.privacy else "privacy", sizes[learner.name]
        if privacy.delta * examples >= 1:
            raise FederationError(
                f"{privacy.delta:g} is not below 1 / {examples} train examples of {learner.name}: it protects no one",
                where=f"{path}.delta",
                remedy=f"Choose a smaller one, such as {0.1 / examples:.0e}.",
            )
        planned = training_event(federation.training, privacy, examples)
        budget = Budget(store, learner.name, privacy)
        try:
            budget.check(planned)
        except BudgetError as error:
            raise FederationError(error.what, where=f"{path}.target_epsilon", remedy=error.remedy) from error
        after = budget.spent(*[planned] * count).epsilon
        spent = f"epsilon {budget.spent().epsilon:.3g} of {privacy.target_epsilon:g} is spent"
        more = (
            "this run reaches the target, and later trainings are refused"
            if after > privacy.target_epsilon
            else f"{after:.3g} after this run"
        )
        found.append(Checked(learner.name, f"{spent}; {more}"))
    return found


def turns(federation: Federation, name: str) -> int:
    """Returns how often a learner trains in a run."""
    rounds = federation.training.rounds
    if not federation.proposers:
        return rounds
    return sum(proposer_of(federation.proposers, number) == name for number in range(1, rounds + 1))


def _vote_summary(federation: Federation, vote: Vote) -> Checked:
    names = [learner.name for learner in federation.learners]
    voters = len(electorate(vote, names, names[0] if federation.proposers else ""))
    needed = math.ceil(bar(vote, voters))
    return Checked("vote", f"{vote.rule}: {needed} of {voters} approvals, by the {vote.criterion}")


def _rehearsed(
    federation: Federation, code: str, examples: Examples | None, schema: Schema | None, call: Callable[..., Any],
    workers: int,
) -> str:  # fmt: skip
    """Rehearses the model, unless it has passed on the same examples; a custom learner's is in another Python.

    Raises:
        FedpipeError: as of `rehearse`.
    """
    environment = federation.environment_of("initialise")
    call = functools.partial(call, environment=environment)
    if examples is None or not federation.needs_tensorflow:
        return str(call(rehearse, federation, code, examples, schema))
    known = recalled(federation, code, dump_examples(examples), schema)
    text = known.text
    private = any(federation.privacy_of(learner.name) for learner in federation.learners)
    count = 0 if private or federation.split else min(workers, len(federation.learners)) - (text is None)
    warmed = [beside(call, warm, federation, code, examples, schema) for _ in range(count)]
    try:
        text = text or str(call(rehearse, federation, code, examples, schema))
    finally:
        for each in warmed:  # the first steps need these processes
            with contextlib.suppress(Exception):  # the rehearsal reports it
                each.result()
    known.note(text)
    return text


def called(function: Callable[..., Any], *arguments: Any, environment: str = "keras") -> Any:
    """Calls a function in this process, regardless of its environment."""
    return function(*arguments)


def check_simulation(
    federation: Federation, code: str, examples: bytes, files: SimulationFiles, schema: Schema | None = None
) -> Checked:
    """Builds the simulated algorithm, in the tff environment, which has another NumPy. Raises ModelError."""
    from fedpipe.tff.simulation import make

    make(federation, code, load_examples(examples), *files, schema)
    settings = federation.simulation
    return Checked("simulation", f"{settings.process or settings.algorithm}, {federation.training.rounds} rounds")


def check_aggregation(federation: Federation, shapes: list[tuple[int, ...]]) -> Checked:
    """Compiles the aggregation for weights of these shapes, in the tff environment. Raises StepError."""
    from fedpipe.tff.aggregation import make_aggregation

    make_aggregation(federation, [("float32", shape) for shape in shapes])
    algorithm = federation.algorithm
    assert isinstance(algorithm, Averaging)
    rule, optimizer = tag_of(algorithm.rule), tag_of(algorithm.server_optimizer)
    return Checked("aggregation", f"{rule} and {optimizer}, by TensorFlow Federated")


def check(
    federation: Federation, code: str, uri: str, store: str, call: Callable[..., Any] = called,
    files: SimulationFiles | None = None, *, own: bool = False, workers: int = 0,
) -> list[Checked]:  # fmt: skip
    """Runs all checks, without changing anything.

    Args:
        federation: the federation with its run-time settings.
        code: the text of model.py.
        uri: URI of the dataset.
        store: URI of the store, to read its privacy ledgers; empty to skip them.
        call: calls a function with its arguments in an environment: `called`, or `Workers.call`.
        files: files of a simulation, which is checked instead of the learners' private training.
        own: reads learners' own data as far as this machine reaches it; a run drops a learner whose data is wrong.
        workers: processes in which the model is built meanwhile, because a run follows.
    """
    at = store or federation.store_uri
    federation, uri = federation.reaching(at), with_endpoint(uri, at)
    if files is not None:
        check_simulated(federation)
    findings, examples, sizes, schema = check_data(federation, uri)
    findings += [
        Checked(name, "at its site, with its own data; its agent: fedpipe site run") for name in federation.sites
    ]
    if federation.vote:
        findings.append(_vote_summary(federation, federation.vote))
    sample = dump_examples(examples) if examples else b""
    simulated = None
    if files is not None and sample:  # TFF traces the algorithm while the framework is imported and tries the model
        simulated = beside(call, check_simulation, federation, code, sample, files, schema, environment="tff")
    environment = federation.environment_of("initialise")
    if federation.data.is_table and schema is None:
        call(partial(check_own_tables, each=own), federation, code, environment=environment)
        findings.append(Checked("model", "not checked: it depends on data that cannot be read here"))
        return findings
    findings.append(Checked("model", _rehearsed(federation, code, examples, schema, call, workers)))
    if federation.split:
        findings += [Checked(*found) for found in call(check_parties, federation, code, environment=environment)]
    elif any(learner.data for learner in federation.learners):
        call(check_own_data, federation, code, environment=environment)
        if own:
            read = call(check_own_parts, federation, code, schema, environment=environment)
            findings += [Checked(*found) for found in read]
    if simulated is not None:
        findings.append(simulated.result())
    if files is None and federation.aggregated_by_tff:
        shapes = call(weight_shapes, federation, code, schema, environment=environment)
        findings.append(call(check_aggregation, federation, list(shapes.values()), environment="tff"))
    if any(federation.privacy_of(learner.name) for learner in federation.learners):
        shapes = call(weight_shapes, federation, code, schema, environment=environment)
        call(check_private_model, federation, code, shapes, sample, schema, environment="tff")
        if store:
            findings += call(check_budgets, federation, sizes, store, environment="tff")
    return findings
