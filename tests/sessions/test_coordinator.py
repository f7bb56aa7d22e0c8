"""Sessions under a simulated clock: quorum, stragglers, those who come back, ends, and two at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fedpipe import weights
from fedpipe.errors import ConflictError, QuorumError, RoundError, StoreUnavailableError
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.evaluation import own_score
from fedpipe.rounds.history import history, read_head, read_record
from fedpipe.rounds.manifests import Head, Record
from fedpipe.rounds.plan import Plan, RunPlace
from fedpipe.rounds.timings import find_timing
from fedpipe.rounds.updates import find_update
from fedpipe.sessions.board import Board, Sign, ask_to_stop, poll_board, put_sign
from fedpipe.sessions.coordinator import Moment
from fedpipe.sessions.scripts import scoring
from fedpipe.steps import coordinate
from fedpipe.store import MemoryStore, Store, keys
from fedpipe.store.objects import encode, get_bytes
from tests.faults.stores import HookedStore
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan, play, play_collective
from tests.simulation import Killed, World, attendance, coordinator

NAMES = ("a", "b", "c")
FOREVER = 1e7


def plan_of(rounds: int = 3, names: tuple[str, ...] = NAMES, **more: Any) -> Plan:
    training = {"rounds": rounds, "batch_size": 1, **more.pop("training", {})}
    return make_plan(
        make_federation(names, training=training, quorum={"deadline": 60, **more.pop("quorum", {})}, **more)
    )


def learners_of(plan: Plan) -> dict[str, PlusOneLearner]:
    return {item.name: PlusOneLearner(k + 1, k + 1) for k, item in enumerate(plan.federation.learners)}


class Session:
    """A session whose learners start `after` so long, and take `seconds` for what the board asks."""

    def __init__(self, plan: Plan, seed: int = 0) -> None:
        self.plan, self.world, self.moments = plan, World(seed), list[Moment]()
        self.learners = learners_of(plan)
        self.session = "s"
        begin(self.world.store, plan, fresh)

    def run(
        self,
        after: dict[str, float] | None = None,
        seconds: dict[str, Any] | None = None,
        *,
        absent: str = "",
        last: int = 0,
        tests: bool = False,
    ) -> Any:
        listener = self.moments.append
        self.world.spawn(
            "coordinator",
            coordinator(self.world, self.plan, session=self.session, last=last, listener=listener, tests=tests),
        )
        for name, learner in self.learners.items():
            if name not in absent:
                taken = (seconds or {}).get(name, 1.0)
                actor = attendance(
                    self.world, self.plan, name, learner, session=self.session, last=last,
                    seconds=taken if callable(taken) else lambda _, taken=taken: taken,
                )  # fmt: skip
                self.world.spawn(name, actor, after=(after or {}).get(name, 0.0))
        self.world.run()
        return self.world.results["coordinator"]

    @property
    def records(self) -> list[Record]:
        return history(self.world.store, self.plan.run)

    @property
    def ending(self) -> str:
        found = poll_board(self.world.store, self.plan.run)
        assert found
        return found[0].ending

    def dropped(self, number: int) -> dict[str, str]:
        return {item.learner: item.why for item in self.records[number].dropped}


class TestAnUndisturbedSession:
    def test_gives_the_very_records_of_single_steps(self) -> None:
        plan = plan_of(5)
        session, store = Session(plan), MemoryStore()
        last = session.run()
        assert last == play(store, plan)
        assert session.records == history(store, plan.run)
        assert [learner.trained for learner in session.learners.values()] == [5, 5, 5]
        assert session.ending == "done"
        assert session.world.results["a"] == {"train": 5}

    def test_votes_too(self) -> None:
        plan = plan_of(6, algorithm={"name": "collective"})
        session = Session(plan)
        session.learners = {n: PlusOneLearner(k, wants=30.0) for n, k in zip(NAMES, (1.0, -1.0, 2.0), strict=True)}
        store = MemoryStore()
        again = {n: PlusOneLearner(k, wants=30.0) for n, k in zip(NAMES, (1.0, -1.0, 2.0), strict=True)}
        assert session.run() == play_collective(store, plan, again)
        assert session.records == history(store, plan.run)
        assert [record.accepted for record in session.records[1:]] == [True, False, True, True, False, False]
        assert [learner.tested for learner in session.learners.values()] == [7, 7, 7], "each model is scored once"

    def test_votes_on_averages(self) -> None:
        plan = plan_of(2, algorithm={"name": "averaging", "vote": {}})
        session = Session(plan)
        session.learners = {name: PlusOneLearner(1.0, wants=30.0) for name in NAMES}
        session.run()
        assert [record.accepted for record in session.records] == [True, True, True]
        assert all(len(record.ballots) == 3 for record in session.records[1:])

    def test_several_sessions_one_after_the_other(self) -> None:
        plan = plan_of(5)
        session, store = Session(plan), MemoryStore()
        for first, last in ((1, 2), (3, 4), (5, 0)):
            session.session = f"job-{first}"
            session.run(last=last)
        assert play(store, plan) == session.records[-1]
        assert [record.round for record in session.records] == [0, 1, 2, 3, 4, 5]

    def test_says_who_has_answered_and_who_is_awaited(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", logger="fedpipe")
        Session(plan_of(1)).run(seconds={"a": 1.0, "b": 5.0, "c": 20.0})
        said = [record.getMessage() for record in caplog.records if " of " in record.getMessage()]
        assert [text.partition(" after ")[0] for text in said] == [f"round 1 train: {name}" for name in NAMES]
        assert [text.partition(" s, ")[2] for text in said] == ["1 of 3; awaiting b, c", "2 of 3; awaiting c", "3 of 3"]

    def test_names_five_of_those_that_are_awaited(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", logger="fedpipe")
        names = tuple("abcdefg")
        Session(plan_of(1, names)).run(seconds={name: 5.0 * k for k, name in enumerate(names)})
        rest = [record.getMessage().partition("; ")[2] for record in caplog.records if " of " in record.getMessage()]
        assert rest[:2] == ["awaiting b, c, d, e, f and more", "awaiting c, d, e, f, g"]

    def test_the_moments_of_the_listener(self) -> None:
        session = Session(plan_of(1))
        session.run()
        assert [m.what for m in session.moments] == ["opened", "answered", "answered", "answered", "closed", "ended"]
        assert all(m.last == 1 for m in session.moments)


class TestStragglers:
    def test_who_is_late_is_dropped_with_the_reason_and_the_round_goes_on(self) -> None:
        session = Session(plan_of(2))
        session.run(seconds={"c": lambda board: 200.0 if board.round == 1 else 1.0})
        assert session.dropped(1) == {"c": "late: no update within 60 s"}
        assert [u.learner for u in session.records[1].updates] == ["a", "b"]

    def test_its_late_update_counts_nowhere(self) -> None:
        session = Session(plan_of(4))
        session.run(seconds={"c": lambda board: 100.0 if board.round == 1 else 30.0})
        late = session.world.store.read(keys.update("c", "r1", 1)) if session.learners["c"].trained else None
        assert late is None or "c" not in [u.learner for u in session.records[1].updates]
        step = (1 * 1 + 2 * 2) / 3
        values = weights.loads(get_bytes(session.world.store, session.records[1].weights))
        np.testing.assert_allclose(values["w"], np.arange(5) + step)

    def test_it_comes_back_when_it_is_done(self) -> None:
        session = Session(plan_of(5))
        session.run(seconds={"c": lambda board: 65.0 if board.round == 1 else 1.0, "a": 10.0, "b": 10.0})
        assert session.dropped(1) == {"c": "late: no update within 60 s"}
        took_part = [record.round for record in session.records if "c" in [u.learner for u in record.updates]]
        assert took_part[-3:] == [3, 4, 5]

    def test_those_who_are_away_are_not_waited_for_again(self) -> None:
        """A learner that never starts costs one deadline, not one a round."""
        session = Session(plan_of(10))
        session.run(absent="c")
        assert session.world.now < 60 + 10 * 5
        assert session.dropped(1) == {"c": "late: no update within 60 s"}
        assert session.dropped(10) == {"c": "away since round 1"}

    def test_one_that_has_left_is_not_waited_for(self) -> None:
        """Its process died at each try, before it could answer anything."""
        session = Session(plan_of(10))
        put_sign(session.world.store, "c", "r1", Sign(round=0, session="s", leaves=True))
        session.run(absent="c")
        assert session.world.now < 10 * 5
        assert session.dropped(10) == {"c": "away since round 1"}

    def test_a_sign_has_no_field_that_an_earlier_version_refuses(self) -> None:
        """Sites and coordinator may be upgraded on different days."""
        assert encode(Sign(round=1, attempt=2, phase="train")) == b'{"attempt":2,"phase":"train","round":1}'

    def test_one_that_left_returns_when_its_pod_is_started_again(self) -> None:
        session = Session(plan_of(10))
        put_sign(session.world.store, "c", "r1", Sign(round=0, session="s", leaves=True))
        session.run(after={"c": 8.0}, seconds=dict.fromkeys(NAMES, 2.0))
        assert "c" in session.dropped(1)
        assert "c" in [update.learner for update in session.records[10].updates]

    def test_one_that_left_another_session_is_waited_for(self) -> None:
        session = Session(plan_of(2))
        put_sign(session.world.store, "c", "r1", Sign(round=0, session="earlier", leaves=True))
        session.run(after={"c": 20.0})
        assert not any(record.dropped for record in session.records)

    def test_one_that_comes_back_while_the_coordinator_is_down_joins_the_next_round(self) -> None:
        """Its sign has changed, but the board that the new coordinator finds says it is away."""
        session = Session(plan_of(6))
        world, plan = session.world, session.plan

        def first() -> Any:
            actor = coordinator(world, plan)
            while True:
                if (found := poll_board(world.store, "r1")) and found[0].round == 3:
                    raise Killed
                yield next(actor)

        def again() -> Any:
            yield 30.0
            return (yield from coordinator(world, plan))

        world.spawn("coordinator", first(), again=again)
        for name, learner in session.learners.items():
            seconds = (lambda _: 20.0) if name != "c" else (lambda board: 85.0 if board.round == 1 else 20.0)
            world.spawn(name, attendance(world, plan, name, learner, seconds=seconds))
        world.run()
        assert world.kills == 1
        assert world.results["coordinator"] == session.records[-1]
        assert "c" not in [u.learner for u in session.records[2].updates]
        assert "c" in [u.learner for u in session.records[6].updates]

    def test_a_learner_that_joins_late_takes_part_from_then_on(self) -> None:
        session = Session(plan_of(10))
        session.run(after={"c": 75.0}, seconds=dict.fromkeys(NAMES, 5.0))
        first = next(r.round for r in session.records if "c" in [u.learner for u in r.updates])
        assert 2 < first <= 6
        assert all("c" in [u.learner for u in r.updates] for r in session.records[first:])

    def test_over_selection_ends_with_the_first_that_answer(self) -> None:
        plan = plan_of(3, tuple("abcdef"), quorum={"learners_per_round": 3, "over_selection": 2.0, "min_learners": 2})
        session = Session(plan)
        session.run(seconds={"e": 50.0, "f": 50.0})
        assert session.world.now < 60
        for record in session.records[1:]:
            assert {"e", "f"} & {item.learner for item in record.dropped} == {"e", "f"}
            assert len(record.updates) >= 3
        assert session.dropped(1)["f"] == "not needed: 4 others had answered"

    def test_sampled_learners_alone_train(self) -> None:
        plan = plan_of(20, tuple("abcdef"), quorum={"learners_per_round": 2})
        session = Session(plan)
        session.run()
        assert {len(record.updates) for record in session.records[1:]} == {2}
        assert len({tuple(u.learner for u in record.updates) for record in session.records[1:]}) > 5
        assert not any(record.dropped for record in session.records)

    def test_a_proposer_that_is_late_has_had_its_turn(self) -> None:
        session = Session(plan_of(3, algorithm={"name": "collective"}))
        session.learners = {name: PlusOneLearner(1.0, wants=30.0) for name in NAMES}
        session.run(seconds={"a": lambda board: 100.0 if board.phase == "propose" else 1.0})
        assert [record.accepted for record in session.records[1:]] == [False, True, True]
        assert session.dropped(1) == {"a": "late: no update within 60 s"}

    def test_a_voter_that_is_late_is_absent(self) -> None:
        session = Session(plan_of(1, algorithm={"name": "collective"}))
        session.learners = {name: PlusOneLearner(1.0, wants=30.0) for name in NAMES}
        session.run(seconds={"c": lambda board: 100.0 if board.round else 1.0})
        assert {item.learner: item.why for item in session.records[1].absent} == {"c": "late: no ballot within 60 s"}


class TestUpdatesAreAddedAsTheyArrive:
    @pytest.mark.parametrize("seed", range(5))
    def test_the_records_are_the_same(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fedpipe.aggregation.tree.WORTH_ADDING", 0)
        plan, store = plan_of(4, tuple("abcdefg")), MemoryStore()
        session = Session(plan, seed)
        session.run(seconds={name: lambda _: session.world.random.uniform(1, 50) for name in "abcdefg"})
        assert session.records[-1] == play(store, plan)

    def test_without_space_to_keep_them_the_closing_streams_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fedpipe.aggregation.tree.WORTH_ADDING", 0)

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("fedpipe.aggregation.tree.Forest.add", full)
        plan, store = plan_of(2), MemoryStore()
        session = Session(plan)
        session.run(seconds={"a": 1.0, "b": 20.0, "c": 40.0})
        assert session.records[-1] == play(store, plan)

    def test_one_that_is_corrupt_is_refused_with_the_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fedpipe.aggregation.tree.WORTH_ADDING", 0)
        session = Session(plan_of(1))

        def spoil() -> Any:
            yield 5.0
            store, digest = session.world.store, find_update(session.world.store, "a", "r1", 1)
            assert digest
            key = keys.content(digest.weights, "a")
            data = bytearray(store.read(key).data)
            data[-1] ^= 1
            store.replace(key, bytes(data))

        session.world.spawn("spoil", spoil())
        session.run(seconds={"a": 4.9, "b": 30.0, "c": 40.0})
        assert session.dropped(1) == {"a": "the weights do not match their digest"}
        assert [u.learner for u in session.records[1].updates] == ["b", "c"]


def unreachable() -> HookedStore:
    """A store that takes a learner's sign, and then answers no more."""

    def before(_number: int, name: str, _key: str) -> None:
        if name == "poll":
            raise StoreUnavailableError("the store does not answer")

    return HookedStore(MemoryStore(), before)


