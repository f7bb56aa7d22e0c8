"""Tries of a run: what is trained is HEAD, what is not may begin again, and settings that train nothing may change."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from fedpipe.errors import ConflictError, InputError, QuorumError
from fedpipe.learners.vote import vote
from fedpipe.rounds.ballots import find_vote, start_scores
from fedpipe.rounds.beginning import begin, find_begun
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.history import (
    commit,
    history,
    is_trained,
    origin_of,
    read_head,
    read_record,
    trained_head,
)
from fedpipe.rounds.manifests import Head, Record, Update
from fedpipe.rounds.plan import Plan, current_plan
from fedpipe.rounds.updates import find_part, find_update
from fedpipe.store import MemoryStore, Store, keys
from fedpipe.store.objects import encode
from tests.faults.invariants import check
from tests.faults.stores import HookedStore, killing
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan, play, play_collective, play_round
from tests.simulation import Killed

ONE, TWO = {"rounds": 2, "batch_size": 1}, {"rounds": 2, "batch_size": 1, "learning_rate": 0.5}


def plan_of(training: Any = ONE, run: str = "r1", **more: Any) -> Plan:
    return make_plan(make_federation(training=training, **more), run)


def learners(number: float = 1.0) -> dict[str, Any]:
    return {name: PlusOneLearner(number) for name in "abc"}


def head_of(store: Store) -> tuple[str, int] | None:
    found = read_head(store)
    return (found[0].run, found[0].round) if found else None


class TestHead:
    def test_is_nothing_untrained(self, store: MemoryStore) -> None:
        plan = plan_of()
        base = begin(store, plan, fresh)
        assert head_of(store) is None
        play_round(store, plan, 1, base.weights, {"a": PlusOneLearner(1.0)})
        with pytest.raises(QuorumError):
            close_round(store, plan, 1, base.weights)
        assert head_of(store) is None
        play_round(store, plan, 1, base.weights, learners())
        close_round(store, plan, 1, base.weights)
        assert head_of(store) == ("r1", 1)

    def test_stays_at_the_run_before_until_the_next_has_trained(self, store: MemoryStore) -> None:
        play(store, plan_of())
        for start in ("head", "fresh"):
            run = f"r-{start}"
            record = begin(store, plan_of({**ONE, "start": start}, run), fresh)
            assert head_of(store) == ("r1", 2)
            assert (origin_of(record) is not None) == (start == "head")
        play(store, plan_of({**ONE, "start": "fresh"}, "r-fresh"))
        assert head_of(store) == ("r-fresh", 2)

    def test_is_not_moved_by_rejected_proposals(self, store: MemoryStore) -> None:
        plan = make_plan(make_federation(algorithm="collective", training=ONE))
        play_collective(store, plan, {name: PlusOneLearner(-1.0, wants=99.0) for name in "abc"})
        records = history(store, "r1")
        assert [record.accepted for record in records] == [True, False, False]
        assert head_of(store) is None
        assert not is_trained(records)
        check(store, plan, rounds=2)

    def test_is_not_moved_by_a_rehearsal(self, store: MemoryStore) -> None:
        first = begin(store, plan_of(), fresh)
        made = replace(first, round=1, previous=first.ref, base=first.weights)
        assert commit(store, made, rehearsal=True) == made
        assert head_of(store) is None
        assert is_trained(history(store, "r1"))

    def test_of_an_earlier_version_at_a_round_0_counts_as_the_round_before(self, store: MemoryStore) -> None:
        """It moved HEAD to round 0 of a run that failed."""
        last = play(store, plan_of())
        failed = begin(store, plan_of(run="failed"), fresh)
        found = read_head(store)
        assert found is not None
        head = Head(run="failed", round=0, record=failed.ref.record, weights=failed.weights)
        store.swap(keys.HEAD, encode(head), found[1])
        now = trained_head(store)
        assert now is not None
        assert now.ref == last.ref
        assert begin(store, plan_of(run="r2"), fresh).previous == last.ref
        play(store, plan_of(run="r2"))
        assert head_of(store) == ("r2", 2)

    def test_of_an_earlier_version_without_any_training(self, store: MemoryStore) -> None:
        failed = begin(store, plan_of(run="failed"), fresh)
        store.create(keys.HEAD, encode(Head(run="failed", round=0, record=failed.ref.record, weights=failed.weights)))
        assert trained_head(store) is None
        other = {"w": np.ones(7, np.float32)}
        assert begin(store, plan_of(run="r2"), lambda: other).previous is None  # a mended model fits


class TestASecondTry:
    """Of a run of which nothing but round 0 is recorded."""

    def test_begins_with_the_mended_model(self, store: MemoryStore) -> None:
        begin(store, plan_of(), lambda: {"w": np.ones(7, np.float32)})
        mended = replace(plan_of(), code="sha256:" + "1" * 64)
        assert find_begun(store, mended) is None
        play(store, mended)
        assert head_of(store) == ("r1", 2)
        check(store, mended, rounds=2)

    def test_trains_again_what_was_trained_for_the_first(self, store: MemoryStore) -> None:
        """The base is the same, but an update of other settings must not count."""
        one, two = plan_of(ONE), plan_of(TWO)
        base = begin(store, one, fresh).weights
        play_round(store, one, 1, base, {"a": PlusOneLearner(5.0)})
        assert begin(store, two, fresh).weights == base
        assert find_part(store, two, "a", 1, base) is None
        found = play_round(store, two, 1, base, {"b": PlusOneLearner(1.0)})
        assert isinstance(found[0], Update)
        with pytest.raises(QuorumError, match=r"a: the update belongs to an earlier try of the run"):
            close_round(store, two, 1, base)
        play_round(store, two, 1, base, {"a": PlusOneLearner(1.0)})
        record = close_round(store, two, 1, base)
        assert [update.metrics["loss"] for update in record.updates] == [1.0, 1.0]

    def test_votes_again(self, store: MemoryStore) -> None:
        one, two = (make_plan(make_federation(algorithm="collective", training=t)) for t in (ONE, TWO))
        base = begin(store, one, fresh).weights
        vote(store, one, "a", 0, base, base, "", lambda: PlusOneLearner(1.0, wants=5.0))
        begin(store, two, fresh)
        assert find_vote(store, two, "a", 0, base) is None
        assert start_scores(store, two) == {}
        vote(store, two, "a", 0, base, base, "", lambda: PlusOneLearner(1.0, wants=7.0))
        scores = start_scores(store, two)["a"]
        assert scores.vote is not None
        assert scores.vote.metrics["loss"] == 3.0

    def test_begins_from_a_head_that_moved_in_the_meantime(self, store: MemoryStore) -> None:
        begin(store, plan_of(run="slow"), fresh)
        last = play(store, plan_of(run="fast"))
        record = begin(store, plan_of(run="slow"), fresh)
        assert (record.previous, record.weights) == (last.ref, last.weights)
        play(store, plan_of(run="slow"))
        assert head_of(store) == ("slow", 2)

    def test_forgets_that_the_first_was_stopped(self, store: MemoryStore) -> None:
        begin(store, plan_of(ONE), fresh)
        for key in (keys.stop("r1"), keys.summary("r1"), keys.state("r1", 1)):
            store.create(key, b"{}")
        begin(store, plan_of(ONE), fresh)  # the same plan resumes, and stays stopped
        assert store.size(keys.stop("r1")) is not None
        begin(store, plan_of(TWO), fresh)
        assert [store.size(key) for key in (keys.stop("r1"), keys.summary("r1"), keys.state("r1", 1))] == [None] * 3

    def test_is_refused_once_a_round_is_recorded(self, store: MemoryStore) -> None:
        play(store, plan_of(ONE))
        begin(store, plan_of(ONE, "r2"), fresh)
        with pytest.raises(InputError, match=r"learning_rate: 0.0 -> 0.5\). Use another run name, such as r1-2: it"):
            begin(store, plan_of(TWO), fresh)

    def test_of_two_engines_the_first_to_record_round_1_wins(self, store: MemoryStore) -> None:
        one, two = plan_of(ONE), plan_of(TWO)
        base = begin(store, one, fresh).weights
        play_round(store, one, 1, base, learners(1.0))
        begin(store, two, fresh)  # while the engine of the first is still at work
        with pytest.raises(QuorumError):  # the updates are not of this run
            close_round(store, two, 1, base)
        first = read_record(store, "r1", 0)
        assert first is not None
        assert first.plan == two.definition.digest

    @pytest.mark.parametrize("seed", range(100))
    def test_wherever_two_engines_meet_history_is_one_chain(self, seed: int) -> None:
        """One engine is stopped at any call to the store, another begins the run with other settings, the first
        continues, and one of them is killed at times; then both commands are repeated."""
        random, store = Random(seed), MemoryStore()
        one, two = plan_of(ONE), plan_of(TWO)
        point, other_dies = random.randrange(120), random.random() < 0.5
        errors: list[Exception] = []

        def engine(plan: Plan, through: Store) -> None:
            try:
                play(through, plan, learners())
            except (ConflictError, InputError, QuorumError) as error:
                errors.append(error)
            except Killed:
                pass

        def meanwhile(number: int, _name: str, _key: str) -> None:
            if number == point:
                engine(two, killing(store, random.randrange(120), "after", real=False) if other_dies else store)

        engine(one, HookedStore(store, before=meanwhile))
        for plan in random.sample([one, two, one, two], 4):
            engine(plan, store)
        records = history(store, "r1")
        assert len(records) == 3, errors
        plan = one if records[0].plan == one.definition.digest else two
        assert {record.plan for record in records} == {plan.definition.digest}
        check(store, plan, rounds=2)


FREE: dict[str, dict[str, Any]] = {
    "export": {"export": {"tolerance": 0.5, "name": "other", "classes": ["x", "y"]}},
    "every_round": {"evaluation": {"every_round": False}},
    "tensorboard": {"training": {**ONE, "tensorboard": False}},
    "evaluate": {"training": {**ONE, "evaluate": {"batch_size": 7}}},
    "steps": {"training": {**ONE, "rounds_per_step": 1}},
    "quorum": {"quorum": {"min_learners": 1, "deadline": 5.0, "retries": 0}},
    "placement": {"placement": {"train": {"node_selector": {"pool": "gpu"}}}},
    "images": {"images": {"registry": "elsewhere"}},
    "secret": {"secret": "mine", "store": "s3://elsewhere/x"},
    "simulation": {"simulation": {"test_every": 5}},
    "folder": {"data": {"uri": "/elsewhere/x.npz"}},
}
BOUND: dict[str, dict[str, Any]] = {
    "rounds": {"training": {**ONE, "rounds": 3}},
    "seed": {"training": {**ONE, "seed": 1}},
    "holdout": {"evaluation": {"holdout": 0.5}},
    "data": {"data": {"uri": "y.npz"}},
    "asked": {"quorum": {"learners_per_round": 2}},
    "rule": {"algorithm": {"name": "averaging", "weighting": "uniform"}},
    "learners": {"learners": [{"name": name} for name in "abcd"]},
    "simulated": {"simulation": {"algorithm": "fedprox", "proximal_strength": 0.5}},
    "measured": {
        "training": {**ONE, "early_stopping": {"patience": 2}},
        "evaluation": {"every_round": True},
    },
}


def changed(changes: dict[str, Any]) -> Plan:
    content: dict[str, Any] = {"training": ONE, **changes}
    return make_plan(make_federation(**content))


class TestSettings:
    @pytest.mark.parametrize("changes", FREE.values(), ids=FREE)
    def test_that_train_nothing_may_change(self, store: MemoryStore, changes: dict[str, Any]) -> None:
        first, other = changed({}), changed(changes)
        assert first.definition.digest == other.definition.digest
        last = play(store, first)
        assert begin(store, other, fresh).round == 0
        found = current_plan(store, "r1", last.plan)
        assert found == other
        assert found.federation != first.federation

    @pytest.mark.parametrize("changes", BOUND.values(), ids=BOUND)
    def test_that_define_the_training_may_not(self, store: MemoryStore, changes: dict[str, Any]) -> None:
        last = play(store, changed({}))
        with pytest.raises(InputError, match="was made with other settings"):
            begin(store, changed(changes), fresh)
        assert current_plan(store, "r1", last.plan) == changed({})

    @pytest.mark.parametrize(
        "deciding", [{"algorithm": {"name": "collective"}}, {"training": {**ONE, "early_stopping": {"patience": 2}}}]
    )
    def test_of_measurements_define_it_where_they_decide(self, deciding: dict[str, Any]) -> None:
        training = {**ONE, **deciding.get("training", {})}
        one = changed({**deciding, "training": training})
        two = changed({**deciding, "training": {**training, "evaluate": {"batch_size": 7}}})
        assert one.definition.digest != two.definition.digest

    def test_a_privacy_target_may_be_raised_but_not_the_noise(self) -> None:
        privacy = {"noise_multiplier": 1.0, "l2_norm_clip": 1.0, "microbatches": 1, "delta": 1e-5}

        def digest(**more: float) -> str:
            return changed({"privacy": {**privacy, "target_epsilon": 1.0, **more}}).definition.digest

        assert digest() == digest(target_epsilon=2.0) != digest(noise_multiplier=2.0)

    def test_a_changed_setting_resumes_in_the_middle(self, store: MemoryStore) -> None:
        """The quorum is lowered, as the message of the failed round advises."""
        strict, lower = (changed({"quorum": {"min_learners": count}}) for count in (3, 2))
        base = begin(store, strict, fresh).weights
        play_round(store, strict, 1, base, learners())
        first = close_round(store, strict, 1, base)
        two = {name: PlusOneLearner(1.0) for name in "ab"}
        play_round(store, strict, 2, first.weights, two)
        with pytest.raises(QuorumError, match=r"lower quorum.min_learners; then run the same command again"):
            close_round(store, strict, 2, first.weights)
        begin(store, lower, fresh)
        assert close_round(store, lower, 2, first.weights).round == 2
        trained = find_update(store, "a", "r1", 2)
        assert trained is not None
        assert two["a"].trained == 1


def test_records_know_where_they_come_from(store: MemoryStore) -> None:
    play(store, plan_of())
    second = begin(store, plan_of(run="r2"), fresh)
    origin = origin_of(second)
    assert origin is not None
    assert (origin.run, origin.round) == ("r1", 2)
    assert is_trained([second])
    third: Record = begin(store, plan_of({**ONE, "start": "fresh"}, run="r3"), fresh)
    assert origin_of(third) is None
    assert not is_trained([third])
