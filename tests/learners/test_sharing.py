"""Weights that stay at the learners: which, where, and what the shared model has in their place."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from fedpipe import weights
from fedpipe.errors import ModelError
from fedpipe.learners.assembly import make_learner, plan_model
from fedpipe.learners.check import built_model, check_model
from fedpipe.learners.contribute import contribute
from fedpipe.learners.framework import seed_of
from fedpipe.learners.personal import Kept
from fedpipe.learners.score import evaluate, score_learner
from fedpipe.learners.sharing import local_names, matches
from fedpipe.learners.vote import vote
from fedpipe.registry.export import LOCAL_KEY, convert_and_verify
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.manifests import Ballot, Dropped
from fedpipe.store import MemoryStore
from tests.federations import close_vote, make_federation
from tests.learners.contract import PART, X, Y
from tests.learners.rounds import SIZES, arrays, began, close, planned, played, trained
from tests.models import DENSE, LINEAR

NAMES = ("base/kernel", "base/bias", "batch_normalization/gamma", "net/head/kernel", "net/head/bias", "overhead/bias")
BIAS = {"local": ["bias"]}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*batch_normalization*"], {"batch_normalization/gamma"}),
        (["head/*"], {"net/head/kernel", "net/head/bias"}),
        (["net/head/*"], {"net/head/kernel", "net/head/bias"}),
        (["head/*", "*batch*"], {"net/head/kernel", "net/head/bias", "batch_normalization/gamma"}),
        (["bias"], {"base/bias", "net/head/bias", "overhead/bias"}),
        (["b[ai]*/kernel"], {"base/kernel"}),
    ],
)
def test_patterns_begin_at_any_part_of_a_name(patterns: list[str], expected: set[str]) -> None:
    assert local_names(NAMES, patterns) == expected


def test_a_pattern_fits_whole_parts() -> None:
    assert not matches("overhead/bias", "head/*")
    assert not matches("net/Head/bias", "head/*")


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["head/*", "hed/*"], r"share.local\[1\]: 'hed/\*' matches none of the weights. .*base/kernel"),
        (["*"], r"share.local\[0\]: '\*' matches all weights, so nothing would be shared. .*base/kernel"),
        (["*kernel", "*bias", "*gamma"], r"share.local: the patterns match all weights, so nothing would be shared"),
    ],
)
def test_patterns_of_nothing_and_of_everything(patterns: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        local_names(NAMES, patterns)


@pytest.mark.parametrize("framework", ["numpy", "keras"])
def test_a_wrong_pattern_is_found_by_the_check(framework: str) -> None:
    """With the names that exist, in either framework, before anything runs."""
    code, name = (LINEAR, "kernel") if framework == "numpy" else (DENSE, "kernel")
    federation = make_federation(framework=framework, share={"local": ["kernels*"]})
    with pytest.raises(ModelError, match=rf"matches none of the weights. .*{name}") as caught:
        check_model(federation, code, PART)
    assert caught.value.exit_code == 2


def test_updates_have_only_shared_weights(store: MemoryStore) -> None:
    plan = planned(store, share=BIAS)
    for record in played(store, plan):
        assert set(arrays(store, record.weights)) == {"kernel"}
        for update in record.updates:
            assert set(arrays(store, update.weights, update.learner)) == {"kernel"}


def test_a_learner_continues_from_its_own_weights(store: MemoryStore) -> None:
    """Its training is that of the whole model, from shared and own weights together."""
    plan = planned(store, share=BIAS)
    records = played(store, plan)
    whole = built_model(make_federation(framework="numpy"), LINEAR)
    for name in SIZES:
        own = {"bias": np.zeros(3, np.float32)}
        for previous, record in itertools.pairwise(records):
            parts = make_learner(store, plan, name, record.round)._parts
            start = {**arrays(store, previous.weights), **own}
            seed = seed_of(0, name, record.round)
            found = whole.train(start, parts["train"], plan.federation.training, seed=seed, seconds=9, optimizer=None)
            update = next(u for u in record.updates if u.learner == name)
            close(arrays(store, update.weights, name), {"kernel": found.weights["kernel"]}, 0.0)
            own = {"bias": found.weights["bias"]}
            assert update.personal is not None
            close(dict(Kept.load(store, name, update.personal).local), own, 0.0)


def test_learners_measure_with_their_own_weights(store: MemoryStore) -> None:
    plan = planned(store, share=BIAS)
    records = played(store, plan)
    update = next(u for u in records[3].updates if u.learner == "c")
    kept = next(u.personal for u in records[2].updates if u.learner == "c")
    own = {**arrays(store, records[2].weights), **Kept.load(store, "c", str(kept)).local}
    whole = built_model(make_federation(framework="numpy"), LINEAR)
    part = make_learner(store, plan, "c", 3)._parts["test"]
    assert update.tested is not None
    assert update.tested.metrics == whole.evaluate(own, part, plan.federation.training).metrics


def test_both_sides_of_a_vote_are_measured_with_the_same_own_weights(store: MemoryStore) -> None:
    """The base is measured again in each round: its scores of the round before are those with earlier own weights."""
    plan = planned(store, share=BIAS, algorithm={"name": "averaging", "vote": {"rule": "all_vote", "threshold": 0.0}})
    record = began(store, plan)
    whole = built_model(make_federation(framework="numpy"), LINEAR)
    for number in (1, 2):
        for name in SIZES:
            trained(store, plan, name, number, record.weights)
        drafted = close_round(store, plan, number, record.weights)
        for name in SIZES:
            make = partial(make_learner, store, plan, name, number, trains=False)
            ballot = vote(store, plan, name, number, record.weights, drafted.weights, "", make)
            assert isinstance(ballot, Ballot), ballot
            own = make()._kept.local or {"bias": np.zeros(3, np.float32)}
            for weights_of, scores in ((record.weights, ballot.current), (drafted.weights, ballot.proposed)):
                part = make()._parts["vote"]
                found = whole.evaluate({**arrays(store, weights_of), **own}, part, plan.federation.training)
                assert scores.vote is not None
                assert scores.vote.metrics == found.metrics
        record = close_vote(store, plan, number, record.weights)
        assert record.accepted


def test_only_the_learner_has_its_own_weights(store: MemoryStore) -> None:
    """In its own folder, under its digest; nothing of it is in an object that others read."""
    plan = planned(store, share=BIAS)
    kept = {str(u.personal): u.learner for record in played(store, plan) for u in record.updates}
    found = {key for key in store.keys() if "/personal/" in key}
    assert found == {f"learners/{name}/personal/{digest[7:]}" for digest, name in kept.items()}
    for key in store.keys():
        if key not in found and key.startswith("learners"):
            assert b"bias" not in store.read(key).data, key


def test_a_learner_that_was_away_continues_from_its_last_round_that_counted(store: MemoryStore) -> None:
    plan = planned(store, share=BIAS)
    asked = {1: ("a", "b", "c"), 2: ("a", "c"), 3: ("a", "b", "c")}
    first = played(store, plan, lambda number: asked[number])[1]
    learner = make_learner(store, plan, "b", 3)
    kept = next(str(u.personal) for u in first.updates if u.learner == "b")
    close(dict(learner._kept.local), dict(Kept.load(store, "b", kept).local), 0.0)


def test_own_weights_stay_over_runs(store: MemoryStore) -> None:
    """A run that continues from HEAD continues from them; one with fresh weights does not."""
    last = played(store, planned(store, "r1", share=BIAS))[-1]
    second = planned(store, "r2", share=BIAS)
    began(store, second)
    kept = next(str(u.personal) for u in last.updates if u.learner == "a")
    assert make_learner(store, second, "a", 1)._kept.local["bias"].any()
    close(dict(make_learner(store, second, "a", 1)._kept.local), dict(Kept.load(store, "a", kept).local), 0.0)
    third = planned(store, "r3", share=BIAS, training={"start": "fresh"})
    began(store, third)
    assert not make_learner(store, third, "a", 1)._kept.local


def test_control_variates_begin_again_in_each_run(store: MemoryStore) -> None:
    """The common one does, too: their mean is 0 at first."""
    plan = planned(store, "r1", training={"method": "scaffold"})
    played(store, plan)
    assert make_learner(store, plan, "a", 3)._kept.control["bias"].any()
    second = planned(store, "r2", training={"method": "scaffold"})
    began(store, second)
    assert not make_learner(store, second, "a", 1)._kept.control


def test_lost_weights_drop_their_learner_and_nobody_else(store: MemoryStore) -> None:
    records = played(
        store, planned(store, share=BIAS, training={"rounds": 2}), lambda n: ("a", "b", "c") if n == 1 else ("a", "b")
    )
    kept = next(str(u.personal) for u in records[1].updates if u.learner == "c")
    store.delete(f"learners/c/personal/{kept[7:]}")
    third = planned(store, "r2", share=BIAS)
    base = began(store, third).weights
    dropped = contribute(store, third, "c", 1, base, partial(make_learner, store, third, "c", 1))
    assert isinstance(dropped, Dropped)
    assert "the weights that c keeps are lost" in dropped.why
    trained(store, third, "a", 1, base)


def test_a_learner_scores_its_personal_model_if_it_has_it(store: MemoryStore) -> None:
    """On the same examples as the shared one; the shared one also without it."""
    plan = planned(store, share=BIAS)
    record = played(store, plan)[-1]
    kept = next(str(u.personal) for u in record.updates if u.learner == "c")
    own = {**arrays(store, record.weights), **Kept.load(store, "c", kept).local}
    first = {**arrays(store, record.weights), "bias": np.zeros(3, np.float32)}
    whole, part = (
        built_model(make_federation(framework="numpy"), LINEAR),
        make_learner(store, plan, "c", 3)._parts["test"],
    )
    score = score_learner(store, plan, "c", record.weights)
    assert score.metrics == whole.evaluate(first, part, plan.federation.training).metrics
    assert score.personal is not None
    assert score.personal.examples == score.examples == 40
    assert score.personal.metrics == whole.evaluate(own, part, plan.federation.training).metrics
    assert evaluate(store, plan, record.weights, [score]).personal["c"].metrics == score.personal.metrics
    store.delete(f"learners/c/personal/{kept[7:]}")
    again = score_learner(store, plan, "c", record.weights)
    assert (again.personal, again.metrics) == (None, score.metrics)


def test_a_personal_score_that_contradicts_the_shared_one_is_left_out(store: MemoryStore) -> None:
    plan = planned(store, share=BIAS)
    record = played(store, plan)[-1]
    good = score_learner(store, plan, "c", record.weights)
    assert good.personal is not None
    for changes in ({"examples": 4000}, {"metrics": {"loss": 0.0}}):
        bad = msgspec.structs.replace(good, personal=msgspec.structs.replace(good.personal, **changes))
        found = evaluate(store, plan, record.weights, [bad])
        assert (list(found.learners), found.personal) == (["c"], {})


@pytest.mark.parametrize("learner", ["", "c"])
def test_the_onnx_form_says_from_where_its_weights_come(store: MemoryStore, learner: str) -> None:
    plan = planned(store, share=BIAS)
    record = played(store, plan)[-1]
    data, origin = convert_and_verify(store, plan, record.weights, learner)
    loaded = onnx.load_from_string(data)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in loaded.graph.initializer}
    metadata = {entry.key: entry.value for entry in loaded.metadata_props}
    text = f"those of {learner}: bias" if learner else "their first values, because each learner has its own: bias"
    assert metadata[LOCAL_KEY] == origin.local == text
    assert origin.learner == learner
    kept = {u.learner: str(u.personal) for u in record.updates}
    expected = Kept.load(store, learner, kept[learner]).local["bias"] if learner else np.zeros(3)
    np.testing.assert_array_equal(held["bias"], expected)
    np.testing.assert_array_equal(held["kernel"], arrays(store, record.weights)["kernel"])


def test_the_whole_model_is_shared_by_default(store: MemoryStore) -> None:
    plan = planned(store)
    record = played(store, plan)[-1]
    assert all(update.personal is None for update in record.updates)
    assert convert_and_verify(store, plan, record.weights)[1].local == ""


RICH = """
import keras

