"""Numbers that a learner claims: examples, shares and norms, in averaging, votes, scores and statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from fedpipe import weights
from fedpipe.errors import DroppedError, FederationError, QuorumError
from fedpipe.federation.algorithms import Vote
from fedpipe.identity.enrolment import Enrolled, Enrolment, change_enrolled
from fedpipe.identity.signing import make_key, public_key
from fedpipe.identity.statements import check_signed, signed
from fedpipe.reports.comparison import compare
from fedpipe.reports.report import render
from fedpipe.reports.story import read_story, summarise
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.claims import Claims
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.evaluation import Score, read_scores
from fedpipe.rounds.history import history
from fedpipe.rounds.manifests import Ballot, Record, Scores, Update
from fedpipe.rounds.manifests import Tested as Measured
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.voting import check_ballot
from fedpipe.store import MemoryStore, Store, keys
from fedpipe.store.objects import digest_of, get_bytes
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan, play, play_collective, play_round
from tests.rounds.test_voting import BASE, CANDIDATE, ballot
from tests.simulation import World, attendance, coordinator

SIZES = {name: {"train": 10, "vote": 4, "test": 5} for name in "abcdef"}
LIAR = 10**15


def plan_of(names: str = "abcd", training: dict[str, Any] | None = None, **algorithm: Any) -> Plan:
    federation = make_federation(
        tuple(names), algorithm={"name": "averaging", **algorithm}, training=training or {"rounds": 1, "batch_size": 1}
    )
    return replace(make_plan(federation), sizes={name: SIZES[name] for name in names})


def closed(store: Store, plan: Plan, learners: dict[str, Any]) -> Record:
    base = begin(store, plan, fresh).weights
    play_round(store, plan, 1, base, learners)
    return close_round(store, plan, 1, base)


def honest(names: str = "abcd") -> dict[str, Any]:
    return {name: PlusOneLearner(k + 1, examples=k + 1) for k, name in enumerate(names)}


def model(store: Store, record: Record) -> bytes:
    return get_bytes(store, record.weights)


def why(record: Record, learner: str) -> str:
    return next((d.why for d in record.dropped if d.learner == learner), "")


NAMES = ("", "\x1b[2J", "\x1b]0;title\x07", "a\nb", "a\x00b", "\u202eloss", "\ud7ff\u2028", "\x7f")


@pytest.mark.parametrize("name", NAMES)
class TestNames:
    """A terminal or a page shows names of metrics, so a learner may not send escape sequences."""

    def test_of_an_update(self, store: MemoryStore, name: str) -> None:
        class Naming(PlusOneLearner):
            def propose_weights(self, **more: Any) -> Any:
                return super().propose_weights(**more)._replace(metrics={name: 1.0})

        record = closed(store, plan_of(), {**honest("abc"), "d": Naming(1)})
        assert "cannot be shown" in why(record, "d")
        assert why(record, "d").isascii()
        assert why(record, "d").isprintable()
        assert set(record.metrics) == {"loss"}

    def test_of_a_ballot(self, name: str) -> None:
        odd = Scores(vote=Measured(examples=4, metrics={"loss": 0.5}), test=Measured(examples=1, metrics={name: 1.0}))
        given = ballot("a", True, proposed=odd)
        with pytest.raises(DroppedError, match="cannot be shown"):
            check_ballot(
                given, vote=Vote(), federation="tiny", run="r1", number=1, learner="a", base=BASE, candidate=CANDIDATE
            )


class TestExamples:
    def test_beyond_the_shard_drop_the_learner(self, store: MemoryStore) -> None:
        plan = plan_of()
        record = closed(store, plan, honest("abc") | {"d": PlusOneLearner(5, examples=LIAR)})
        assert why(record, "d") == f"it claims {LIAR} train examples, but its shard has 10"
        other = MemoryStore()
        without = closed(other, plan, honest("abc"))
        assert model(store, record) == model(other, without)
        assert record.metrics == without.metrics

    @pytest.mark.parametrize(("claimed", "valid"), [(10, True), (11, False)])
    def test_are_at_most_those_of_the_shard(self, store: MemoryStore, claimed: int, valid: bool) -> None:
        record = closed(store, plan_of(), honest("abc") | {"d": PlusOneLearner(5, examples=claimed)})
        assert ("d" in [u.learner for u in record.updates]) == valid

    @pytest.mark.parametrize(("claimed", "valid"), [(7, True), (8, False)])
    def test_are_at_most_those_of_the_enrolment(self, store: MemoryStore, claimed: int, valid: bool) -> None:
        """Of a learner with data of its own, the plan has no size."""
        enrolled = Enrolment(key=public_key(make_key()), since=0.0, examples=7)
        with pytest.raises(DroppedError, match="is enrolled with 7") if not valid else _nothing():
            Claims({}, Enrolled(learners={"d": enrolled})).check("d", "train", claimed)

    @pytest.mark.parametrize(("claimed", "valid"), [(4, True), (5, False)])
    def test_are_at_most_those_of_the_federation_file(self, store: MemoryStore, claimed: int, valid: bool) -> None:
        plan = plan_of(most_examples=4)
        record = closed(store, plan, honest("abc") | {"d": PlusOneLearner(5, examples=claimed)})
        refused = "it claims 5 train examples, but algorithm.most_examples is 4"
        assert why(record, "d") == ("" if valid else refused)
        assert {d.learner: d.why for d in record.dropped} == ({} if valid else {"d": refused})

    def test_have_no_limit_when_neither_names_one(self) -> None:
        enrolled = Enrolment(key=public_key(make_key()), since=0.0)
        Claims({}, Enrolled(learners={"d": enrolled})).check("d", "train", LIAR)

    def test_of_a_test_count_too(self, store: MemoryStore) -> None:
        """They weigh the means by which early stopping decides."""
        learners = honest("abc") | {"d": PlusOneLearner(5)}
        plan = plan_of()
        plan = replace(plan, sizes=plan.sizes | {"d": {"train": 10, "test": 1}})  # it tests 2
        assert why(closed(store, plan, learners), "d") == "it claims 2 test examples, but its shard has 1"

    def test_of_a_ballot_count_too(self, store: MemoryStore) -> None:
        federation = make_federation(algorithm={"name": "collective"}, training={"rounds": 1, "batch_size": 1})
        plan = replace(make_plan(federation), sizes={**SIZES, "c": {"train": 9, "vote": 1, "test": 5}})
        record = play_collective(store, plan, {name: PlusOneLearner(1, wants=50) for name in "abc"})
        assert [(d.learner, d.why) for d in record.absent] == [("c", "it claims 2 vote examples, but its shard has 1")]

    def test_of_a_proposal_count_too(self, store: MemoryStore) -> None:
        federation = make_federation(algorithm={"name": "collective"}, training={"rounds": 1, "batch_size": 1})
        plan = replace(make_plan(federation), sizes=SIZES)
        record = play_collective(store, plan, {name: PlusOneLearner(1, examples=LIAR, wants=50) for name in "abc"})
        assert not record.accepted
        assert why(record, "a").startswith(f"it claims {LIAR} train examples")

    def test_of_a_score_count_too(self, store: MemoryStore) -> None:
        claims = Claims(SIZES, Enrolled())
        for name, count in (("a", 5), ("b", 6)):
            store.replace(f"learners/{name}/runs/r1/score", _encoded(Score(learner=name, weights="w", examples=count)))
        found = read_scores(store, "r1", "ab", lambda s: claims.check(s.learner, "test", s.examples))
        assert [score.why for score in found] == ["", "it claims 6 test examples, but its shard has 5"]


class TestShares:
    def test_of_a_round_are_capped(self, store: MemoryStore) -> None:
        plan = plan_of(most_share=0.4)
        record = closed(
            store, plan, {name: PlusOneLearner(k + 1, 10 if k == 3 else 1) for k, name in enumerate("abcd")}
        )
        found = weights.loads(model(store, record))["w"] - np.arange(5)
        np.testing.assert_allclose(found, 0.2 * (1 + 2 + 3) + 0.4 * 4, rtol=1e-6)
        assert [u.examples for u in record.updates] == [1, 1, 1, 10]

    def test_are_equal_when_too_few_take_part(self, store: MemoryStore) -> None:
        plan = plan_of(most_share=0.1)
        record = closed(store, plan, honest())
        np.testing.assert_allclose(weights.loads(model(store, record))["w"] - np.arange(5), 2.5, rtol=1e-6)

    def test_are_not_capped_by_default(self, store: MemoryStore) -> None:
        record = closed(store, plan_of(), honest())
        np.testing.assert_allclose(weights.loads(model(store, record))["w"] - np.arange(5), 30 / 10, rtol=1e-6)

    def test_need_weights(self) -> None:
        with pytest.raises(FederationError, match="most_share: has no effect when all updates weigh the same"):
            plan_of(most_share=0.5, weighting="uniform")

    def test_are_those_of_a_round_without_a_refused_update(self, store: MemoryStore) -> None:
        learners = {name: PlusOneLearner(k + 1, 2 * k + 1) for k, name in enumerate("abcd")}
        plan, other = plan_of("abcde", most_share=0.3), MemoryStore()
        record = closed(store, plan, {**learners, "e": PlusOneLearner(1e6, 10)})
        assert why(record, "e").endswith("more than 25 times")  # it claims 10 steps, and the others 1, 3, 5 and 7
        assert model(store, record) == model(other, closed(other, plan, learners))


@pytest.mark.parametrize("rule", [{"name": "krum", "byzantine": 1}, {"name": "trimmed_mean", "share": 0.2}])
class TestRulesThatNeedFiveUpdates:
    """The quorum of more than half would be three. Of four values, a share of 0.2 would cut off none."""

    @pytest.mark.parametrize("early", [False, True], ids=["steps", "session"])
    def test_that_are_left_with_too_few_stay_below_the_quorum(
        self, store: MemoryStore, early: bool, rule: dict[str, Any]
    ) -> None:
        plan = plan_of("abcde", rule=rule)
        learners = honest("abcd") | {"e": PlusOneLearner(1, fails="no power")}
        message = rf"4 of 5 learners took part, but {rule['name']} needs 5 updates \(e: no power\)"
        if not early:
            with pytest.raises(QuorumError, match=message):
                closed(store, plan, learners)
            return
        world = World()
        begin(world.store, plan, fresh)
        world.spawn("coordinator", coordinator(world, plan))
        for name, learner in learners.items():
            world.spawn(name, attendance(world, plan, name, learner))
        world.run()
        assert isinstance(world.results["coordinator"], QuorumError)
        assert f"{rule['name']} needs 5 updates" in str(world.results["coordinator"])

    def test_that_refuse_an_update_need_enough_others(self, store: MemoryStore, rule: dict[str, Any]) -> None:
        """An update that is found broken when it is read."""
        plan = plan_of("abcde", rule=rule)
        base = begin(store, plan, fresh).weights
        *_, update = play_round(store, plan, 1, base, honest("abcde"))
        assert isinstance(update, Update)
        store.replace(keys.content(update.weights, "e"), b"?" * update.size)
        message = rf"4 of 5 learners took part, but {rule['name']} needs 5 updates \(e: "
        with pytest.raises(QuorumError, match=message):
            close_round(store, plan, 1, base)


class TestRules:
    def test_name_all_parts_in_the_record(self, store: MemoryStore) -> None:
        plan = plan_of("abcde", before=[{"name": "clip", "norm": 2.0}], rule="median")
        record = closed(store, plan, honest("abcde"))
        assert record.rule == "clip, median"


class TestNorms:
    def test_are_not_compared_for_rules_with_a_defence(self, store: MemoryStore) -> None:
        plan = plan_of("abcde", rule="median")
        assert len(closed(store, plan, honest("abcd") | {"e": PlusOneLearner(1e6)}).updates) == 5

    @pytest.mark.parametrize("size", [5, 300_000], ids=["small", "above 1 MiB"])
    @pytest.mark.parametrize("number", [1e3, 1e30, -1e4])
    def test_far_beyond_the_others_drop_the_learner(
        self, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, number: float, size: int
    ) -> None:
        plan, other = plan_of("abcde"), MemoryStore()
        _start(monkeypatch, size)
        record = closed(store, plan, honest("abcd") | {"e": PlusOneLearner(number, 10)})
        assert "more than 40 times" in why(record, "e")  # it claims 10 steps, and the others 1 to 4
        without = closed(other, plan, honest("abcd"))
        assert model(store, record) == model(other, without)
        assert record.metrics == without.metrics

    def test_are_named_in_summary_report_and_comparison(self, store: MemoryStore) -> None:
        closed(store, plan_of(), honest("abc") | {"d": PlusOneLearner(1e6)})
        story = read_story(store, "r1")
        (refused,) = summarise(story)["rounds"][0]["dropped"]
        assert refused["learner"] == "d"
        assert f'<span class="bad">d: {refused["why"]}</span>' in render(story)
        assert compare([story, story]).results["learners dropped"] == [1, 1]

    def test_need_three_others(self, store: MemoryStore) -> None:
        plan = plan_of("abc")
        assert len(closed(store, plan, honest("ab") | {"c": PlusOneLearner(1e6)}).updates) == 3

    def test_within_the_limit_count(self, store: MemoryStore) -> None:
        """The median of 1, 2 and 3 is 2."""
        assert len(closed(store, plan_of(), honest("abc") | {"d": PlusOneLearner(20)}).updates) == 4
        assert len(closed(MemoryStore(), plan_of(), honest("abc") | {"d": PlusOneLearner(20.1)}).updates) == 3

    def test_that_are_no_larger_than_the_weights_count(self, store: MemoryStore) -> None:
        """An honest learner may still learn when the others have converged: it goes two hundred times as far."""
        converged = {name: PlusOneLearner(0.01) for name in "abc"}
        plan = plan_of()  # the weights 0, 1, 2, 3, 4 and 0 have a norm of 5.48, a change by 2.2 of all six one of 5.39
        assert len(closed(store, plan, {**converged, "d": PlusOneLearner(2.2)}).updates) == 4
        record = closed(MemoryStore(), plan, {**converged, "d": PlusOneLearner(2.3)})
        assert "more than 10 times" in why(record, "d")

    @pytest.mark.parametrize("method", [None, "fednova"])
    def test_may_be_larger_in_proportion_to_the_steps(self, store: MemoryStore, method: str | None) -> None:
        """Of 9 examples there are nine steps, of one there is one, and of two there are two."""
        plan = plan_of("abcd", training={"rounds": 1, "batch_size": 1, "method": method} if method else None)
        others = {name: PlusOneLearner(k + 1, examples=k + 1) for k, name in enumerate("abc")}
        assert len(closed(store, plan, {**others, "d": PlusOneLearner(89.9, examples=9)}).updates) == 4
        record = closed(MemoryStore(), plan, {**others, "d": PlusOneLearner(90.1, examples=9)})
        assert "the median of the others is 4.899: more than 45 times" in why(record, "d")

    def test_that_claims_many_steps_have_a_limit(self, store: MemoryStore) -> None:
        plan = plan_of("abcd", most_norm=4)
        others = {name: PlusOneLearner(2, examples=1) for name in "abc"}
        assert len(closed(store, plan, {**others, "d": PlusOneLearner(31.9, examples=10)}).updates) == 4
        record = closed(MemoryStore(), plan, {**others, "d": PlusOneLearner(32.1, examples=10)})
        assert "more than 16 times" in why(record, "d")

    def test_are_not_compared_when_that_is_off(self, store: MemoryStore) -> None:
        plan = plan_of(most_norm=0)
        assert len(closed(store, plan, honest("abc") | {"d": PlusOneLearner(1e6)}).updates) == 4

    def test_of_two_hostile_learners_are_both_found(self, store: MemoryStore) -> None:
        plan, other = plan_of("abcdef"), MemoryStore()
        record = closed(store, plan, honest("abcd") | {"e": PlusOneLearner(1e6), "f": PlusOneLearner(1e12)})
        assert [d.learner for d in record.dropped] == ["e", "f"]
        assert model(store, record) == model(other, closed(other, plan, honest("abcd")))

    def test_of_updates_that_change_nothing_refuse_nobody(self, store: MemoryStore) -> None:
        idle = {name: PlusOneLearner(0) for name in "abc"}
        assert len(closed(store, plan_of(), {**idle, "d": PlusOneLearner(1)}).updates) == 4

    def test_that_overflow_drop_the_learner_and_not_the_round(self, store: MemoryStore) -> None:
        plan, other = plan_of("abcde"), MemoryStore()
        record = closed(store, plan, honest("abcd") | {"e": _Huge(10)})
        assert "a norm of inf" in why(record, "e")
        assert model(store, record) == model(other, closed(other, plan, honest("abcd")))

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("size", [5, 300_000], ids=["small", "above 1 MiB"])
    def test_give_the_same_bytes_in_sessions(
        self, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, size: int, seed: int
    ) -> None:
        """The updates of large models are added as they arrive, the hostile one among them."""
        _start(monkeypatch, size)
        plan = plan_of("abcde")
        hostile = {"e": PlusOneLearner(1e5, 10)}
        steps = closed(store, plan, honest("abcd") | hostile)
        world = World(seed)
        begin(world.store, plan, fresh)
        world.spawn("coordinator", coordinator(world, plan))
        delays = {name: world.random.uniform(1, 50) for name in "abcde"}
        for name, learner in (honest("abcd") | hostile).items():
            world.spawn(name, attendance(world, plan, name, learner, seconds=lambda _, s=delays[name]: s))
        world.run()
        record = history(world.store, "r1")[-1]
        assert model(world.store, record) == model(store, steps)
        assert record == steps


class TestSignatures:
    """Ballots, scores and statistics are signed as updates are."""

    def test_of_ballots_are_required_of_enrolled_voters(
        self, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = {name: make_key() for name in "abc"}
        for name, key in keys.items():
            (tmp_path / f"{name}.key").write_text(key)
        monkeypatch.setenv("FEDPIPE_KEYS", str(tmp_path))
        found = {name: Enrolment(key=public_key(key), since=0.0) for name, key in keys.items()}
        change_enrolled(store, lambda current: replace(current, learners=found))
        federation = make_federation(algorithm={"name": "collective"}, training={"rounds": 1, "batch_size": 1})
        (tmp_path / "c.key").write_text(make_key())
        record = play_collective(store, make_plan(federation), {n: PlusOneLearner(1, wants=50) for n in "abc"})
        assert [b.learner for b in record.ballots] == ["a", "b"]
        assert [d.why for d in record.absent] == ["its ballot is signed with another key than the enrolled one"]

    @pytest.mark.parametrize(
        "statement",
        [
            Ballot(
                federation="tiny", run="r1", round=1, learner="a", base=digest_of(b"1"), candidate=digest_of(b"2"),
                approve=True, current=Scores(), proposed=Scores(vote=Measured(examples=1, metrics={"loss": 1.0})),
            ),
            Score(learner="a", weights="w", examples=3),
        ],
        ids=lambda s: type(s).__name__,
    )  # fmt: skip
    def test_cover_all_fields_and_the_place(self, statement: Any) -> None:
        key = make_key()
        enrolled = Enrolled(learners={"a": Enrolment(key=public_key(key), since=0.0)})
        good = signed(statement, key, place="tiny/r1")
        check_signed(good, enrolled, place="tiny/r1")
        with pytest.raises(DroppedError, match="is not signed, and it is enrolled"):
            check_signed(statement, enrolled, place="tiny/r1")
        with pytest.raises(DroppedError, match="does not fit"):
            check_signed(good, enrolled, place="tiny/r2")
        changed = {"examples": 4} if isinstance(statement, Score) else {"approve": False}
        with pytest.raises(DroppedError, match="does not fit"):
            check_signed(replace(good, **changed), enrolled, place="tiny/r1")


class _Huge(PlusOneLearner):
    """Offers the largest numbers that are finite."""

    def propose_weights(self, **more: Any) -> Any:
        found = super().propose_weights(**more)
        changed = {
            name: np.full_like(value, np.finfo(value.dtype).max) if value.dtype.kind == "f" else value
            for name, value in found.weights.items()
        }
        return found._replace(weights=changed)


def _start(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(f"{__name__}.fresh", lambda: {"w": np.arange(size, dtype=np.float32) % 5, "steps": np.int64(0)})


def _encoded(value: Any) -> bytes:
    from fedpipe.store.objects import encode

    return encode(value)


class _nothing:  # noqa: N801  (reads as a context)
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_a_whole_run_without_lies_is_untouched(store: MemoryStore) -> None:
    assert not any(record.dropped for record in history(store, play(store, make_plan()).run))