class TestALearnerAlone:
    @pytest.mark.parametrize(
        ("store", "error", "message"),
        [
            (MemoryStore, RoundError, "the coordinator has been silent for 90[01] s"),
            (unreachable, StoreUnavailableError, "the store does not answer"),
        ],
        ids=["a silent coordinator", "an unreachable store"],
    )
    def test_gives_up_after_a_quarter_of_an_hour(
        self, store: Callable[[], Store], error: type[Exception], message: str
    ) -> None:
        world, plan = World(0), plan_of(1)
        world.spawn("a", attendance(world, plan, "a", PlusOneLearner(1), store=store()), after=100)
        world.run()
        assert isinstance(world.results["a"], error)
        assert re.search(message, str(world.results["a"]))
        assert 1000 < world.now < 1002


class TestQuorum:
    def test_too_few_at_every_try_ends_the_run_at_the_last_good_round(self) -> None:
        session = Session(plan_of(5, quorum={"retries": 2}))
        gone = lambda board: FOREVER if board.round == 3 else 1.0  # noqa: E731
        error = session.run(seconds={"b": gone, "c": gone})
        assert isinstance(error, QuorumError)
        assert "round 3: 1 of 3 learners took part, the quorum is 2" in str(error)
        assert session.ending == "below_quorum"
        head = read_head(session.world.store)
        assert head is not None
        assert head[0].round == 2
        opened = [m.board.attempt for m in session.moments if m.what == "opened" and m.board.round == 3]
        assert opened == [1, 2, 3]

    def test_a_retry_counts_what_arrived_in_the_meantime(self) -> None:
        session = Session(plan_of(1))
        session.run(seconds={"b": 70.0, "c": FOREVER})
        assert [u.learner for u in session.records[1].updates] == ["a", "b"]
        assert session.learners["a"].trained == 1, "a retry repeats no training"

    def test_the_next_run_of_the_pipeline_goes_on_from_there(self) -> None:
        session = Session(plan_of(4))
        session.run(seconds=dict.fromkeys("bc", lambda board: FOREVER if board.round == 3 else 1.0))
        session.session = "another job"
        session.learners = learners_of(session.plan)
        session.run()
        assert session.ending == "done"
        assert [record.round for record in session.records] == [0, 1, 2, 3, 4]
        assert session.learners["b"].trained == 2

    def test_a_step_that_is_tried_again_does_not_wait_for_learners_that_left(self) -> None:
        session = Session(plan_of(2))
        session.run(seconds=dict.fromkeys("bc", FOREVER))
        now = session.world.now
        assert isinstance(session.run(absent="abc"), QuorumError)
        assert session.world.now == now

    def test_a_session_that_has_ended_is_found_so(self) -> None:
        session = Session(plan_of(2))
        assert session.run() == session.run(absent="abc")

    def test_a_learner_whose_disk_is_full_is_dropped_from_the_round_and_stays(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session, save = Session(plan_of(2)), weights.save

        def full(arrays: Any, path: Any) -> str:
            if session.learners["c"].trained == 1:
                session.learners["c"].trained += 1
                raise OSError(28, "No space left on device")
            return save(arrays, path)

        monkeypatch.setattr("fedpipe.weights.save", full)
        session.run(seconds={"a": 5.0, "b": 5.0, "c": 1.0})
        assert session.dropped(1) == {"c": "the learner's disk cannot be used: No space left on device"}
        assert session.dropped(2) == {}

    def test_learners_that_drop_out_leave_their_reason(self) -> None:
        session = Session(plan_of(1))
        session.learners["c"] = PlusOneLearner(1, fails="no power")
        session.run()
        assert session.dropped(1) == {"c": "no power"}
        assert session.world.now < 10


class TestEndings:
    def test_stop_ends_after_the_current_round(self) -> None:
        session = Session(plan_of(50))

        def act() -> Any:
            yield 10.0
            ask_to_stop(session.world.store, "r1")

        session.world.spawn("stop", act())
        last = session.run()
        assert session.ending == "stopped"
        assert 3 < last.round < 12
        assert session.world.results["a"]["train"] == last.round

    def test_early_stopping(self) -> None:
        """The tests of the shared model get worse from the start: round 1 shows the start, 2 and 3 are worse."""
        session = Session(plan_of(50, training={"early_stopping": {"patience": 2}}))
        last = session.run()
        assert session.ending == "early_stopping"
        assert last.round == 3

    def test_early_stopping_is_the_same_after_a_restart(self) -> None:
        plan = plan_of(50, training={"early_stopping": {"patience": 2}})
        session = Session(plan)
        for job in ("one", "two", "three"):
            session.session = job
            session.run(last=int(job == "one") + 2 * int(job == "two"))
        assert session.records[-1].round == 3

    def test_seconds(self) -> None:
        session = Session(plan_of(50, training={"max_seconds": 10.0}))
        session.run()
        assert session.ending == "max_seconds"
        assert 10 < session.world.now < 14


class TestTwoAtOnce:
    @pytest.mark.parametrize("seed", range(20))
    def test_coordinators_of_one_session_do_no_harm(self, seed: int) -> None:
        plan, store = plan_of(5), MemoryStore()
        session = Session(plan, seed)
        for name in ("second", "third"):
            session.world.spawn(name, coordinator(session.world, plan), after=session.world.random.uniform(0, 4))
        assert session.run() == play(store, plan)
        assert session.world.results["second"] == session.world.results["third"] == session.records[-1]
        assert [learner.trained for learner in session.learners.values()] == [5, 5, 5]

    def test_another_session_of_the_run_takes_over(self) -> None:
        session = Session(plan_of(5))
        session.world.spawn("other", coordinator(session.world, session.plan, session="other"), after=2.5)
        for name, learner in session.learners.items():
            session.world.spawn(
                f"other {name}", attendance(session.world, session.plan, name, learner, session="other")
            )
        error = session.run()
        assert isinstance(error, ConflictError)
        assert "another session" in str(error)
        assert session.world.results["other"].round == 5
        assert [record.round for record in session.records] == [0, 1, 2, 3, 4, 5]


class TestTheLastPhase:
    """The learners test the model that the session ends with, as the steps `score` do in a pipeline of single steps."""

    @staticmethod
    def asked(session: Session) -> list[tuple[int, tuple[str, ...]]]:
        return [(m.board.round, m.board.asked) for m in session.moments if m.board.phase == "score"
                and m.what == "opened"]  # fmt: skip

    @staticmethod
    def scored(session: Session) -> set[str]:
        (last,) = {record.weights for record in session.records[-1:]}
        found = {name: own_score(session.world.store, name, "r1") for name in NAMES}
        return {name for name, score in found.items() if score and score.weights == last}

    def test_asks_everybody_once_after_the_last_round(self) -> None:
        session = Session(plan_of(3))
        session.run(tests=True)
        assert self.asked(session) == [(3, NAMES)]
        assert self.scored(session) == set(NAMES)
        assert session.ending == "done"
        assert session.world.results["a"] == {"train": 3, "score": 1}
        assert session.records == history(session.world.store, "r1")

    def test_a_learner_that_trains_in_another_image_has_a_step_instead(self) -> None:
        """TensorFlow Federated's image has another Keras, whose metrics do not add up with those of the others."""
        private = {
            "noise_multiplier": 1.0,
            "l2_norm_clip": 1.0,
            "microbatches": 1,
            "delta": 1e-5,
            "target_epsilon": 3.0,
        }
        learners = [{"name": "a", "privacy": private}, {"name": "b"}]
        plan = make_plan(make_federation(learners=learners, quorum={"min_learners": 1}))
        store = MemoryStore()
        record = begin(store, plan, fresh)
        assert scoring(store, plan, record).asks(1, ()) == ("b",)
        assert scoring(store, plan, record).asks(1, ("b",)) == ()
        single = make_federation(NAMES, training={"rounds": 1, "batch_size": 1, "rounds_per_step": 1})
        assert not any(single.scores_in_session(name) for name in NAMES)

    def test_only_the_last_of_several_sessions_asks(self) -> None:
        session = Session(plan_of(4))
        for first, last in ((1, 2), (3, 0)):
            session.session = f"job-{first}"
            session.run(last=last, tests=not last)
        assert self.asked(session) == [(4, NAMES)]

    @pytest.mark.parametrize("how", [{"training": {"early_stopping": {"patience": 1, "min_delta": 100}}}, {}])
    def test_follows_whatever_ends_the_rounds(self, how: dict[str, Any]) -> None:
        session = Session(plan_of(6, **how))
        if not how:
            ask_to_stop(session.world.store, "r1")
        session.run(tests=True)
        assert session.ending == ("early_stopping" if how else "stopped")
        assert self.scored(session) == set(NAMES)

    def test_does_not_follow_a_session_that_failed(self) -> None:
        session = Session(plan_of(2, quorum={"min_learners": 3, "retries": 0}))
        assert isinstance(session.run(absent="c", tests=True), QuorumError)
        assert self.asked(session) == []

    @pytest.mark.parametrize(("deadline", "waited"), [(60, 300), (900, 900)])
    def test_waits_for_a_late_learner_five_minutes_or_the_deadline(self, deadline: int, waited: int) -> None:
        """The deadline is one of trainings, which may be shorter than a test."""
        session = Session(plan_of(1, quorum={"deadline": deadline}))
        slow = {"b": lambda board: 200.0 if board.phase == "score" else 1.0,
                "c": lambda board: 1e6 if board.phase == "score" else 1.0}  # fmt: skip
        session.run(seconds=slow, tests=True)
        assert self.scored(session) == {"a", "b"}
        assert session.ending == "done"
        timing = find_timing(session.world.store, "r1", 1, "await-score")
        assert timing is not None
        assert timing.seconds == pytest.approx(waited, abs=2)

    def test_does_not_wait_for_those_that_are_away(self) -> None:
        session = Session(plan_of(2))
        session.run(absent="c", tests=True)
        assert self.asked(session) == [(2, ("a", "b"))]

    def test_another_job_of_the_run_asks_only_those_without_a_test(self) -> None:
        session = Session(plan_of(2))
        session.run(absent="c", tests=True)
        session.session, session.moments = "another", []
        session.run(tests=True)
        assert self.asked(session) == [(2, ("c",))]
        assert self.scored(session) == set(NAMES)

    def test_a_coordinator_that_is_killed_in_it_goes_on(self) -> None:
        session = Session(plan_of(1))
        actor = coordinator(session.world, session.plan, session="s", tests=True)
        session.world.spawn("first", actor)
        for name, learner in session.learners.items():
            slow = attendance(session.world, session.plan, name, learner, session="s",
                              seconds=lambda board: 20.0 if board.phase == "score" else 1.0)  # fmt: skip
            session.world.spawn(name, slow)
        session.world.run(limit=10.0)
        assert poll_board(session.world.store, "r1")[0].phase == "score"  # type: ignore[index]
        session.world.drop("first")
        session.world.spawn("coordinator", coordinator(session.world, session.plan, session="s", tests=True))
        session.world.run()
        assert self.scored(session) == set(NAMES)
        assert session.ending == "done"


class TestGuiltyBytes:
    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"round": -1}', b"\xff" * 100, b"{}" * 100_000])
    def test_a_sign_that_is_none_is_no_answer(self, data: bytes) -> None:
        session = Session(plan_of(1))
        session.world.store.replace(keys.sign("c", "r1"), data)
        session.run(absent="c")
        assert session.dropped(1) == {"c": "late: no update within 60 s"}

    def test_a_sign_without_an_update_is_a_drop(self) -> None:
        session = Session(plan_of(1))
        session.world.store.replace(keys.sign("c", "r1"), b'{"round":1,"attempt":1,"phase":"train","took_part":true}')
        session.run(absent="c")
        assert session.dropped(1) == {"c": "no update"}

    def test_a_run_that_has_not_begun(self) -> None:
        world = World()
        world.spawn("coordinator", coordinator(world, plan_of()))
        world.run()
        assert isinstance(world.results["coordinator"], RoundError)


def test_boards_are_canonical() -> None:
    board = Board(federation="f", run="r", session="s", round=1, phase="train", base="sha256:" + "0" * 64)
    assert encode(board) == encode(board)
    assert read_record(MemoryStore(), "r", 0) is None


def test_a_step_that_finds_its_last_round_committed_moves_head(tmp_path: Path) -> None:
    """Killed between the last record and HEAD: nothing is left to do for the coordinator but that."""
    place = RunPlace(store=f"file://{tmp_path}", federation="tiny", run="r1", plan="")
    store, plan = place.open(), plan_of(3)
    play(store, plan)
    found, record = read_head(store), read_record(store, "r1", 2)
    assert found
    assert record
    store.swap("HEAD", encode(Head(run="r1", round=2, record=record.ref.record, weights=record.weights)), found[1])
    done = coordinate.find(coordinate.Inputs(place=msgspec.structs.replace(place, plan=plan.put(store)), last=3))
    assert done
    assert done.rounds == 3
    assert read_head(store) == (found[0], store.read("HEAD").version)
