from __future__ import annotations

from types import ModuleType

import msgspec
import numpy as np
import pytest

from fedpipe import weights
from fedpipe.data.examples import Examples
from fedpipe.data.parts import put_parts, put_shard
from fedpipe.data.schema import Column, Schema
from fedpipe.errors import ExportError, InputError
from fedpipe.federation.training import Export
from fedpipe.identity.enrolment import Enrolled, Enrolment, change_enrolled
from fedpipe.identity.signing import make_key, public_key
from fedpipe.learners.assembly import plan_model
from fedpipe.learners.framework import Arrays, Outline, Predict
from fedpipe.learners.numpy import Linear, NumpyModel
from fedpipe.registry.card import Card, Spread
from fedpipe.registry.export import (
    card_of,
    claimed_versions,
    convert_and_verify,
    convert_checked,
    described_table,
    publish,
    spread_of,
)
from fedpipe.registry.prediction import open_model
from fedpipe.registry.publication import ModelVersion, check_publication
from fedpipe.rounds.plan import Plan
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import digest_of, put_bytes
from tests.federations import make_federation
from tests.models import LINEAR, make_plan

X = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)


def prepared(store: MemoryStore, **export: object) -> tuple[Plan, str]:
    test, _ = put_parts(store, {"test": Examples(X, np.zeros(30, np.int64))})
    plan = make_plan(store, make_federation(framework="numpy", export=export), LINEAR, test=test)
    return plan, put_bytes(store, weights.dumps(plan_model(store, plan).initial_weights(3)))


def test_versions_count_up_and_a_repeated_export_finds_its_own(store: MemoryStore) -> None:
    plan, digest = prepared(store)
    first = publish(store, plan, digest)
    assert first.version == 1
    assert publish(store, plan, digest) == first
    other = put_bytes(
        store, weights.dumps({k: v + 1 for k, v in weights.loads(store.read(f"objects/{digest[7:]}").data).items()})
    )
    assert publish(store, plan, other).version == 2
    assert claimed_versions(store, "tiny") == [1, 2]
    assert first.origin.samples == "holdout"
    assert first.origin.compared == 30


def test_an_export_that_was_killed_between_claim_and_model_is_completed(store: MemoryStore) -> None:
    plan, digest = prepared(store)
    first = publish(store, plan, digest)
    data = store.read(first.path).data
    store.delete(first.path)
    assert publish(store, plan, digest) == first
    assert store.read(first.path).data == data
    assert claimed_versions(store, "tiny") == [1]


