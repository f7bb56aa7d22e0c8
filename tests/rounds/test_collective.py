"""Rounds of collective learning, by the functions that the steps call, with learners that need no framework."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedpipe import weights
from fedpipe.errors import ConflictError, QuorumError, RoundError
from fedpipe.learners.contribute import contribute
from fedpipe.learners.vote import vote
from fedpipe.rounds.ballots import find_ballot, known_scores, publish_ballot, start_scores
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.history import history, read_head
from fedpipe.rounds.manifests import Ballot, Dropped, Record, Update
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.received import MANIFEST
from fedpipe.rounds.updates import find_update, publish_update
from fedpipe.store import MemoryStore, Store, keys
from fedpipe.store.objects import encode, get_bytes, put_file
from tests.federations import PlusOneLearner, close_vote, fresh, make_federation, make_plan, play_collective, play_vote

COLLECTIVE = {"name": "collective"}
GOOD, BAD = 1.0, -1.0  # the number that a proposal adds to each weight, when all learners want more


def plan_of(names: tuple[str, ...] = ("a", "b", "c"), vote: dict[str, Any] | None = None, **more: Any) -> Plan:
    training = {"rounds": 3, "batch_size": 1, **more.pop("training", {})}
    algorithm = {**COLLECTIVE, "vote": vote or {}, **more.pop("algorithm", {})}
    return make_plan(make_federation(names, algorithm=algorithm, training=training, **more))


def wanting(**numbers: float) -> dict[str, PlusOneLearner]:
    return {name: PlusOneLearner(number, wants=1000.0) for name, number in numbers.items()}


def head(store: Store) -> bytes:
    return store.read("HEAD").data


def arrays(store: Store, digest: str) -> dict[str, Any]:
    return weights.loads(get_bytes(store, digest))


class TestARound:
    def test_an_accepted_proposal_becomes_everyones_model(self, store: MemoryStore) -> None:
        plan = plan_of()
        record = play_collective(store, plan, wanting(a=1, b=10, c=100))
        assert [r.proposer for r in history(store, "r1")] == ["", "a", "b", "c"]
        assert record.accepted
        np.testing.assert_allclose(arrays(store, record.weights)["w"], fresh()["w"] + 111)
        found = read_head(store)
        assert found is not None
        assert (found[0].round, found[0].weights) == (3, record.weights)
        assert record.outcome is not None
        assert (record.outcome.approvals, record.outcome.voters) == (2, 2)  # the proposer's own is void

    def test_a_rejected_round_changes_nothing(self, store: MemoryStore) -> None:
        plan = plan_of()
        learners = wanting(a=GOOD, b=BAD, c=GOOD)
        start = begin(store, plan, fresh)
        first = play_vote(store, plan, 1, start.weights, learners)
        before = {key: store.read(key).data for key in store.keys() if not key.startswith(("learners", "runs"))}
        second = play_vote(store, plan, 2, first.weights, learners)
        assert not second.accepted
        assert second.weights == first.weights
        assert second.candidate not in (None, first.weights)
        after = {key: store.read(key).data for key in store.keys() if not key.startswith(("learners", "runs"))}
        assert after == before  # HEAD and the shared objects, byte by byte
        third = play_vote(store, plan, 3, second.weights, learners)
        assert third.accepted
        assert third.previous == first.ref
        assert [r.accepted for r in history(store, "r1")] == [True, True, False, True]
        np.testing.assert_allclose(arrays(store, third.weights)["w"], fresh()["w"] + 2)

    def test_the_optimizer_of_a_rejected_proposal_is_forgotten(self, store: MemoryStore) -> None:
        """Each training counts in its optimizer state how often it was kept."""
        plan = plan_of(("a", "b"), {"rule": "all_vote", "threshold": 1.0}, training={"rounds": 5, "optimizer": "keep"})
        learners = wanting(a=GOOD, b=GOOD)
        start = begin(store, plan, fresh)

        def state_of(number: int) -> float:
            update = find_update(store, "a", "r1", number)
            assert update is not None
            assert update.optimizer is not None
            return float(weights.loads(get_bytes(store, update.optimizer, "a"))["seen"])

        base = play_vote(store, plan, 1, start.weights, learners).weights
        kept = store.read(keys.content(find_update(store, "a", "r1", 1).optimizer, "a")).data  # type: ignore[union-attr,arg-type]
        base = play_vote(store, plan, 2, base, learners).weights
        learners["a"] = PlusOneLearner(BAD, wants=1000.0)
        base = play_vote(store, plan, 3, base, learners).weights
        base = play_vote(store, plan, 4, base, learners).weights
        learners["a"] = PlusOneLearner(GOOD, wants=1000.0)
        play_vote(store, plan, 5, base, learners)
        assert [state_of(n) for n in (1, 3, 5)] == [1.0, 2.0, 2.0]  # round 5 continues from round 1, not from 3
        assert store.read(keys.content(find_update(store, "a", "r1", 1).optimizer, "a")).data == kept  # type: ignore[union-attr,arg-type]

    def test_all_begin_equal_and_round_0_keeps_what_they_measure(self, store: MemoryStore) -> None:
        plan = plan_of()
        learners = {name: PlusOneLearner(1, wants=wants) for name, wants in (("a", 10.0), ("b", 11.0), ("c", 12.0))}
        start = begin(store, plan, fresh)
        for name, learner in learners.items():
            ballot = vote(store, plan, name, 0, start.weights, start.weights, "", lambda k=learner: k)
            assert isinstance(ballot, Ballot)
            assert ballot.base == ballot.candidate == start.weights
            assert not ballot.approve
        found = {name: scores.vote.metrics["loss"] for name, scores in start_scores(store, plan).items() if scores.vote}
        assert found == {"a": 0.0, "b": 1.0, "c": 2.0}  # the sum of w is 10

    def test_nothing_is_measured_twice(self, store: MemoryStore) -> None:
        """One score of the start, then one of each proposal, whatever becomes of it."""
        learners = wanting(a=GOOD, b=BAD, c=GOOD)
        play_collective(store, plan_of(), learners)
        assert [learner.tested for learner in learners.values()] == [4, 4, 4]
        assert [learner.trained for learner in learners.values()] == [1, 1, 1]

    def test_proposing_does_not_change_the_proposer(self) -> None:
        learner = PlusOneLearner(5.0)
        learner.accept_weights(fresh())
        before = weights.digest_of(learner.current_model())  # type: ignore[arg-type]
        learner.propose_weights(seed=1, seconds=1, optimizer=None)
        learner.test_weights({k: v + 1 for k, v in fresh().items()})
        assert weights.digest_of(learner.current_model()) == before  # type: ignore[arg-type]

    def test_a_learner_that_was_absent_measures_the_base_anew(self, store: MemoryStore) -> None:
        plan, learners = plan_of(), wanting(a=GOOD, b=GOOD, c=GOOD)
        start = begin(store, plan, fresh)
        learners["c"] = PlusOneLearner(GOOD, absent="asleep")
        first = play_vote(store, plan, 1, start.weights, learners)
        assert [a.learner for a in first.absent] == ["c"]
        assert first.absent[0].why == "asleep"
        learners["c"] = PlusOneLearner(GOOD, wants=1000.0)
        assert known_scores(store, "a", "r1", 2, first.weights) is not None
        assert known_scores(store, "c", "r1", 2, first.weights) is None
        second = play_vote(store, plan, 2, first.weights, learners)
        assert learners["c"].tested == 2
        assert not second.absent


class TestNoProposal:
    def test_a_dropped_proposer_has_had_its_turn(self, store: MemoryStore) -> None:
        learners = wanting(a=GOOD, b=GOOD, c=GOOD)
        learners["b"] = PlusOneLearner(GOOD, fails="no power", wants=1000.0)
        play_collective(store, plan_of(training={"rounds": 4}), learners)
        records = history(store, "r1")
        assert [(r.proposer, r.accepted) for r in records[1:]] == [("a", True), ("b", False), ("c", True), ("a", True)]
        assert records[2].dropped == (Dropped(learner="b", why="no power"),)
        assert records[2].outcome is None
        assert records[2].candidate is None
        assert records[2].weights == records[1].weights

    def test_proposers_can_be_chosen_in_their_order(self, store: MemoryStore) -> None:
        plan = plan_of(algorithm={"proposers": ["c", "a"]})
        play_collective(store, plan, wanting(a=1, b=1, c=1))
        assert [r.proposer for r in history(store, "r1")] == ["", "c", "a", "c"]

    def test_a_vote_step_without_a_candidate_has_nothing_to_do(self) -> None:
        from fedpipe.rounds.plan import RunPlace
        from fedpipe.steps.vote import Inputs, find

        found = find(
            Inputs(place=RunPlace(store="memory://x", federation="f", run="r"), learner="a", round=1, base="b")
        )
        assert found is not None
        assert found.ballot == "none"


class TestHostileProposals:
    def propose(self, store: Store, plan: Plan, made: dict[str, Any], tmp_path: Any, **change: Any) -> Record:
        """Round 1 with weights of the proposer's own making; everybody says yes to anything."""
        start = begin(store, plan, fresh)
        digest = weights.save(made, tmp_path / "w")
        put_file(store, tmp_path / "w", digest, "a", "proposals")
        content: dict[str, Any] = {
            "federation": "tiny", "run": "r1", "round": 1, "learner": "a", "base": start.weights, "weights": digest,
            "size": (tmp_path / "w").stat().st_size, "examples": 1, "metrics": {},
        }  # fmt: skip
        publish_update(store, Update(**{**content, **change}))
        for name in ("a", "b", "c"):
            scores = [PlusOneLearner(0, wants=w)._score(fresh()) for w in (20.0, 11.0)]
            publish_ballot(store, Ballot(
                federation="tiny", run="r1", round=1, learner=name, base=start.weights, candidate=digest, approve=True,
                current=scores[0], proposed=scores[1],
            ))  # fmt: skip
        return close_vote(store, plan, 1, start.weights)

    @pytest.mark.parametrize(
        ("made", "why"),
        [
            ({**fresh(), "w": np.full(5, np.nan, np.float32)}, "holds NaN or infinity"),
            ({**fresh(), "w": np.arange(6, dtype=np.float32)}, "bytes where the model has"),
            ({**fresh(), "w": np.arange(5, dtype=np.int32)}, "does not fit the model: tensor 'w' is I32"),
        ],
        ids=["not finite", "larger", "of another dtype"],
    )
    def test_what_cannot_be_the_model_is_never_taken(
        self, store: MemoryStore, tmp_path: Any, made: dict[str, Any], why: str
    ) -> None:
        record = self.propose(store, plan_of(), made, tmp_path)
        assert not record.accepted
        assert why in record.dropped[0].why
        assert record.outcome is not None
        assert record.outcome.accepted  # the voters were not the ones to notice
        assert read_head(store) is None
        assert store.size(keys.content(str(record.candidate))) is None

    @pytest.mark.parametrize("change", [{"base": "sha256:" + "7" * 64}, {"run": "r2"}, {"round": 9}])
    def test_a_manifest_of_another_round(self, store: MemoryStore, tmp_path: Any, change: dict[str, Any]) -> None:
        plan = plan_of()
        start = begin(store, plan, fresh)
        content: dict[str, Any] = {
            "federation": "tiny", "run": "r1", "round": 1, "learner": "a", "base": start.weights,
            "weights": start.weights, "size": 1, "examples": 1, "metrics": {},
        }  # fmt: skip
        store.create(keys.answer("a", "r1", 1, "update"), encode(Update(**{**content, **change})))
        record = close_vote(store, plan, 1, start.weights)
        assert not record.accepted
        assert f"the update's {next(iter(change))} is" in record.dropped[0].why

    @pytest.mark.parametrize(
        ("data", "why"),
        [(b"?", "is not a valid update"), (b" " * (MANIFEST + 1), f"the object has {MANIFEST + 1} bytes")],
        ids=["malformed", "too large"],
    )
    def test_a_manifest_that_cannot_be_read(self, store: MemoryStore, data: bytes, why: str) -> None:
        plan = plan_of()
        start = begin(store, plan, fresh)
        store.create(keys.answer("a", "r1", 1, "update"), data)
        record = close_vote(store, plan, 1, start.weights)
        assert not record.accepted
        assert record.dropped[0].why.startswith(why)

    def test_a_voter_refuses_to_look_at_it(self, store: MemoryStore, tmp_path: Any) -> None:
        plan = plan_of()
        start = begin(store, plan, fresh)
        for number, made in enumerate(({**fresh(), "w": np.full(5, np.inf, np.float32)}, {"other": np.zeros(9)})):
            digest = weights.save(made, tmp_path / "w")
            put_file(store, tmp_path / "w", digest, "a", "proposals")
            found = vote(store, plan, "b", 1 + number, start.weights, digest, "a", lambda: PlusOneLearner(0))
            assert isinstance(found, Ballot)
            assert not found.approve
            assert ("NaN or infinity", "does not fit the model")[number] in found.why

    def test_one_bad_proposal_is_voted_down_and_the_run_goes_on(self, store: MemoryStore, tmp_path: Any) -> None:
        """If its voters were absent, every vote on it would be below the quorum, for ever."""
        plan, learners = plan_of(), wanting(a=GOOD, b=GOOD, c=GOOD)
        start = begin(store, plan, fresh)
        offered = contribute(store, plan, "a", 1, start.weights, lambda: learners["a"])
        assert isinstance(offered, Update)
        store.replace(keys.content(offered.weights, "a", "proposals"), b"spoiled")
        for name, learner in learners.items():
            vote(store, plan, name, 1, start.weights, offered.weights, "a", lambda k=learner: k)
        record = close_vote(store, plan, 1, start.weights)
        assert not record.accepted
        assert [ballot.approve for ballot in record.ballots] == [False] * 3
        assert all("does not fit the model" in ballot.why for ballot in record.ballots)

    def test_ballots_from_outside_are_checked(self, store: MemoryStore) -> None:
        plan, learners = plan_of(), wanting(a=GOOD, b=GOOD, c=GOOD)
        start = begin(store, plan, fresh)
        offered = contribute(store, plan, "a", 1, start.weights, lambda: learners["a"])
        assert isinstance(offered, Update)
        for name in ("a", "b"):
            vote(store, plan, name, 1, start.weights, offered.weights, "a", lambda k=name: learners[k])
        honest = find_ballot(store, "b", "r1", 1)
        assert honest is not None
        store.create(keys.answer("c", "r1", 1, "ballot"), encode(honest))  # somebody else's
        record = close_vote(store, plan, 1, start.weights)
        assert [(a.learner, a.why) for a in record.absent] == [("c", "the ballot's learner is b, the round's is c")]


