from __future__ import annotations

import json
import threading

import msgspec
import numpy as np
import pytest

from fedpipe import weights
from fedpipe.errors import ConflictError, CorruptError, InputError, ModelError, QuorumError, RoundError
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.history import commit, history, precedes, read_head, read_record
from fedpipe.rounds.plan import differences, read_plan
from fedpipe.rounds.selection import select
from fedpipe.rounds.updates import find_update, mean_metrics
from fedpipe.store import LocalStore, MemoryStore, Store, keys
from fedpipe.store.objects import digest_of, encode, get_bytes
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan, play, play_round


def global_weights(store: Store) -> dict[str, np.ndarray]:
    head = read_head(store)
    assert head is not None
    return weights.loads(get_bytes(store, head[0].weights))


class TestARun:
    def test_ends_with_the_mean_of_what_the_learners_did(self, store: MemoryStore) -> None:
        record = play(store, make_plan())
        assert record.round == 3
        step = (1 * 1 + 2 * 2 + 3 * 3) / 6  # weighted by examples
        np.testing.assert_allclose(global_weights(store)["w"], np.arange(5) + 3 * step, rtol=1e-6)
        np.testing.assert_allclose(global_weights(store)["b"], 3 * step, rtol=1e-12)

    def test_counters_take_the_largest_value(self, store: MemoryStore) -> None:
        play(store, make_plan())
        assert global_weights(store)["steps"] == 3

    def test_uniform_weighting(self, store: MemoryStore) -> None:
        play(store, make_plan(make_federation(algorithm={"name": "averaging", "weighting": "uniform"})))
        np.testing.assert_allclose(global_weights(store)["w"], np.arange(5) + 3 * 2, rtol=1e-6)

    def test_only_those_who_are_drawn_count_in_single_steps_too(self, store: MemoryStore) -> None:
        plan = make_plan(make_federation(tuple("abcdef"), quorum={"learners_per_round": 2}))
        play(store, plan)
        for record in history(store, "r1")[1:]:
            assert tuple(u.learner for u in record.updates) == select(plan.federation, record.round)
            assert not record.dropped

    def test_records_form_one_chain_up_to_head(self, store: MemoryStore) -> None:
        play(store, make_plan())
        records = history(store, "r1")
        assert [r.round for r in records] == [0, 1, 2, 3]
        assert records[0].previous is None
        head = read_head(store)
        assert head is not None
        assert head[0].ref == records[-1].ref
        assert precedes(store, records[1].ref, head[0].ref)
        assert not precedes(store, head[0].ref, records[1].ref)

    def test_metrics_are_means_by_examples(self, store: MemoryStore) -> None:
        record = play(store, make_plan())
        assert record.metrics == {"loss": pytest.approx((1 * 1 + 2 * 2 + 3 * 3) / 6)}
        assert mean_metrics([]) == {}

    def test_bytes_are_the_same_on_every_store(self, tmp_path: object, store: MemoryStore) -> None:
        local = LocalStore(tmp_path)  # type: ignore[arg-type]
        play(store, make_plan())
        play(local, make_plan())
        assert store.read("HEAD").data == local.read("HEAD").data
        assert list(store.keys()) == list(local.keys())

    def test_a_second_play_changes_nothing(self, store: MemoryStore) -> None:
        play(store, make_plan())
        before = {key: store.read(key) for key in store.keys()}
        play(store, make_plan())
        assert {key: store.read(key) for key in store.keys()} == before

    def test_the_next_run_goes_on_from_head(self, store: MemoryStore) -> None:
        first = play(store, make_plan())
        second = begin(store, make_plan(run="r2"), fresh)
        assert second.weights == first.weights
        assert second.previous == first.ref

    def test_or_begins_afresh_on_request(self, store: MemoryStore) -> None:
        play(store, make_plan())
        federation = make_federation(training={"rounds": 1, "batch_size": 1, "start": "fresh"})
        record = begin(store, make_plan(federation, run="r2"), fresh)
        assert record.weights == weights.digest_of(fresh())

    def test_another_model_cannot_go_on_from_head(self, store: MemoryStore) -> None:
        play(store, make_plan())
        with pytest.raises(ModelError, match="tensor 'b' is not part of the model"):
            begin(store, make_plan(run="r2"), lambda: {"w": np.zeros(5, np.float32)})
        assert read_record(store, "r2", 0) is None

    def test_a_name_cannot_be_used_for_two_plans(self, store: MemoryStore) -> None:
        play(store, make_plan())
        other = make_plan(make_federation(training={"rounds": 4, "batch_size": 1}))
        with pytest.raises(InputError, match=r"training.rounds: 3 -> 4"):
            begin(store, other, fresh)

    def test_a_kept_optimizer_goes_on(self, store: MemoryStore) -> None:
        federation = make_federation(("a",), training={"rounds": 3, "batch_size": 1, "optimizer": "keep"})
        record = play(store, make_plan(federation))
        assert record.updates[0].optimizer is not None
        state = weights.loads(get_bytes(store, record.updates[0].optimizer, "a"))
        assert state["seen"] == 3


