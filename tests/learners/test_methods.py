"""Methods for learners that differ, each against an oracle in NumPy that shares no code with it."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import pytest

from fedpipe.errors import ModelError
from fedpipe.learners.assembly import make_learner
from fedpipe.learners.check import check_model
from fedpipe.learners.framework import seed_of
from fedpipe.learners.personal import Kept
from fedpipe.learners.vote import vote
from fedpipe.rounds.closing import close_round, in_constant_memory
from fedpipe.rounds.early import EarlySums
from fedpipe.rounds.history import read_record, record_layout
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import encode
from tests.federations import close_vote, make_federation
from tests.learners.rounds import SIZES, arrays, began, close, descended, planned, played, seeded, trained
from tests.models import DENSE, LINEAR

COUNTS = {name: s.stop - s.start for name, s in SIZES.items()}
METHODS: dict[str, Any] = {
    "fedprox": {"name": "fedprox", "mu": 0.5},
    "scaffold": "scaffold",
    "fednova": "fednova",
    "ditto": {"name": "ditto", "lambda": 0.5},
    "mr_mtl": {"name": "mr_mtl", "lambda": 0.5},
}


def test_fedprox_adds_the_gradient_of_its_term(store: MemoryStore) -> None:
    """The gradient of mu/2 |w - x|^2, checked against differences, is what each step adds."""
    plan = planned(store, training={"method": METHODS["fedprox"], "local_epochs": 3})
    training, record = plan.federation.training, began(store, plan)
    x = arrays(store, record.weights)

    def term(w: dict[str, np.ndarray]) -> float:
        return 0.25 * sum(float(np.sum((w[k] - x[k]) ** 2)) for k in x)

    def slope(w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {}
        for name in w:
            flat = np.zeros(w[name].size)
            for place in range(flat.size):
                moved = {k: v.copy() for k, v in w.items()}
                moved[name].flat[place] += 1e-5
                flat[place] = (term(moved) - term(w)) / 1e-5
            found[name] = flat.reshape(w[name].shape)
        return found

    for name in SIZES:
        update = trained(store, plan, name, 1, record.weights)
        expected, _ = descended(x, name, training, seeded(training, name, 1), slope)
        close(arrays(store, update.weights, name), expected, 1e-5)


def test_learners_follow_the_schedule_of_their_rate(store: MemoryStore) -> None:
    """0.25 in the first round, then half of it, and a quarter."""
    plan = planned(store, training={"schedule": {"name": "step", "every": 1, "by": 0.5}})
    records = played(store, plan)
    for number in (1, 2, 3):
        training = msgspec.structs.replace(plan.federation.training, learning_rate=0.25 * 0.5 ** (number - 1))
        x = arrays(store, records[number - 1].weights)
        for update in records[number].updates:
            expected, _ = descended(x, update.learner, training, seeded(training, update.learner, number))
            close(arrays(store, update.weights, update.learner), expected)


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_scaffold_over_three_rounds(store: MemoryStore, weighting: str) -> None:
    """Weights and both control variates, with learners of 2, 3 and 10 steps, and one of them away in a round."""
    plan = planned(store, training={"method": "scaffold"}, algorithm={"name": "averaging", "weighting": weighting})
    training, rate = plan.federation.training, plan.federation.training.learning_rate
    present = {1: ("a", "b", "c"), 2: ("a", "c"), 3: ("a", "b", "c")}
    records = played(store, plan, lambda number: present[number])
    x = {k: v.astype(np.float64) for k, v in arrays(store, records[0].weights).items()}
    c = {k: np.zeros(v.shape) for k, v in x.items()}
    own = {name: dict(c) for name in SIZES}
    for number, record in enumerate(records[1:], 1):
        names = present[number]
        n = {name: COUNTS[name] if weighting == "examples" else 1 for name in names}
        p = {name: count / sum(n.values()) for name, count in n.items()}
        y, changes = {}, {}
        for name in names:
            offset = {k: c[k] - own[name][k] for k in x}
            y[name], steps = descended(x, name, training, seeded(training, name, number), lambda _w, o=offset: o)
            new = {k: own[name][k] - c[k] + (x[k] - y[name][k]) / (steps * rate) for k in x}
            changes[name] = {k: new[k] - own[name][k] for k in x}
            own[name] = new
            update = next(u for u in record.updates if u.learner == name)
            assert update.personal is not None
            close(dict(Kept.load(store, name, update.personal).control), new, 1e-5)
        x = {k: sum(p[name] * y[name][k] for name in names) for k in x}
        c = {k: c[k] + len(names) / 3 * sum(p[name] * changes[name][k] for name in names) for k in x}
        close(arrays(store, record.weights), x, 1e-5)
        assert isinstance(record.control, str)
        close(arrays(store, record.control), c, 1e-5)


def test_a_rejected_round_changes_no_control_variate(store: MemoryStore) -> None:
    """Neither the common one nor a learner's: both continue from the last accepted round."""
    voted = {"name": "averaging", "vote": {"rule": "all_vote", "threshold": 1.0}}
    plan = planned(store, training={"method": "scaffold"}, algorithm=voted)
    record = began(store, plan)
    accepted = []
    for number in (1, 2):
        for name in SIZES:
            trained(store, plan, name, number, record.weights)
        drafted = close_round(store, plan, number, record.weights)
        assert isinstance(drafted.control, str)
        for name in SIZES if number == 1 else ("a", "b"):
            vote(store, plan, name, number, record.weights, drafted.weights, "", partial(make_learner, store, plan, name, number, trains=False))  # fmt: skip
        record = close_vote(store, plan, number, record.weights)
        accepted.append(record.accepted)
    assert accepted == [True, False]
    first = read_record(store, "r1", 1)
    assert first is not None
    assert (record.control, record.state) == (first.control, first.state)
    kept = next(str(u.personal) for u in first.updates if u.learner == "b")
    close(dict(make_learner(store, plan, "b", 3)._kept.control), dict(Kept.load(store, "b", kept).control), 0.0)


