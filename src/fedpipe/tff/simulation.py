"""Simulates a federation: runs TFF's rounds over the learners' shards, and commits each as a round of the run."""

from __future__ import annotations

import asyncio
import functools
import logging
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fedpipe import weights
from fedpipe.data.disclosure import schema_of
from fedpipe.data.examples import Examples
from fedpipe.data.schema import Schema
from fedpipe.data.trees import only_array
from fedpipe.errors import DataError, FedpipeError, InputError, RoundError, StepError, WeightsError
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import split_code
from fedpipe.frameworks import frameworks, uncollected
from fedpipe.learners.dropping import dropped_by
from fedpipe.learners.events import event_file
from fedpipe.learners.framework import seed_of
from fedpipe.learners.parts import Part, size_of
from fedpipe.learners.reading import central_test, kept_parts
from fedpipe.learners.user_code import described
from fedpipe.rounds.history import commit, read_record
from fedpipe.rounds.manifests import MOST_METRICS, Dropped, Record, bounded
from fedpipe.rounds.plan import Plan, RunPlace, read_plan
from fedpipe.rounds.roll import check_quorum
from fedpipe.rounds.selection import SIMULATED, select, trainers
from fedpipe.store import Store, keys
from fedpipe.store.objects import decode, digest_of, encode, fetch_file, get_bytes, put_file
from fedpipe.tff.algorithms import Process, make_own_process, make_process
from fedpipe.tff.datasets import (
    Client,
    check_alike,
    check_plain,
    check_preprocessing,
    first_examples,
    form_of,
    test_batches,
    train_batches,
    whole_batch,
)
from fedpipe.tff.inputs import Forms, forms_of, zeros_of
from fedpipe.tff.models import Code, FederatedModel
from fedpipe.tff.runtime import federated
from fedpipe.tff.state import make_state_manager

log = logging.getLogger("fedpipe")


@functools.lru_cache(maxsize=1)
def cached_simulation(place: RunPlace, process: str, model: str) -> Simulation:
    """Returns the simulation of a run, which a worker builds and traces once."""
    return Simulation(place, process, model)


def advance(place: RunPlace, process: str, model: str, number: int) -> None:
    """Simulates one round and commits it, unless it is committed already.

    Args:
        place: location of the run.
        process: text of the file of `simulation.process`.
        model: text of the file of `simulation.model`.
        number: the round, from 1.
    """
    try:
        cached_simulation(place, process, model).advance(number)
    except BaseException:
        cached_simulation.cache_clear()  # its state may be that of another round
        raise


def make(
    federation: Federation, code: str, examples: Examples, process: str, model: str, schema: Schema | None = None
) -> tuple[FederatedModel, Process]:
    """Builds the model and the algorithm of a federation, once in a process, before the run starts.

    Args:
        federation: the federation with its run-time settings.
        code: the text of model.py.
        examples: some examples, for their shapes and dtypes.
        process: the text of the user's own algorithm, or the empty text.
        model: the text of the user's own TFF model, or the empty text.
        schema: of the federation's table, if it has one.

    Raises:
        ModelError: a file of the user is wrong.
    """
    check_plain(examples)
    forms = forms_of(examples.x), forms_of(only_array(examples.y, "labels"))
    return _make_cached(code_of(federation.model, code), encode(federation), forms, process, model, schema)


@functools.lru_cache(maxsize=2)
def _make_cached(
    code: Code,
    encoded: bytes,
    forms: tuple[Forms, Forms],
    process: str,
    model: str,
    schema: Schema | None = None,
) -> tuple[FederatedModel, Process]:
    federation = decode(encoded, Federation, where="federation")
    settings = federation.simulation
    x, y = zeros_of(forms[0]), only_array(zeros_of(forms[1]), "labels")
    with uncollected():  # TFF traces the whole algorithm
        own = code_of(settings.model, model) if settings.model else None
        federated_model = FederatedModel(code, x, y, own, schema)
        check_preprocessing(federation.training, federated_model.entry)
        if settings.process:
            return federated_model, make_own_process(federated_model, code_of(settings.process, process))
        return federated_model, make_process(federated_model, federation)


class _RoundState(NamedTuple):
    """Holds the algorithm's state after a round, and the weights in it by their names."""

    number: int
    state: Any
    weights: dict[str, weights.Array]