class TestQuorumAndResumption:
    def test_too_few_voters_end_the_run_at_the_last_good_round(self, store: MemoryStore) -> None:
        plan = plan_of(quorum={"min_learners": 2})
        learners = {name: PlusOneLearner(1, wants=1000.0, absent="" if name == "a" else "ill") for name in "abc"}
        start = begin(store, plan, fresh)
        with pytest.raises(QuorumError, match=r"1 of 3 learners took part, the quorum is 2 \(b, c: ill\)"):
            play_vote(store, plan, 1, start.weights, learners)
        assert read_head(store) is None
        assert store.size(keys.record("r1", 1)) is None
        play_vote(store, plan, 1, start.weights, wanting(a=GOOD, b=GOOD, c=GOOD))  # they are well again
        found = read_head(store)
        assert found is not None
        assert found[0].round == 1

    def test_a_crash_between_vote_and_tally_repeats_no_training(self, store: MemoryStore) -> None:
        plan, learners = plan_of(), wanting(a=GOOD, b=GOOD, c=GOOD)
        start = begin(store, plan, fresh)
        offered = contribute(store, plan, "a", 1, start.weights, lambda: learners["a"])
        assert isinstance(offered, Update)
        for name, learner in learners.items():
            vote(store, plan, name, 1, start.weights, offered.weights, "a", lambda k=learner: k)
        again = wanting(a=77, b=77, c=77)  # the repetition begins here
        record = play_vote(store, plan, 1, start.weights, again)
        assert [(k.trained, k.tested) for k in again.values()] == [(0, 0)] * 3
        assert record.weights == offered.weights

    def test_who_missed_a_committed_round_does_not_make_up_for_it(self, store: MemoryStore) -> None:
        """A repeated run trains nobody for a round that is over, and asks nobody for a ballot that is not counted."""
        learners = wanting(a=GOOD, b=GOOD)
        plan = plan_of()
        first = {
            **learners,
            "b": PlusOneLearner(1, fails="no power", wants=1000.0),
            "c": PlusOneLearner(1, absent="ill"),
        }
        record = play_collective(store, plan, first)
        before = {key: store.read(key).data for key in store.keys()}
        again = wanting(a=GOOD, b=GOOD, c=GOOD)
        assert play_collective(store, plan, again) == record
        assert [k.trained for k in again.values()] == [0, 0, 0]
        after = {key: store.read(key).data for key in store.keys() if not key.endswith("0/ballot")}
        assert after == {key: data for key, data in before.items() if not key.endswith("0/ballot")}

    def test_a_round_needs_the_one_before(self, store: MemoryStore) -> None:
        plan = plan_of()
        start = begin(store, plan, fresh)
        with pytest.raises(RoundError, match="round 2 cannot begin"):
            close_vote(store, plan, 2, start.weights)

    def test_the_next_run_goes_on_from_the_last_accepted_round(self, store: MemoryStore) -> None:
        play_collective(store, plan_of(("a", "b")), wanting(a=GOOD, b=BAD))  # rounds 1 and 3 are accepted
        store_head = read_head(store)
        assert store_head is not None
        assert store_head[0].round == 3
        second = make_plan(plan_of(("a", "b"), training={"rounds": 2}).federation, run="r2")
        play_collective(store, second, wanting(a=BAD, b=BAD))
        records = history(store, "r2")
        assert [r.accepted for r in records] == [True, False, False]
        assert {r.weights for r in records} == {store_head[0].weights}
        assert read_head(store) == store_head

    def test_a_rejected_round_of_a_lost_line_is_a_conflict(self, store: MemoryStore) -> None:
        plan, learners = plan_of(), wanting(a=BAD, b=BAD, c=BAD)
        start = begin(store, plan, fresh)
        begin(store, make_plan(plan.federation, run="r2"), fresh)
        other = play_vote(
            store, make_plan(plan.federation, run="r2"), 1, start.weights, wanting(a=GOOD, b=GOOD, c=GOOD)
        )
        assert other.accepted
        record = play_vote(store, plan, 1, start.weights, learners)  # r1 fell behind, and moves nothing
        assert not record.accepted
        with pytest.raises(ConflictError, match="does not follow from round 2"):
            play_vote(store, plan, 2, start.weights, wanting(a=GOOD, b=GOOD, c=GOOD))