def test_the_first_round_of_scaffold_is_that_of_plain_training(store: MemoryStore) -> None:
    plain, other = played(store, planned(store)), MemoryStore("scaffold")
    records = played(other, planned(other, training={"method": "scaffold"}))
    assert records[1].weights == plain[1].weights
    assert records[2].weights != plain[2].weights


def test_fednova_divides_by_steps(store: MemoryStore) -> None:
    plan = planned(store, training={"method": "fednova", "rounds": 1})
    training = plan.federation.training
    first, record = played(store, plan)
    x = {k: v.astype(np.float64) for k, v in arrays(store, first.weights).items()}
    p = {name: count / 60 for name, count in COUNTS.items()}
    found = {name: descended(x, name, training, seeded(training, name, 1)) for name in SIZES}
    effective = sum(p[name] * steps for name, (_, steps) in found.items())
    expected = {k: x[k] + effective * sum(p[n] * (y[k] - x[k]) / steps for n, (y, steps) in found.items()) for k in x}
    close(arrays(store, record.weights), expected)
    plain = MemoryStore("plain")
    other = played(plain, planned(plain, training={"rounds": 1}))[1]
    assert record.weights != other.weights


def test_fednova_with_equal_steps_is_the_mean(store: MemoryStore) -> None:
    steps = {"rounds": 2, "local_epochs": 0, "local_steps": 4}
    found = played(store, planned(store, training={**steps, "method": "fednova"}))[-1]
    other = MemoryStore("plain")
    close(arrays(store, found.weights), arrays(other, played(other, planned(other, training=steps))[-1].weights), 1e-7)


def test_fednova_takes_its_step_from_those_that_count(store: MemoryStore) -> None:
    """An update that is refused while all are read changes the mean number of steps, too."""
    plan = planned(store, training={"method": "fednova", "rounds": 1})
    record = began(store, plan)
    updates = {name: trained(store, plan, name, 1, record.weights) for name in SIZES}
    store.delete(keys.content(updates["a"].weights, "a"))
    found = close_round(store, plan, 1, record.weights)
    assert [u.learner for u in found.updates] == ["b", "c"]
    assert [d.learner for d in found.dropped] == ["a"]
    training, x = plan.federation.training, arrays(store, record.weights)
    ends = {name: descended(x, name, training, seeded(training, name, 1)) for name in ("b", "c")}
    p = {"b": 12 / 52, "c": 40 / 52}
    effective = sum(p[name] * steps for name, (_, steps) in ends.items())
    expected = {k: x[k] + effective * sum(p[n] * (y[k] - x[k]) / steps for n, (y, steps) in ends.items()) for k in x}
    close(arrays(store, found.weights), expected)


def test_fednova_with_updates_that_are_added_early(store: MemoryStore, tmp_path: Path) -> None:
    """From 1 MiB on, a session adds updates while others are awaited; the bytes are the same."""
    code = LINEAR.replace("4, 3", "4, 70_000")
    plan = planned(store, code=code, training={"method": "fednova", "rounds": 1})
    record = began(store, plan)
    updates = {name: trained(store, plan, name, 1, record.weights) for name in SIZES}
    early = EarlySums.plant(store, plan, record, record_layout(store, record), list(SIZES), tmp_path)
    assert early is not None
    for name in ("c", "a", "b"):
        early.take(name)
    assert early.forest is not None
    assert set(early.forest.members) == set(SIZES)
    with TemporaryDirectory() as folder:
        ready = list(updates.values())
        added = in_constant_memory(early.forest)(store, plan, record, ready, Path(folder)).weights[1]
    assert close_round(store, plan, 1, record.weights).weights == added