class Simulation:
    """Simulates the rounds of a run with TFF.

    Args:
        place: location of the run.
        process: text of the user's own algorithm, or the empty text.
        model: text of the user's own TFF model, or the empty text.

    Raises:
        InputError: the federation cannot be simulated, or a file of the user is wrong.
    """

    def __init__(self, place: RunPlace, process: str = "", model: str = "") -> None:
        self._store: Store = place.open()
        self._plan: Plan = read_plan(self._store, place.plan)
        federation, self._run = self._plan.federation, place.run
        self._settings, self._training = federation.simulation, federation.training
        frameworks()[0].random.set_seed(self._training.seed)  # shuffles mix in this seed, as at a learner
        text = get_bytes(self._store, self._plan.code).decode()
        self._module = code_of(federation.model, text).load()
        self._parts: dict[str, dict[str, Part]] = {}
        self._dropped: dict[str, Dropped] = {}
        for learner in federation.learners:
            self._keep(learner.name, partial(self._read, place, learner.name))
        schema = schema_of(self._store, self._plan)
        self._model, self._process = make(federation, text, self._first_examples(), process, model, schema)
        files = [digest_of(text.encode())[7:19] for text in (process, model) if text]
        by = self._settings.process or self._settings.algorithm
        self._rule = " ".join([SIMULATED, by, *files])[:200]
        self._trainers = trainers(federation)
        self._test = central_test(self._store, self._plan)
        self._manager = make_state_manager(self._store, self._run)
        self._clients: dict[int, Client] = {}
        self._after: _RoundState | None = None

    def _keep(self, name: str, read: Callable[[], dict[str, Part]]) -> None:
        """Keeps the parts of a learner; one whose data cannot be used is dropped from every round."""
        try:
            self._parts[name] = read()
        except (Exception, SystemExit) as error:
            dropped = dropped_by(self._plan, name, error)
            if dropped is None:
                raise
            log.warning("%s is dropped: %s", name, dropped.why)
            self._dropped[name] = dropped
            self._parts.pop(name, None)

    def _read(self, place: RunPlace, name: str) -> dict[str, Part]:
        parts = kept_parts(place, name, self._module)
        train = parts.get("train")
        if name not in self._settings.held_out and (train is None or not size_of(train)):
            raise DataError(f"{name} has no examples to train on", remedy="Add it to simulation.held_out.")
        return parts

    def _first_examples(self) -> Examples:
        """Returns a few examples of the form that most learners have; the others are dropped."""
        firsts = {name: first_examples(parts, name) for name, parts in self._parts.items()}
        check_quorum(1, 0, [*self._dropped.values()], 0 if firsts else 1)
        forms = Counter(form_of(first) for first in firsts.values())
        usual = next(name for name, first in firsts.items() if form_of(first) == forms.most_common(1)[0][0])

        def checked(name: str) -> dict[str, Part]:
            check_alike(firsts[usual], firsts[name], (usual, name))
            return self._parts[name]

        for name in firsts:
            self._keep(name, partial(checked, name))
        return firsts[usual]

    def _asked(self, number: int) -> tuple[list[str], list[Dropped]]:
        """Returns the clients of a round, and those that were dropped. Raises QuorumError."""
        asked = select(self._trainers, number)
        dropped = [self._dropped[name] for name in asked if name in self._dropped]
        names = [name for name in asked if name not in self._dropped]
        if dropped:
            check_quorum(number, len(names), dropped, self._plan.federation.min_learners)
        return names, dropped

    def advance(self, number: int) -> Record:
        """Trains, tests and commits one round.

        Raises:
            InputError: earlier rounds were made by another algorithm.
            RoundError: the previous round is not committed, or the weights are not finite.
        """
        if record := read_record(self._store, self._run, number):
            return commit(self._store, record, rehearsal=True)
        previous = read_record(self._store, self._run, number - 1)
        if previous is None:
            raise RoundError(f"round {number} cannot start: round {number - 1} is not committed")
        after = self._after
        if after is None or after.number != number - 1:
            after = self._resume(previous)
        names, dropped = self._asked(number)
        try:
            state, metrics = self._process.next(after.state, [self._batches(name, number) for name in names])
        except FedpipeError:
            raise
        except Exception as error:
            raise StepError(f"round {number} failed in TensorFlow Federated: {described(error)}") from error
        named = self._model.named(self._process.weights(state), like=after.weights)
        if self._is_tested(number):
            metrics |= self._test_weights(named)
        record = self._commit(previous, named, state, metrics, dropped)
        if self._training.tensorboard:
            self._store.replace(keys.events(self._run, number), event_file([(number, record.metrics)]))
        self._after = _RoundState(number, state, named)
        log.info("round %d: %s", number, " ".join(f"{k} {v:.4g}" for k, v in record.metrics.items()))
        return record

    def _weights_of(self, record: Record) -> dict[str, weights.Array]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights"
            fetch_file(self._store, record.weights, path)
            return weights.load(path)

    def _resume(self, previous: Record) -> _RoundState:
        """Returns the state after a round: after round 0, a new state with its weights; otherwise that in the store."""
        start = self._weights_of(previous)
        first = self._process.start(self._process.initialize(), self._model.arrays(start))
        if not previous.round:
            return _RoundState(0, first, start)
        if previous.rule != self._rule:
            raise InputError(
                f"round {previous.round} of run {self._run!r} was made by {previous.rule!r}, not by {self._rule!r}",
                remedy="Choose another run name, or restore simulation.algorithm and its files.",
            )
        log.info("resuming after round %d", previous.round)
        return _RoundState(previous.round, asyncio.run(self._manager.load(previous.round, first)), start)

    def _client(self, part: Part) -> Client:
        """Returns a part as a client, whose texts are looked up once."""
        client = self._clients.get(id(part))
        if client is None:
            client = self._clients[id(part)] = Client(self._model.entered(part))
        return client

    def _batches(self, name: str, number: int) -> Any:
        client = self._client(self._parts[name]["train"])
        if self._settings.algorithm == "fedsgd" and not self._settings.process:
            return whole_batch(client)
        return train_batches(client, self._training, seed_of(self._training.seed, name, number), self._module)

    def _is_tested(self, number: int) -> bool:
        every, last = self._settings.test_every, self._training.rounds
        return number == last or bool(every and number % every == 0)

    def _test_weights(self, named: dict[str, weights.Array]) -> dict[str, float]:
        """Returns metrics on the test parts of trainers, on all parts of held-out learners, and on the central set."""
        held_out = self._settings.held_out
        size = self._training.batch_size
        trainers = [[p["test"]] for name, p in self._parts.items() if name not in held_out and _has_test_part(p)]
        others = [[p for p in self._parts[name].values() if size_of(p)] for name in held_out if name in self._parts]
        metrics: dict[str, float] = {}
        for prefix, clients in (("test_", trainers), ("held_out_", others)):
            if clients:
                batches = [test_batches([self._client(part) for part in parts], size) for parts in clients]
                metrics |= {f"{prefix}{k}": v for k, v in self._federated_metrics(named, batches).items()}
        if self._test is not None:
            check_plain(self._test)
            central = self._model.evaluate(named, self._test.x, only_array(self._test.y, "labels"))
            metrics |= {f"central_{k}": v for k, v in central.items()}
        return metrics

    @functools.cached_property
    def _tester(self) -> Any:
        return federated().learning.algorithms.build_fed_eval(self._model.build)

    def _federated_metrics(self, named: dict[str, weights.Array], batches: list[Any]) -> dict[str, float]:
        tff = federated()
        trainable, other = self._model.arrays(named)
        state = self._tester.set_model_weights(
            self._tester.initialize(), tff.learning.models.ModelWeights(trainable, other)
        )
        metrics = self._tester.next(state, batches).metrics["client_work"]["eval"]["current_round_metrics"]
        return {k: float(v) for k, v in metrics.items() if k not in ("num_examples", "num_batches")}

    def _commit(
        self, previous: Record, named: dict[str, weights.Array], state: Any, metrics: dict[str, float],
        dropped: list[Dropped],
    ) -> Record:  # fmt: skip
        try:
            weights.check_finite(named)
        except WeightsError as error:
            raise RoundError(
                f"after round {previous.round + 1}, {error.what}", remedy="Lower the learning rates."
            ) from error
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "weights"
            digest = weights.save(named, path)
            put_file(self._store, path, digest)
        saved = asyncio.run(self._manager.save(state, previous.round + 1))
        return commit(
            self._store,
            Record(
                format=previous.format,
                federation=previous.federation, run=self._run, round=previous.round + 1, previous=previous.ref,
                plan=previous.plan, base=previous.weights, weights=digest, layout=previous.layout,
                state={"program": saved}, rule=self._rule, dropped=tuple(dropped),
                metrics=dict(list(bounded(metrics).items())[:MOST_METRICS]),
            ),
            rehearsal=True,
        )  # fmt: skip


def _has_test_part(parts: dict[str, Any]) -> bool:
    return "test" in parts and bool(size_of(parts["test"]))


def code_of(named: str, text: str) -> Code:
    """Returns a user's file under its name in the federation file."""
    file, function = split_code(named)
    return Code(Path(file).name, text, function)