MOMENTUM = {"momentum": 0.9, "learning_rate": 0.5}
AVERAGING = {"name": "averaging", "server_optimizer": MOMENTUM, "vote": {"threshold": 1.0}}


class TestAveragedModelsPutToTheVote:
    def round(self, store: Store, plan: Plan, number: int, base: str, learners: dict[str, Any]) -> Record:
        from fedpipe.rounds.closing import close_round

        for name, learner in learners.items():
            contribute(store, plan, name, number, base, lambda k=learner: k)
        candidate = close_round(store, plan, number, base)
        assert close_round(store, plan, number, base) == candidate  # a repeated step finds it
        for name, learner in learners.items():
            vote(store, plan, name, number, base, candidate.weights, "", lambda k=learner: k)
        return close_vote(store, plan, number, base)

    def test_a_rejected_aggregate_keeps_model_head_and_server_state(self, store: MemoryStore) -> None:
        plan = make_plan(make_federation(algorithm=AVERAGING))
        start = begin(store, plan, fresh)
        first = self.round(store, plan, 1, start.weights, wanting(a=GOOD, b=GOOD, c=GOOD))
        assert first.accepted
        before = head(store)
        second = self.round(store, plan, 2, first.weights, wanting(a=BAD * 9, b=BAD, c=BAD))
        assert not second.accepted
        assert (second.weights, second.state) == (first.weights, first.state)
        assert head(store) == before
        assert len(second.updates) == 3
        third = self.round(store, plan, 3, second.weights, wanting(a=GOOD, b=GOOD, c=GOOD))
        assert third.accepted
        # As if round 2 had never been: v = 0.9 v + d with d = 1, then w + v / 2.
        expected = fresh()["w"] + 0.5 * 1 + 0.5 * (0.9 * 1 + 1)
        np.testing.assert_allclose(arrays(store, third.weights)["w"], expected, rtol=1e-6)

    def test_an_outvoted_learner_does_not_stop_it(self, store: MemoryStore) -> None:
        algorithm = {**AVERAGING, "vote": {"threshold": 0.6}}
        plan = make_plan(make_federation(algorithm=algorithm))
        start = begin(store, plan, fresh)
        learners = wanting(a=GOOD, b=GOOD, c=GOOD)
        learners["c"] = PlusOneLearner(GOOD, wants=-1000.0)
        record = self.round(store, plan, 1, start.weights, learners)
        assert record.accepted
        assert record.outcome is not None
        assert (record.outcome.approvals, record.outcome.voters) == (2, 3)

    def test_nothing_aggregated_nothing_to_vote_on(self, store: MemoryStore) -> None:
        plan = make_plan(make_federation(algorithm=AVERAGING))
        start = begin(store, plan, fresh)
        with pytest.raises(RoundError, match="its updates are not aggregated"):
            close_vote(store, plan, 1, start.weights)