class TestAnEnrolledCoordinator:
    @pytest.fixture
    def enrolled(self, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> Enrolled:
        key = make_key()
        monkeypatch.setenv("FEDPIPE_SIGNING_KEY", key)
        coordinator = Enrolment(key=public_key(key), since=1.0e9)
        return change_enrolled(store, lambda current: msgspec.structs.replace(current, coordinator=coordinator))

    def test_signs_what_it_publishes(self, store: MemoryStore, enrolled: Enrolled) -> None:
        plan, digest = prepared(store)
        first = publish(store, plan, digest)
        entry = ModelVersion("tiny", first.version)
        check_publication(store.below("models"), entry, first.origin, enrolled)

    def test_killed_before_it_signed_or_before_the_model(self, store: MemoryStore, enrolled: Enrolled) -> None:
        plan, digest = prepared(store)
        first = publish(store, plan, digest)
        entry = ModelVersion("tiny", first.version)
        store.delete(first.path)
        store.delete(f"models/{keys.signature(*entry)}")
        assert publish(store, plan, digest) == first
        check_publication(store.below("models"), entry, first.origin, enrolled)

    def test_without_its_key_nothing_is_published(
        self, store: MemoryStore, enrolled: Enrolled, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("FEDPIPE_SIGNING_KEY")
        plan, digest = prepared(store)
        with pytest.raises(InputError, match="the coordinator is enrolled and must sign the models it publishes"):
            publish(store, plan, digest)
        assert claimed_versions(store, "tiny") == []


def test_the_digest_of_the_model_covers_its_card(store: MemoryStore) -> None:
    plan, digest = prepared(store, classes=["no", "maybe", "yes"])
    shards = {}
    for name, labels in (("a", [0, 1, 1]), ("b", [1, 2])):
        part = Examples(np.zeros((len(labels), 4), np.float32), np.array(labels))
        shards[name] = put_shard(store, name, {"train": part})[1]
    plan = msgspec.structs.replace(plan, shards=shards)
    data, origin = convert_and_verify(store, plan, digest)
    card = open_model(data).card
    assert origin.digest == digest_of(data)
    assert card.classes == ("no", "maybe", "yes")
    assert card.labels == {"0": 1, "1": 3, "2": 1}
    assert card.spread is not None
    assert card.spread.mean == pytest.approx(X.mean(), rel=1e-5)
    assert card.spread.maximum == X.max()
    assert convert_and_verify(store, plan, digest)[0] == data


def test_the_card_of_a_private_federation_has_no_label_counts(store: MemoryStore) -> None:
    plan, _ = prepared(store)
    shard = put_shard(store, "a", {"train": Examples(np.zeros((3, 4), np.float32), np.array([0, 1, 1]))})[1]
    private = {"noise_multiplier": 1.0, "l2_norm_clip": 1.0, "microbatches": 1, "target_epsilon": 5.0, "delta": 1e-3}
    federation = make_federation(privacy=private)
    plan = msgspec.structs.replace(plan, shards={"a": shard}, federation=federation)
    assert card_of(store, plan).labels == {}


def test_beyond_the_tolerance_nothing_is_published(store: MemoryStore) -> None:
    plan, digest = prepared(store, tolerance=1e-30)
    with pytest.raises(ExportError, match=r"differs from the trained one by .*Nothing was published"):
        publish(store, plan, digest)
    assert claimed_versions(store, "tiny") == []


def test_without_a_central_test_set_it_is_compared_on_random_numbers(store: MemoryStore) -> None:
    plan = make_plan(store, make_federation(framework="numpy"), LINEAR)
    digest = put_bytes(store, weights.dumps(plan_model(store, plan).initial_weights(0)))
    _, origin = convert_and_verify(store, plan, digest)
    assert origin.samples == "random"
    assert origin.max_abs_difference < 1e-5


class Shifted(NumpyModel):
    """Predicts something else than its ONNX form computes."""

    shift = 0.0
    precision = "float32"

    @property
    def outline(self) -> Outline:
        return super().outline._replace(precision=self.precision)

    def predictor(self, weights: Arrays) -> Predict:
        predict = super().predictor(weights)
        return lambda x: [output + np.float32(self.shift) for output in predict(x)]


@pytest.mark.parametrize(
    ("precision", "shift", "scale", "fits"),
    [
        ("float32", 5e-5, 1.0, True),
        ("float32", 5e-3, 1.0, False),
        ("float32", 5e-3, 1000.0, True),  # as a share of outputs up to about 1000
        ("float32", 5.0, 1000.0, False),
        ("float64", 5e-3, 1.0, False),
        ("float16", 5e-3, 1.0, True),
        ("float16", 5e-2, 1.0, False),
        ("bfloat16", 5e-2, 1.0, True),
    ],
)
def test_the_tolerance_follows_the_precision_and_the_scale(
    precision: str, shift: float, scale: float, fits: bool
) -> None:
    model = Shifted(Linear(4, 1, loss="squared"), ModuleType("model"))
    model.shift, model.precision = shift, precision
    arrays = {"kernel": np.full((4, 1), scale / 4, np.float32), "bias": np.zeros(1, np.float32)}
    x = np.ones((3, 4), np.float32)
    if fits:
        _, difference = convert_checked(model, arrays, Export(), x, {})
        assert difference == pytest.approx(shift, rel=0.1)
    else:
        with pytest.raises(ExportError, match=f"differs from the trained one by {shift:.3g}"):
            convert_checked(model, arrays, Export(), x, {})
    with pytest.raises(ExportError, match="the tolerance is 1e-09"):
        convert_checked(model, arrays, Export(tolerance=1e-9), x, {})


def test_infinite_outputs_that_are_equal_do_not_differ() -> None:
    model = Shifted(Linear(1, 1, loss="squared"), ModuleType("model"))
    arrays = {"kernel": np.full((1, 1), 3e38, np.float32), "bias": np.zeros(1, np.float32)}
    with np.errstate(over="ignore"):
        assert convert_checked(model, arrays, Export(), np.float32([[1e38], [1.0]]), {})[1] == 0.0


@pytest.mark.parametrize("shift", [np.nan, np.inf])
def test_an_output_that_is_finite_in_one_model_only_is_named(shift: float) -> None:
    model = Shifted(Linear(4, 1, loss="squared"), ModuleType("model"))
    model.shift = shift
    arrays = {"kernel": np.ones((4, 1), np.float32), "bias": np.zeros(1, np.float32)}
    with pytest.raises(ExportError, match="an output is NaN or infinite in the trained model or in the ONNX model"):
        convert_checked(model, arrays, Export(), np.ones((3, 4), np.float32), {})


def test_the_spread_is_that_of_the_known_numbers() -> None:
    tree = {"categories": np.array([["a"]], object), "numbers": np.array([[1.0, np.nan, 3.0]])}
    assert spread_of(tree) == Spread(minimum=1.0, maximum=3.0, mean=2.0, deviation=1.0)
    assert spread_of({"texts": tree["categories"]}) is None
    assert spread_of(np.full((2, 2), np.nan)) is None


def test_labels_of_a_table_are_counted_by_class_although_their_names_are_numbers() -> None:
    schema = Schema(columns=(Column(name="a", kind="number"),), label="stage", labels="names", classes=("1", "2"))
    card = described_table(schema, Card(labels={"1": 30, "2": 20}))
    assert (card.classes, card.labels, card.label) == (("1", "2"), {"0": 30, "1": 20}, "stage")
    plain = described_table(None, Card(labels={"1": 30}))
    assert plain.labels == {"1": 30}