class TestQuorum:
    def test_a_dropped_learner_is_recorded_with_the_reason(self, store: MemoryStore) -> None:
        plan = make_plan()
        base = begin(store, plan, fresh).weights
        learners = {"a": PlusOneLearner(1), "b": PlusOneLearner(2, fails="its disk is full"), "c": PlusOneLearner(3)}
        play_round(store, plan, 1, base, learners)
        record = close_round(store, plan, 1, base)
        assert [u.learner for u in record.updates] == ["a", "c"]
        assert [(d.learner, d.why) for d in record.dropped] == [("b", "its disk is full")]

    def test_a_learner_that_left_nothing_is_recorded_too(self, store: MemoryStore) -> None:
        plan = make_plan()
        base = begin(store, plan, fresh).weights
        play_round(store, plan, 1, base, {"a": PlusOneLearner(1), "b": PlusOneLearner(2)})
        assert [(d.learner, d.why) for d in close_round(store, plan, 1, base).dropped] == [("c", "no update")]

    def test_below_it_nothing_is_committed(self, store: MemoryStore) -> None:
        plan = make_plan()
        base = begin(store, plan, fresh).weights
        play_round(store, plan, 1, base, {"a": PlusOneLearner(1), "b": PlusOneLearner(2, fails="x")})
        with pytest.raises(QuorumError, match=r"1 of 3 learners took part, the quorum is 2 \(b: x; c: no update\)"):
            close_round(store, plan, 1, base)
        assert read_record(store, "r1", 1) is None
        assert read_head(store) is None

    def test_a_round_needs_the_one_before(self, store: MemoryStore) -> None:
        plan = make_plan()
        base = begin(store, plan, fresh).weights
        with pytest.raises(RoundError, match="round 2 cannot begin"):
            close_round(store, plan, 2, base)