def build():
    model = keras.Sequential([
        keras.Input((4,)), keras.layers.Dense(5, activation="relu", name="base"), keras.layers.BatchNormalization(),
        keras.layers.Dense(3, activation="softmax", name="head"),
    ])
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""


@pytest.mark.parametrize(
    ("share", "local"),
    [
        ("trainable", {"moving_mean", "moving_variance"}),
        ({"local": ["*batch_normalization*"]}, {"gamma", "beta", "moving_mean", "moving_variance"}),
        ({"local": ["head/*"]}, {"head/kernel", "head/bias"}),
    ],
)
def test_keras(share: Any, local: set[str]) -> None:
    """Shared and local weights, through a training, a measurement and an export."""
    federation = make_federation(share=share, training={"rounds": 1, "batch_size": 8})
    model = built_model(federation, RICH)
    whole = built_model(make_federation(), RICH)
    shared, every = model.initial_weights(0), whole.initial_weights(0)
    stay = {name for name in every if any(name.endswith(end) for end in local)}
    assert len(stay) == len(local)
    assert set(shared) == set(every) - stay
    found = model.train(shared, PART, federation.training, seed=1, seconds=60, optimizer=None)
    expected = whole.train(every, PART, federation.training, seed=1, seconds=60, optimizer=None)
    assert weights.digest_of({**found.weights, **found.local}) == weights.digest_of(expected.weights)
    assert set(found.local) == stay
    assert model.evaluate(shared, PART, federation.training) == whole.evaluate(every, PART, federation.training)
    assert model.convert(shared, 17) == whole.convert(every, 17)
    own = model.owned(found.local)  # type: ignore[attr-defined]
    trained = whole.evaluate(expected.weights, PART, federation.training)
    assert own.evaluate(found.weights, PART, federation.training) == trained
    assert "of them local" in model.outline.text
    assert model.check_examples(X[:3], Y[:3]) == {"loss", "accuracy"}


def test_a_model_that_is_trained_wholly_shares_all() -> None:
    model = built_model(make_federation(framework="numpy", share="trainable"), LINEAR)
    assert set(model.initial_weights(0)) == {"kernel", "bias"}


def test_the_first_weights_are_those_of_the_plan(store: MemoryStore) -> None:
    plan = planned(store, share={"local": ["kernel"]}, training={"seed": 7})
    model = plan_model(store, plan)
    whole = built_model(make_federation(framework="numpy"), LINEAR)
    (found,) = model.predictor(model.initial_weights(7))(X)
    (expected,) = whole.predictor(whole.initial_weights(7))(X)
    np.testing.assert_array_equal(found, expected)