@pytest.mark.parametrize("method", ["fednova", "scaffold"])
def test_a_learner_that_claims_too_few_examples_for_a_step(store: MemoryStore, method: str) -> None:
    """A hostile update whose examples would make no step is counted as one step, and stops nobody."""
    plan = planned(store, training={"method": method, "rounds": 1, "accumulate": 2})
    record = began(store, plan)
    updates = {name: trained(store, plan, name, 1, record.weights) for name in SIZES}
    liar = msgspec.structs.replace(updates["a"], examples=1)
    store.replace(keys.update("a", "r1", 1), encode(liar))
    assert [u.learner for u in close_round(store, plan, 1, record.weights).updates] == ["a", "b", "c"]


def test_ditto_trains_a_personal_model_next_to_the_shared_one(store: MemoryStore) -> None:
    """The shared model is that of plain training; v continues from where it was, with the gradient lambda (v - x)."""
    plan = planned(store, training={"method": METHODS["ditto"], "rounds": 2})
    training = plan.federation.training
    records = played(store, plan)
    other = MemoryStore("plain")
    assert [r.weights for r in records] == [r.weights for r in played(other, planned(other, training={"rounds": 2}))]
    for name in SIZES:
        v = arrays(store, records[0].weights)
        for previous, record in itertools.pairwise(records):
            x = arrays(store, previous.weights)
            seed = seed_of(seeded(training, name, record.round), "personal")
            v, _ = descended(v, name, training, seed, lambda w, x=x: {k: 0.5 * (w[k] - x[k]) for k in w})
            update = next(u for u in record.updates if u.learner == name)
            assert update.personal is not None
            close(dict(Kept.load(store, name, update.personal).model), v)


def test_mr_mtl_shares_the_mean_of_personal_models(store: MemoryStore) -> None:
    plan = planned(store, training={"method": METHODS["mr_mtl"], "rounds": 2})
    training = plan.federation.training
    records = played(store, plan)
    x = arrays(store, records[0].weights)
    own = dict.fromkeys(SIZES, x)
    for record in records[1:]:
        for name in SIZES:
            seed = seeded(training, name, record.round)
            own[name], _ = descended(
                own[name], name, training, seed, lambda w, x=x: {k: 0.5 * (w[k] - x[k]) for k in w}
            )
        x = {k: sum(COUNTS[name] / 60 * own[name][k] for name in SIZES) for k in x}
        close(arrays(store, record.weights), x)


@pytest.mark.parametrize("method", METHODS)
def test_a_repeated_training_writes_the_same_bytes(store: MemoryStore, method: str) -> None:
    """Each training of a later round, done again by another process, finds or writes what is there."""
    plan = planned(store, training={"method": METHODS[method]})
    records = played(store, plan)
    again = MemoryStore("again")
    assert [r.ref for r in played(again, planned(again, training={"method": METHODS[method]}))] == [
        r.ref for r in records
    ]
    learner = make_learner(store, plan, "b", 3)
    learner.accept_weights(arrays(store, records[2].weights))
    seed = seeded(plan.federation.training, "b", 3)
    repeated = learner.propose_weights(seed=seed, seconds=60, optimizer=None)
    update = next(u for u in records[3].updates if u.learner == "b")
    close(repeated.weights, arrays(store, update.weights, "b"), 0.0)
    if update.personal:
        kept = Kept.load(store, "b", update.personal)
        close(dict(repeated.kept.model or repeated.kept.control), dict(kept.model or kept.control), 0.0)


@pytest.mark.parametrize(
    ("framework", "code", "what"),
    [
        ("numpy", LINEAR.replace("0.5)", "0.5, momentum=0.9)"), "SGD with momentum"),
        ("keras", DENSE.replace("SGD(0.5)", "SGD(0.5, momentum=0.9)"), "the optimizer SGD with momentum"),
        ("keras", DENSE.replace("SGD(0.5)", "Adam(0.5)"), "the optimizer Adam"),
        ("keras", DENSE.replace("SGD(0.5)", "SGD(0.5, clipnorm=1.0)"), "the optimizer SGD with clipnorm"),
    ],
)
@pytest.mark.parametrize("method", ["scaffold", "fednova"])
def test_an_optimizer_for_which_a_method_is_not_defined(method: str, framework: str, code: str, what: str) -> None:
    training = {"rounds": 1, "batch_size": 8, "learning_rate": 0.1, "method": method}
    with pytest.raises(ModelError, match=f"training.method: {method} is not defined for {what}") as caught:
        check_model(make_federation(framework=framework, training=training), code, None)
    assert caught.value.exit_code == 2


def test_fednova_needs_statistics_to_stay_at_the_learners() -> None:
    code = DENSE.replace("keras.layers.Dense(3", "keras.layers.BatchNormalization(), keras.layers.Dense(3")
    training = {"rounds": 1, "batch_size": 8, "method": "fednova"}
    with pytest.raises(ModelError, match=r"share: .*moving_mean.* is not trained"):
        check_model(make_federation(training=training), code, None)
    assert check_model(make_federation(training=training, share="trainable"), code, None)