class TestTwoEngines:
    def test_end_with_one_history(self, tmp_path: object) -> None:
        store = LocalStore(tmp_path)  # type: ignore[arg-type]
        ends = []
        threads = [threading.Thread(target=lambda: ends.append(play(store, make_plan()))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ends) == 4
        assert len({r.ref for r in ends}) == 1
        alone = MemoryStore()
        play(alone, make_plan())
        assert alone.read("HEAD").data == store.read("HEAD").data

    def test_that_saw_different_learners_agree_on_the_first_record(self, store: MemoryStore) -> None:
        plan = make_plan()
        base = begin(store, plan, fresh).weights
        play_round(store, plan, 1, base, {"a": PlusOneLearner(1), "b": PlusOneLearner(2)})
        first = close_round(store, plan, 1, base)
        play_round(store, plan, 1, base, {"c": PlusOneLearner(3)})
        assert close_round(store, plan, 1, base) == first

    def test_of_two_runs_one_is_refused(self, store: MemoryStore) -> None:
        one, two = make_plan(), make_plan(run="r2")
        base = begin(store, one, fresh).weights
        begin(store, two, fresh)
        for plan in (one, two):
            play_round(store, plan, 1, base, {"a": PlusOneLearner(1), "b": PlusOneLearner(2)})
        first = close_round(store, one, 1, base)
        with pytest.raises(ConflictError, match="does not follow"):
            close_round(store, two, 1, base)
        head = read_head(store)
        assert head is not None
        assert head[0].ref == first.ref

    def test_a_late_repetition_of_an_old_round_changes_nothing(self, store: MemoryStore) -> None:
        play(store, make_plan())
        play(store, make_plan(run="r2"))
        head = store.read("HEAD")
        record = read_record(store, "r1", 2)
        assert record is not None
        assert commit(store, record) == record
        assert store.read("HEAD") == head


class TestCorruption:
    def test_a_record_in_the_wrong_place(self, store: MemoryStore) -> None:
        play(store, make_plan())
        store.replace(keys.record("r1", 2), store.read(keys.record("r1", 1)).data)
        with pytest.raises(CorruptError, match="is the record of run 'r1', round 1"):
            history(store, "r1")

    def test_a_broken_chain(self, store: MemoryStore) -> None:
        play(store, make_plan())
        record = read_record(store, "r1", 1)
        assert record is not None
        store.replace(keys.record("r1", 1), encode(msgspec.structs.replace(record, metrics={"loss": 0.0})))
        with pytest.raises(CorruptError, match="does not follow"):
            history(store, "r1")

    def test_head_that_is_not_one(self, store: MemoryStore) -> None:
        store.create("HEAD", b"{}")
        with pytest.raises(CorruptError, match="not a valid head"):
            read_head(store)


def test_a_learner_writes_only_below_its_own_name(store: MemoryStore) -> None:
    plan = make_plan()
    base = begin(store, plan, fresh).weights
    before = set(store.keys())
    play_round(store, plan, 1, base, {"a": PlusOneLearner(1)})
    play_round(store, plan, 1, base, {"a": PlusOneLearner(1)})
    assert all(key.startswith("learners/a/") for key in set(store.keys()) - before)
    assert keys.update("a", "r1", 1) in store.keys()


def test_plans_say_what_changed(store: MemoryStore) -> None:
    plan = make_plan()
    assert read_plan(store, plan.put(store)) == plan
    other = make_plan(make_federation(("a", "b")))
    assert differences(plan, plan) == []
    assert "learners[2].name: c -> absent" in differences(plan, other)
    assert plan.digest != other.digest
    assert digest_of(encode(plan)) == plan.digest


HOSTILE_MANIFESTS = {
    "another base": ({"base": digest_of(b"other")}, "the update's base is"),
    "another round": ({"round": 2}, "the update's round is 2"),
    "another run": ({"run": "r0"}, "the update's run is r0"),
    "another federation": ({"federation": "other"}, "the update's federation is other"),
    "in the name of another": ({"learner": "b"}, "the update's learner is b"),
    "negative examples": ({"examples": -5}, "examples"),
    "no examples": ({"examples": 0}, "examples"),
    "more examples than there are": ({"examples": 10**30}, "examples"),
    "fractional examples": ({"examples": 1.5}, "examples"),
    "a metric that is text": ({"metrics": {"loss": "low"}}, "metrics"),
    "an infinite metric": ({"metrics": {"loss": 1e999}}, "metric"),
    "thousands of metrics": ({"metrics": {f"m{k}": 0.0 for k in range(2000)}}, "metrics"),
    "a path for a name": ({"learner": "../../HEAD"}, "learner"),
    "a path for a digest": ({"weights": "sha256:../../HEAD"}, "weights"),
    "a negative size": ({"size": -1}, "size"),
    "a key more": ({"more": 1}, "more"),
}


@pytest.mark.parametrize(("change", "why"), HOSTILE_MANIFESTS.values(), ids=HOSTILE_MANIFESTS.keys())
def test_a_hostile_manifest_drops_its_learner(store: MemoryStore, change: dict[str, object], why: str) -> None:
    plan = make_plan()
    base = begin(store, plan, fresh).weights
    play_round(store, plan, 1, base, {name: PlusOneLearner(1) for name in "abc"})
    key = keys.update("a", "r1", 1)
    manifest = {**msgspec.json.decode(store.read(key).data), **change}
    store.replace(key, json.dumps(manifest).replace("Infinity", "1e999").encode())
    record = close_round(store, plan, 1, base)
    assert [d.learner for d in record.dropped] == ["a"]
    assert why in record.dropped[0].why
    assert [u.learner for u in record.updates] == ["b", "c"]
    assert history(store, "r1")[-1] == record


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[" * 60_000, b" " * 70_000], ids=["empty", "half", "binary", "deep", "large"]
)
def test_bytes_that_are_no_manifest_drop_their_learner(store: MemoryStore, data: bytes) -> None:
    plan = make_plan()
    base = begin(store, plan, fresh).weights
    play_round(store, plan, 1, base, {"b": PlusOneLearner(1), "c": PlusOneLearner(1)})
    store.replace(keys.update("a", "r1", 1), data)
    assert [d.learner for d in close_round(store, plan, 1, base).dropped] == ["a"]


def test_a_hostile_reason_is_cut_and_cleaned(store: MemoryStore) -> None:
    plan = make_plan()
    base = begin(store, plan, fresh).weights
    play_round(store, plan, 1, base, {"b": PlusOneLearner(1), "c": PlusOneLearner(1)})
    store.replace(
        keys.answer("a", "r1", 1, "dropped"), encode({"learner": "a", "why": "\x1b[31m<script>" + "x" * 5000})
    )
    (dropped,) = close_round(store, plan, 1, base).dropped
    assert len(dropped.why) == 500
    assert "\x1b" not in dropped.why


def test_hostile_weights_below_the_quorum_stop_the_round(store: MemoryStore) -> None:
    plan = make_plan(make_federation(quorum={"min_learners": 3}))
    base = begin(store, plan, fresh).weights
    play_round(store, plan, 1, base, {name: PlusOneLearner(k + 1) for k, name in enumerate("abc")})
    update = find_update(store, "a", "r1", 1)
    assert update is not None
    store.replace(keys.content(update.weights, "a"), b"nonsense")
    with pytest.raises(QuorumError, match=r"2 of 3 learners took part, the quorum is 3 \(a: the weights have 8 bytes"):
        close_round(store, plan, 1, base)
    assert read_record(store, "r1", 1) is None


def test_altered_global_weights_stop_the_round(store: MemoryStore) -> None:
    plan = make_plan()
    base = begin(store, plan, fresh).weights
    play_round(store, plan, 1, base, {name: PlusOneLearner(1) for name in "abc"})
    store.replace(keys.content(base), weights.dumps({"w": np.zeros(9, np.float32)}))
    with pytest.raises(CorruptError, match="another layout than the run"):
        close_round(store, plan, 1, base)
