"""Secure sums in sessions: the mean as without, dropouts in each phase, liars, and what leaves a learner."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from msgspec.structs import replace

from fedpipe import weights
from fedpipe.errors import CorruptError, NotFoundError, QuorumError, RoundError
from fedpipe.identity.signing import ADMINISTRATOR, KEYS, make_key, public_key
from fedpipe.learners.masking import MaskedFile
from fedpipe.rounds.accounting import TrainingEvent
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.budget import Budget
from fedpipe.rounds.history import read_record
from fedpipe.rounds.ledger import Ledger, find_marks
from fedpipe.rounds.manifests import MOST_METRICS, Record
from fedpipe.rounds.masked import grid_of
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.releases import Leaving
from fedpipe.rounds.retention import Rules, find_loss
from fedpipe.rounds.verification import flaw_of_round
from fedpipe.secure.messages import Bundle, Masked, Members
from fedpipe.secure.numbers import EDGES
from fedpipe.sessions.board import Board
from fedpipe.store import Blob, MemoryStore, Store, keys
from fedpipe.store.objects import decode, encode, get_bytes, put_bytes
from tests.faults.stores import HookedStore
from tests.federations import PlusOneLearner, make_federation, make_plan
from tests.sessions.secure import NAMES, SECURE, SecureSession, enrol, initial, mean_of, plan_of
from tests.simulation import Actor, Killed, World, attendance, coordinator


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(KEYS, str(tmp_path / "keys"))
    return tmp_path / "keys"


def close(session: SecureSession, number: int, expected: float) -> None:
    """All floats of a round moved by this much from the first weights, within the steps of the grid."""
    grid, found, parties = grid_of(session.plan, SECURE["bound"]), session.weights(number), len(session.names)
    slack = 2 * number * parties * grid.step
    assert np.abs(found["w"] - initial()["w"] - expected).max() <= slack
    assert abs(float(found["b"]) - expected) <= slack
    assert found["steps"] == 7, "counters keep their values"


def measuring(learner: Any, metrics: dict[str, float]) -> None:
    """Makes a learner report more metrics of its training."""
    original = learner.propose_weights

    def more(**arguments: Any) -> Any:
        trained = original(**arguments)
        return trained._replace(metrics={**trained.metrics, **metrics})

    learner.propose_weights = more


class TestAnUndisturbedSession:
    def test_moves_by_the_mean(self, folder: Path) -> None:
        session = SecureSession(plan_of(2), folder)
        last = session.run()
        assert last.round == 2
        close(session, 1, mean_of(NAMES))
        close(session, 2, 2 * mean_of(NAMES))
        assert session.world.results["a"] == {"keys": 1, "masked": 2, "agree": 2, "reveal": 2}

    def test_of_equal_weights(self, folder: Path) -> None:
        session = SecureSession(plan_of(1, algorithm={"weighting": "uniform"}), folder)
        session.run()
        close(session, 1, 3.0)

    def test_sums_examples_and_metrics(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        record = session.run()
        assert record.examples == 15
        assert record.contributors == NAMES
        assert record.updates == ()
        assert record.metrics["loss"] == pytest.approx(mean_of(NAMES), abs=1e-6)
        assert record.metrics["test_loss"] == pytest.approx(abs(float(initial()["w"].sum())), abs=1e-6)
        assert record.metrics["clipped"] == 0.0

    def test_with_an_optimizer_of_the_server(self, folder: Path) -> None:
        optimizer = {"name": "sgd", "learning_rate": 0.5, "momentum": 0.5}
        session = SecureSession(plan_of(2, algorithm={"server_optimizer": optimizer}), folder)
        session.run()
        mean = mean_of(NAMES)
        close(session, 1, 0.5 * mean)
        close(session, 2, 0.5 * mean + 0.5 * (0.5 * mean + mean))

    def test_limits_the_norm_at_the_learner(self, folder: Path) -> None:
        session = SecureSession(plan_of(1, secure={"norm": 0.41}), folder)
        session.run()
        close(session, 1, 0.41 / np.sqrt(41))

    def test_leaves_nothing_of_a_single_learner(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        session.run()
        store = session.world.store
        left = {re.sub(r"[0-9a-f]{64}", "*", key) for key in store.keys("learners/a/")}
        own = "learners/a/runs/r1/"
        assert left == {
            "learners/a/objects/*", f"{own}sign",
            *(f"{own}1/{part}" for part in ("keys", "masked", "agreed", "revealed")),
        }  # fmt: skip
        for key in store.keys("learners/a/runs/"):
            assert b"loss" not in store.read(key).data.replace(b'["loss","test_loss"]', b""), key


def asked(world: World, make: Callable[[Store], Actor]) -> list[tuple[int, str]]:
    """Runs the coordinator and returns the requests that it put on the board: the exchanges that all wait for."""
    seen = list[tuple[int, str]]()

    def after(_number: int, name: str, key: str) -> None:
        if name in ("swap", "create") and key == keys.board("r1"):
            board = decode(world.store.read(key).data, Board, where=key)
            seen.append((board.round, board.phase))

    world.spawn("coordinator", make(HookedStore(world.store, after=after)))
    world.run()
    return [found for found in seen if found[1] != "ended"]


class TestExchanges:
    """Keys travel with the reveal of the round before, so a round has two exchanges more than a plain one."""

    TEN = tuple("abcdefghij")

    def of(self, session: SecureSession) -> list[tuple[int, str]]:
        def make(store: Store) -> Actor:
            session.stores["coordinator"] = store
            return session.coordinator()

        for name in session.names:
            session.start(name)
        return asked(session.world, make)

    def test_of_a_round_of_ten(self, folder: Path) -> None:
        session = SecureSession(plan_of(3, self.TEN, secure={"bound": 16.0}), folder)
        summed = self.of(session)
        world = World()
        algorithm = {"name": "averaging"}
        training = {"rounds": 3, "batch_size": 1, "rounds_per_step": "all"}
        plan = make_plan(make_federation(self.TEN, algorithm=algorithm, training=training))
        begin(world.store, plan, initial)
        for k, name in enumerate(self.TEN):
            world.spawn(name, attendance(world, plan, name, PlusOneLearner(k + 1, k + 1)))
        plain = asked(world, lambda store: coordinator(world, plan, store=store))
        assert plain == [(1, "train"), (2, "train"), (3, "train")]
        assert summed[0] == (1, "keys"), "once in a session"
        assert summed[1:] == [(number, phase) for number in (1, 2, 3) for phase in ("masked", "agree", "reveal")]
        assert [record.contributors for record in session.records[1:]] == [self.TEN] * 3

    def test_only_one_that_comes_back_is_asked_for_a_key(self, folder: Path) -> None:
        session = SecureSession(plan_of(2), folder)
        requests = list[tuple[str, tuple[str, ...]]]()
        before = {"done": False}

        def seconds(board: Board) -> float:
            if board.phase == "masked" and not before["done"]:
                before["done"] = True
                raise Killed
            return 1.0

        def after(_number: int, name: str, key: str) -> None:
            if name in ("swap", "create") and key == keys.board("r1"):
                board = decode(session.world.store.read(key).data, Board, where=key)
                requests.append((board.phase, board.asked))

        session.seconds["b"] = seconds
        session.stores["coordinator"] = HookedStore(session.world.store, after=after)
        for name in NAMES:
            session.start(name, again=(lambda: session.actor("b")) if name == "b" else None)
        session.world.spawn("coordinator", session.coordinator())
        session.world.run()
        assert [names for phase, names in requests if phase == "keys"] == [NAMES, ("b",)]
        assert session.records[2].contributors == NAMES

    def test_a_key_that_was_lost_costs_that_learner_one_round(self, folder: Path) -> None:
        """It offered a key of round 2 and died before round 2: another process cannot use the key."""
        session = SecureSession(plan_of(3), folder)
        before = {"done": False}

        def seconds(board: Board) -> float:
            if (board.round, board.phase) == (2, "masked") and not before["done"]:
                before["done"] = True
                raise Killed
            return 1.0

        session.seconds["b"] = seconds
        for name in NAMES:
            session.start(name, again=(lambda: session.actor("b")) if name == "b" else None)
        session.world.spawn("coordinator", session.coordinator())
        session.world.run()
        assert session.records[2].contributors == ("a", "c", "d", "e")
        assert session.records[3].contributors == NAMES
        assert not session.world.store.size(keys.answer("a", "r1", 4, "keys")), "there is no round 4"

    def test_a_try_that_failed_takes_no_key_of_the_first_one(self, folder: Path) -> None:
        session = SecureSession(plan_of(2), folder)
        late = {"b", "c"}

        def seconds(name: str) -> Callable[[Board], float]:
            def taken(board: Board) -> float:
                if (board.round, board.phase) == (2, "masked") and name in late:
                    late.remove(name)
                    return 70.0
                return 1.0

            return taken

        for name in ("b", "c"):
            session.seconds[name] = seconds(name)
        requests = self.of(session)
        assert [phase for number, phase in requests if number == 2] == ["masked", "keys", "masked", "agree", "reveal"]
        record = session.records[2]
        assert record.secure
        assert record.secure.session == "s#2"


class TestABoundThatFollows:
    """The largest change is 5, by the fifth learner, which has the most examples: 0.83 of a bound of 6."""

    SETTINGS: ClassVar[dict[str, Any]] = {
        "bound": {"quantile": 0.9, "margin": 2.0, "initial": 6.0},
        "most_clipped": 0.1,
    }

    def session(self, folder: Path, rounds: int = 2, **more: Any) -> SecureSession:
        return SecureSession(plan_of(rounds, secure=self.SETTINGS | more), folder)

    def test_twice_the_magnitude_at_the_quantile(self, folder: Path) -> None:
        session = self.session(folder, 3)
        session.run()
        first, second, third = session.records[1:]
        assert first.secure
        assert second.secure
        assert third.secure
        assert (first.secure.bound, first.metrics["bound"]) == (6.0, 6.0)
        assert sum(first.secure.magnitudes) == 5 * 41
        assert first.secure.magnitudes[EDGES.index(0.875)] == 41, "three quarters of the bound and more"
        assert second.secure.bound == 6.0 * 0.875 * 2.0
        assert third.secure.bound == 10.5 * 0.5 * 2.0
        assert third.metrics["clipped"] == 0.0
        moved = session.weights(3)["w"] - initial()["w"]
        assert np.abs(moved - 3 * mean_of(NAMES)).max() < 0.001

    def test_a_median_clips_the_larger_half(self, folder: Path) -> None:
        """Half of the changes are at most 1.8, so the next bound is 2 and cuts 3.2 and 5."""
        session = self.session(folder, bound={"quantile": 0.5, "margin": 1.0, "initial": 8.0}, most_clipped=0.5)
        session.run()
        second = session.records[2]
        assert second.secure
        assert second.secure.bound == 2.0
        assert second.metrics["clipped"] == 0.4
        moved = session.weights(2)["w"] - session.weights(1)["w"]
        assert np.abs(moved - (0.2 + 0.8 + 1.8 + 2 + 2) * 5 / 15).max() < 0.001

    def test_no_change_leaves_the_bound(self, folder: Path) -> None:
        session = self.session(folder)
        session.learners = {name: PlusOneLearner(0, place + 1) for place, name in enumerate(NAMES)}
        session.run()
        assert [record.metrics["bound"] for record in session.records[1:]] == [6.0, 6.0]

    def test_one_that_is_too_small_says_which_key_to_raise(self, folder: Path) -> None:
        session = self.session(folder, bound={"quantile": 0.9, "initial": 0.1})
        error = session.run()
        assert "of the values were clipped to 0.1" in str(error)
        assert "Raise algorithm.secure.bound.initial" in str(error)

    def test_a_coordinator_that_dies_takes_the_same_bound(self, folder: Path) -> None:
        session = self.session(folder)
        session.stores["coordinator"] = Dying(session.world.store, 5)
        session.world.spawn("coordinator", session.coordinator(), again=session.coordinator)
        for name in NAMES:
            session.start(name)
        session.world.run()
        assert session.world.kills == 1
        assert [record.metrics["bound"] for record in session.records[1:]] == [6.0, 10.5]

    def test_is_replayed(self, folder: Path) -> None:
        session = self.session(folder)
        session.run()
        store, (zero, first, second) = session.world.store, session.records
        for number, (previous, record) in enumerate(((zero, first), (first, second))):
            (folder / str(number)).mkdir()
            assert flaw_of_round(store, session.plan, previous, record, folder / str(number)) == ""
        assert first.secure
        other = replace(first, secure=replace(first.secure, magnitudes=first.secure.magnitudes[::-1]))
        (folder / "x").mkdir()
        assert flaw_of_round(store, session.plan, zero, other, folder / "x") == "its parts give another record"
        (folder / "y").mkdir()
        assert "the keys are for a bound of 10.5" in flaw_of_round(store, session.plan, other, second, folder / "y")

    def test_another_one_for_one_learner(self, folder: Path) -> None:
        """If all others gave nothing by a huge bound, the sum would be that learner's update."""
        session = self.session(folder, 1)

        def changed(data: bytes) -> bytes:
            return encode(replace(decode(data, Bundle, where=""), bound=1e6))

        session.stores["b"] = Showing(session.world.store, "runs/r1/1/keys", changed)
        record = session.run()
        assert record.contributors == ("a", "c", "d", "e")
        assert session.dropped(1) == {"b": "its vector is masked by other keys"}

    def test_a_fixed_one_is_that_of_the_plan(self, folder: Path) -> None:
        session = SecureSession(plan_of(1, quorum={"retries": 0}), folder)

        def changed(data: bytes) -> bytes:
            return encode(replace(decode(data, Bundle, where=""), bound=1e6))

        for name in NAMES:
            session.stores[name] = Showing(session.world.store, "runs/r1/1/keys", changed)
        session.run()
        why = session.world.store.read(keys.answer("a", "r1", 1, "dropped")).data.decode()
        assert "the coordinator shows a bound of 1e+06, the plan's is 8" in why
        assert not [key for key in session.world.store.keys("learners/") if key.endswith("/masked")]


class TestDropouts:
    @pytest.mark.parametrize("phase", ["keys", "masked", "agree", "reveal"])
    def test_of_one_in_each_phase(self, folder: Path, phase: str) -> None:
        """The learner dies when it is asked; before it has sent a vector, it is not in the sum."""
        session = SecureSession(plan_of(1), folder)
        session.seconds["b"] = lambda board: 1.0 if board.phase != phase else 1e9
        record = session.run()
        members = NAMES if phase in ("agree", "reveal") else ("a", "c", "d", "e")
        assert record.contributors == members
        close(session, 1, mean_of(members))
        assert ("b" in session.dropped(1)) == (members != NAMES)

    def test_of_two_in_different_phases(self, folder: Path) -> None:
        names = ("a", "b", "c", "d", "e", "f", "g")
        session = SecureSession(plan_of(1, names), folder)
        session.seconds["b"] = lambda board: 1.0 if board.phase != "masked" else 1e9
        session.seconds["f"] = lambda board: 1.0 if board.phase != "reveal" else 1e9
        record = session.run()
        assert record.contributors == ("a", "c", "d", "e", "f", "g")
        close(session, 1, mean_of(record.contributors, names))

    def test_below_the_threshold_nothing_is_revealed(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        for name in "bc":
            session.seconds[name] = lambda board: 1.0 if board.phase != "masked" else 1e9
        error = session.run()
        assert isinstance(error, QuorumError)
        store = session.world.store
        assert not [key for key in store.keys("") if key.endswith(("/revealed", "/agreed", "/members"))]

    def test_a_round_begins_again_with_new_keys(self, folder: Path) -> None:
        """Two learners are late with their first vectors, and in time with the second ones."""
        session = SecureSession(plan_of(1, names=("a", "b", "c", "d", "e")), folder)
        late = {"b": 1, "c": 1}

        def seconds(name: str) -> Any:
            def taken(board: Board) -> float:
                if board.phase == "masked" and late.get(name):
                    late[name] = 0
                    return 70.0
                return 1.0

            return taken

        for name in late:
            session.seconds[name] = seconds(name)
        record = session.run()
        assert record.secure
        assert record.secure.session == "s#2"
        close(session, 1, mean_of(record.contributors))

    def test_one_that_fails_is_dropped_with_its_reason(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        session.learners["c"] = PlusOneLearner(3, 3, fails="its disk is full")
        session.run()
        assert session.dropped(1) == {"c": "its disk is full"}
        close(session, 1, mean_of("abde"))

    def test_one_with_infinite_weights_sends_nothing(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        session.learners["c"] = PlusOneLearner(np.inf, 3)
        session.run()
        assert "NaN or infinity" in session.dropped(1)["c"]
        assert session.world.store.size(keys.answer("c", "r1", 1, "masked")) is None

    def test_one_with_more_examples_than_the_plan(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        session.learners["c"] = PlusOneLearner(3, 6)
        session.run()
        assert "its weight is relative to 5" in session.dropped(1)["c"]

    def test_one_with_other_metrics(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        measuring(session.learners["c"], {"more": 1.0})
        session.run()
        assert session.dropped(1) == {"c": "it measures other metrics than most"}

    def test_a_metric_that_one_cannot_measure_is_the_mean_of_the_others(self, folder: Path) -> None:
        """For instance an AUC, where all examples of a learner have one label."""
        session = SecureSession(plan_of(1), folder)
        for place, name in enumerate(NAMES):
            measuring(session.learners[name], {"auc": np.nan if name == "c" else place / 4})
        record = session.run()
        assert record.contributors == NAMES
        assert record.metrics["auc"] == pytest.approx((2 * 0.25 + 4 * 0.75 + 5 * 1.0) / 12, abs=1e-6)

    def test_a_record_has_no_more_metrics_than_it_holds(self, folder: Path) -> None:
        session = SecureSession(plan_of(1, secure={"bound": {"quantile": 0.99, "initial": 8.0}}), folder)
        for name in NAMES:
            measuring(session.learners[name], {f"m{number:03}": float(number) for number in range(130)})
        session.run()
        assert session.records[1].contributors == NAMES
        assert len(session.records[1].metrics) == MOST_METRICS
        assert session.records[1].metrics["m000"] == 0.0

    @pytest.mark.parametrize(("metrics", "left"), [(("loss",), {"loss", "test_loss"}), ((), set()),
                                                   (None, {"loss", "test_loss"})])  # fmt: skip
    def test_metrics_that_one_owner_withholds_are_in_no_sum(
        self, folder: Path, metrics: tuple[str, ...] | None, left: set[str]
    ) -> None:
        """All take part: the one with the owner, and one that measures more than the others."""
        session = SecureSession(plan_of(1), folder)
        session.leaves["b"] = Leaving(metrics=metrics)
        measuring(session.learners["c"], {"secret_is_17": 1.0})
        record = session.run()
        assert record.contributors == NAMES
        assert record.metrics.keys() == {*left, "clipped"}
        store = session.world.store
        assert not any(b"secret_is_17" in store.read(key).data for key in store.keys(""))

    def test_metrics_that_code_smuggles_past_its_owner_drop_the_learner(self, folder: Path) -> None:
        """The code of a model may change what masks in its process; the keys are elsewhere."""
        session = SecureSession(plan_of(1), folder)
        session.leaves["b"] = Leaving(metrics=("loss",))
        session.sent["b"] = lambda _, made: made._replace(metrics=("loss", "secret_is_17"))
        record = session.run()
        assert record.contributors == ("a", "c", "d", "e")
        assert session.dropped(1) == {"b": "the vector has a metric that may not leave"}
        assert session.world.store.size(keys.answer("b", "r1", 1, "masked")) is None

    def test_a_restarted_learner_is_missing_and_comes_back(self, folder: Path) -> None:
        session = SecureSession(plan_of(3), folder)
        before = {"done": False}

        def seconds(board: Board) -> float:
            if board.phase == "masked" and board.round == 1 and not before["done"]:
                before["done"] = True
                raise Killed
            return 1.0

        session.seconds["b"] = seconds
        session.world.spawn("coordinator", session.coordinator())
        for name in NAMES:
            session.start(name, again=(lambda: session.actor("b")) if name == "b" else None)
        session.world.run()
        assert session.world.kills == 1
        assert session.records[1].contributors == ("a", "c", "d", "e")
        assert "no key of the round" in session.dropped(1)["b"]
        assert session.records[2].contributors == NAMES


class TestJunk:
    @pytest.mark.parametrize("part", ["keys", "masked", "agreed", "revealed"])
    @pytest.mark.parametrize("junk", [b"", b"{}", b"\xff" * 100, b"[" * 5000])
    def test_of_a_learner_drops_it_alone(self, folder: Path, part: str, junk: bytes) -> None:
        session = SecureSession(plan_of(1), folder)
        session.stores["b"] = Replacing(session.world.store, keys.answer("b", "r1", 1, part), junk)
        record = session.run()
        members = NAMES if part in ("agreed", "revealed") else ("a", "c", "d", "e")
        assert record.contributors == members
        close(session, 1, mean_of(members))

    @pytest.mark.parametrize("part", ["keys", "masked", "agreed", "revealed"])
    @pytest.mark.parametrize(("name", "number"), [("a", 2), ("b", 1)])
    def test_a_statement_of_another_learner_or_round(self, folder: Path, part: str, name: str, number: int) -> None:
        """The store shows it in the place of that of b."""
        session = SecureSession(plan_of(2), folder)
        session.seconds["b"] = lambda _: 2.0  # the other one is there by then
        store, other = session.world.store, keys.answer(name, "r1", number, part)
        shown = Showing(store, keys.answer("b", "r1", 2, part), lambda _: store.read(other).data)
        session.stores["coordinator"] = shown
        record = session.run()
        members = NAMES if part in ("agreed", "revealed") else ("a", "c", "d", "e")
        assert record.contributors == members
        close(session, 2, mean_of(NAMES) + mean_of(members))

    def test_vector_of_other_bytes(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        session.stores["b"] = Spoiling(session.world.store, "learners/b/objects/")
        session.run()
        assert session.records[1].contributors == ("a", "c", "d", "e")
        assert "b" in session.dropped(1)

    def test_a_box_that_does_not_open_names_its_sender(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        session = SecureSession(plan_of(1), folder)

        def changed(store: Store, made: MaskedFile) -> MaskedFile:
            data = bytearray(get_bytes(store, made.digest, "b"))
            data[3] ^= 1  # in the box for a, the first one
            return made._replace(digest=put_bytes(store, bytes(data), "b"))

        session.sent["b"] = changed
        assert session.run().contributors == NAMES
        close(session, 1, mean_of(NAMES))
        assert "round 1: a says of b: its box for this learner was changed" in caplog.text

    def test_vector_of_noise_is_no_sum(self, folder: Path) -> None:
        """A hostile learner may spoil a round, but the record of a round never has impossible numbers."""
        session = SecureSession(plan_of(1), folder)

        def noise(store: Store, made: MaskedFile) -> MaskedFile:
            data = get_bytes(store, made.digest, "b")
            digest = put_bytes(store, data[:-96] + np.random.default_rng(0).bytes(96), "b")  # all its numbers
            return made._replace(digest=digest)

        session.sent["b"] = noise
        error = session.run()
        assert isinstance(error, RoundError)
        assert "a learner sent nonsense" in str(error)
        assert read_record(session.world.store, "r1", 1) is None


class TestTheCoordinator:
    @pytest.mark.parametrize("seed", range(8))
    def test_may_die_anywhere(self, folder: Path, seed: int) -> None:
        session = SecureSession(plan_of(2), folder, seed)
        dying = Dying(session.world.store, seed)
        session.stores["coordinator"] = dying
        session.world.spawn("coordinator", session.coordinator(), again=session.coordinator)
        for name in NAMES:
            session.start(name)
        session.world.run()
        assert session.world.kills == 1
        last = session.world.results["coordinator"]
        assert last.round == 2
        close(session, 2, 2 * mean_of(NAMES))
        for number in (1, 2):
            record = read_record(session.world.store, "r1", number)
            assert record
            assert record.contributors == NAMES

    def test_clipping_that_is_too_common_fails_the_round(self, folder: Path) -> None:
        session = SecureSession(plan_of(1, secure={"bound": 0.5}), folder)
        error = session.run()
        assert isinstance(error, RoundError)
        assert "of the values were clipped to 0.5" in str(error)
        assert "Raise algorithm.secure.bound" in str(error)


class TestLies:
    """A coordinator or a store that lies meets learners that leave the round; nothing is revealed."""

    def refused(self, session: SecureSession, match: str) -> None:
        error = session.run()
        assert isinstance(error, RoundError)
        store = session.world.store
        whys = [store.read(key).data.decode() for key in store.keys("learners/") if "/dropped" in key]
        assert any(match in why for why in whys), whys
        assert not [key for key in store.keys("learners/") if key.endswith("/revealed")]

    def showing(self, session: SecureSession, names: str, name: str, change: Callable[[Any], Any], kind: Any) -> None:
        """Shows another list to these learners."""

        def changed(data: bytes) -> bytes:
            return encode(change(decode(data, kind, where="")))

        for learner in names:
            session.stores[learner] = Showing(session.world.store, f"runs/r1/1/{name}", changed)

    def test_two_lists_of_members_for_two_halves(self, folder: Path) -> None:
        session = SecureSession(plan_of(1, quorum={"retries": 0}), folder)

        def without_e(members: Members) -> Members:
            return replace(members, vectors={k: v for k, v in members.vectors.items() if k != "e"})

        self.showing(session, "ab", "members", without_e, Members)
        session.run()
        store = session.world.store
        assert not [key for key in store.keys("learners/") if key.endswith("/revealed")]
        assert (
            len({store.read(keys.answer(n, "r1", 1, "agreed")).data.split(b'"members":')[1][:80] for n in NAMES}) == 2
        )

    def test_a_list_that_is_too_short(self, folder: Path) -> None:
        session = SecureSession(plan_of(1, quorum={"retries": 0}), folder)

        def short(members: Members) -> Members:
            return replace(members, vectors={k: v for k, v in members.vectors.items() if k in "abc"})

        self.showing(session, "abc", "members", short, Members)
        self.refused(session, "the list has 3 members, the threshold is 4")

    def test_a_second_list_after_the_first_was_signed(self, folder: Path) -> None:
        """The coordinator asks for the shares of one list, and then for the seeds of another."""
        session = SecureSession(plan_of(1), folder)
        session.run()
        participant, board = session.participants["a"], session.world.store.read(keys.board("r1"))
        members = decode(session.world.store.read(keys.listed("r1", 1, "members")).data, Members, where="")
        other = replace(members, vectors={k: v for k, v in members.vectors.items() if k != "e"})
        session.world.store.replace(keys.listed("r1", 1, "members"), encode(other))
        before = session.world.store.read(keys.answer("a", "r1", 1, "revealed"))
        asking = replace(
            decode(board.data, Board, where=""), phase="agree", round=1, candidate="s",
            base=members.base, asked=("a",),
        )  # fmt: skip
        answers = participant.answers()
        assert not answers["agree"](asking)
        assert answers["reveal"](replace(asking, phase="reveal"))
        assert session.world.store.read(keys.answer("a", "r1", 1, "revealed")).data == before.data, "nothing more"

    def test_a_second_sum_of_the_same_round(self, folder: Path) -> None:
        """From two sums with and without one learner, its update would follow."""
        session = SecureSession(plan_of(1), folder)
        record = session.run()
        asking = Board(
            federation="tiny", run="r1", session="s", round=1, phase="keys", base=str(record.base), asked=("a",),
            candidate="s#2",
        )  # fmt: skip
        assert not session.participants["a"].answers()["keys"](asking)
        assert not session.participants["a"].answers()["keys"](replace(asking, round=2)), "the same weights"
        assert "opens no second one" in session.world.store.read(keys.answer("a", "r1", 2, "dropped")).data.decode()

    def test_other_weights_for_one_learner(self, folder: Path) -> None:
        """Model inconsistency: all but one begin from weights that make them contribute nothing."""
        session = SecureSession(plan_of(1, quorum={"retries": 0}), folder)
        other = weights.digest_of({**initial(), "w": np.zeros(40, np.float32)})
        put_bytes(session.world.store, weights.dumps({**initial(), "w": np.zeros(40, np.float32)}))

        def changed(data: bytes) -> bytes:
            return encode(replace(decode(data, Board, where=""), base=other))

        for name in "bcde":
            session.stores[name] = Showing(session.world.store, keys.board("r1"), changed)
        session.run()
        assert read_record(session.world.store, "r1", 1) is None
        written = [
            key for key in session.world.store.keys("learners/") if key.endswith(("/masked", "/agreed", "/revealed"))
        ]
        assert written == ["learners/a/runs/r1/1/masked"], "a vector under masks that nobody else knows"

    def test_other_weights_after_the_keys_were_offered(self, folder: Path) -> None:
        """The key of round 2 is offered before its weights are known; no mask is common to two of them."""
        session = SecureSession(plan_of(2, quorum={"retries": 0}), folder)
        other = weights.digest_of({**initial(), "w": np.zeros(40, np.float32)})
        put_bytes(session.world.store, weights.dumps({**initial(), "w": np.zeros(40, np.float32)}))

        def changed(data: bytes) -> bytes:
            board = decode(data, Board, where="")
            return encode(replace(board, base=other) if board.round == 2 else board)

        for name in "bcde":
            session.stores[name] = Showing(session.world.store, keys.board("r1"), changed)
        session.run()
        assert read_record(session.world.store, "r1", 1)
        assert read_record(session.world.store, "r1", 2) is None
        assert session.world.store.size(keys.answer("b", "r1", 2, "keys"))
        written = [key for key in session.world.store.keys("learners/") if "/2/" in key]
        assert "learners/b/runs/r1/2/masked" not in written
        assert not [key for key in written if key.endswith(("/agreed", "/revealed"))]

    def test_keys_of_another_session(self, folder: Path) -> None:
        session = SecureSession(plan_of(1, quorum={"retries": 0}), folder)

        def changed(data: bytes) -> bytes:
            return encode(replace(decode(data, Board, where=""), candidate="t"))

        for name in NAMES:
            session.stores[name] = Showing(session.world.store, keys.board("r1"), changed)
        self.refused(session, "asks for keys of another session")

    def test_no_roster(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        session.world.store.delete(keys.ROSTER)
        error = session.run()
        assert isinstance(error, RoundError)
        assert "there is no roster" in str(error)

    def test_a_roster_of_another_signer(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        (folder / f"{ADMINISTRATOR}.pub").write_text(public_key(make_key()))
        self.refused(session, "the roster is signed with another key")

    def test_a_plan_with_fewer_learners(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        enrol(session.world.store, "tiny", (*NAMES, "f"), folder)
        self.refused(session, "the roster has f, but the plan does not")

    def test_a_roster_without_a_learner(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        enrol(session.world.store, "tiny", NAMES[:4], folder)
        self.refused(session, "the roster has no key of e")


class TestVerification:
    def flaw(self, session: SecureSession, folder: Path, record: Record | None = None) -> str:
        (folder / "empty").mkdir()
        previous, found = session.records[0], record or session.records[1]
        return flaw_of_round(session.world.store, session.plan, previous, found, folder / "empty")

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_a_record_gives_the_sum_again(self, folder: Path, momentum: float) -> None:
        optimizer = {"name": "sgd", "learning_rate": 0.5, "momentum": momentum}
        session = SecureSession(plan_of(1, algorithm={"server_optimizer": optimizer}), folder)
        session.seconds["b"] = lambda board: 1.0 if board.phase != "masked" else 1e9
        session.run()
        assert self.flaw(session, folder) == ""

    def test_other_weights_in_the_record_are_found(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        record = session.run()
        other = replace(record, weights=session.records[0].weights)
        assert "its parts give the weights" in self.flaw(session, folder, other)

    def test_other_metrics_in_the_record_are_found(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        record = session.run()
        assert self.flaw(session, folder, replace(record, metrics={"loss": 0.0})) == "its parts give another record"

    def test_a_changed_vector_is_found(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        session.run()
        (key,) = session.world.store.keys("learners/a/objects/")
        session.world.store.replace(key, b"x" * (session.world.store.size(key) or 0))
        assert "an object has changed" in self.flaw(session, folder)

    def test_what_was_pruned_is_missing(self, folder: Path) -> None:
        session = SecureSession(plan_of(1), folder)
        session.run()
        (key,) = session.world.store.keys("learners/a/objects/")
        session.world.store.delete(key)
        with pytest.raises(NotFoundError):
            self.flaw(session, folder)


@pytest.mark.parametrize(("replays", "left"), [(True, 5), (False, 0)])
def test_what_prune_keeps(folder: Path, replays: bool, left: int) -> None:
    """An ended run keeps the masked vectors that its records name, unless replays are given up."""
    session = SecureSession(plan_of(1), folder)
    session.run()
    store = session.world.store
    store.create(keys.summary("r1"), b"{}")
    session.world.now += 3 * 24 * 3600
    store.create("objects/" + "1" * 64, b"late")
    loss = find_loss(store, Rules(replays=replays))
    gone = {key for key in loss.content if key.startswith("learners/")}
    assert len([key for key in store.keys("learners/") if "/objects/" in key and key not in gone]) == left


class _Passing:
    """Passes all calls on to a store."""

    def __init__(self, store: Any) -> None:
        self.store, self.uri = store, store.uri

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class Replacing(_Passing):
    """Leaves junk where a learner writes one object."""

    def __init__(self, store: Any, key: str, junk: bytes) -> None:
        super().__init__(store)
        self.key, self.junk = key, junk

    def replace(self, key: str, data: bytes) -> None:
        self.store.replace(key, self.junk if key == self.key else data)


class Spoiling(_Passing):
    """Changes a byte of each upload below a prefix."""

    def __init__(self, store: Any, prefix: str) -> None:
        super().__init__(store)
        self.prefix = prefix

    def upload(self, key: str, path: Path) -> None:
        self.store.replace(key, self._spoilt(path.read_bytes()))

    def create(self, key: str, data: bytes) -> bool:
        return bool(self.store.create(key, self._spoilt(data) if key.startswith(self.prefix) else data))

    def _spoilt(self, data: bytes) -> bytes:
        return bytes([*data[:-1], data[-1] ^ 1])


class Showing(_Passing):
    """Shows other bytes at one key."""

    def __init__(self, store: Any, key: str, change: Callable[[bytes], bytes]) -> None:
        super().__init__(store)
        self.key, self.change = key, change

    def read(self, key: str, **more: Any) -> Blob:
        blob: Blob = self.store.read(key, **more)
        return blob._replace(data=self.change(blob.data)) if key == self.key else blob

    def poll(self, key: str, version: str = "", **more: Any) -> Blob | None:
        blob: Blob | None = self.store.poll(key, version, **more)
        return blob._replace(data=self.change(blob.data)) if blob and key == self.key else blob


class Dying(_Passing):
    """Kills its process once, at one of the coordinator's writes."""

    def __init__(self, store: Any, seed: int) -> None:
        super().__init__(store)
        self.left = 2 + 3 * seed

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed

    def create(self, key: str, data: bytes) -> bool:
        self._count()
        done = bool(self.store.create(key, data))
        return done

    def swap(self, key: str, data: bytes, version: str) -> bool:
        self._count()
        return bool(self.store.swap(key, data, version))


class TestPrivateTraining:
    """One of five learners trains privately: it charges its ledger, and nothing in the round shows its metrics."""

    EVENT = TrainingEvent(examples=100, batch_size=10, microbatches=10, noise_multiplier=2.0, steps=10, passes=1)
    PRIVATE: ClassVar[dict[str, Any]] = {
        "noise_multiplier": 2.0, "l2_norm_clip": 1.0, "microbatches": 1, "delta": 1e-5, "target_epsilon": 100.0,
    }  # fmt: skip

    def plan(self, rounds: int, **settings: Any) -> Plan:
        learners: list[dict[str, Any]] = [{"name": name} for name in NAMES]
        learners[1]["privacy"] = self.PRIVATE | settings
        return plan_of(rounds, learners=learners)

    def session(self, folder: Path, rounds: int, **settings: Any) -> SecureSession:
        session = SecureSession(self.plan(rounds, **settings), folder)
        session.learners["b"] = PlusOneLearner(2, 2, event=self.EVENT)
        return session

    def test_is_charged_to_the_ledger(self, folder: Path) -> None:
        session = self.session(folder, 2)
        session.run()
        store = session.world.store
        close(session, 2, 2 * mean_of(NAMES))
        assert [record.contributors for record in session.records[1:]] == [NAMES] * 2
        entries = Ledger(store, "b").entries()
        assert [(entry.run, entry.round, entry.spent.events) for entry in entries] == [("r1", 1, 1), ("r1", 2, 2)]
        for number, entry in enumerate(entries, 1):
            masked = decode(store.read(keys.answer("b", "r1", number, "masked")).data, Masked, where="")
            assert (masked.vector, masked.trainings, masked.ledger) == (entry.weights, number, entry.head)
        other = decode(store.read(keys.answer("a", "r1", 1, "masked")).data, Masked, where="")
        assert (other.trainings, other.ledger) == (0, None)
        assert all(set(record.metrics) == {"test_loss", "clipped"} for record in session.records[1:])

    def test_a_spent_budget_drops_the_learner(self, folder: Path) -> None:
        privacy = self.plan(2).federation.privacy_of("b")
        assert privacy
        one = Budget(MemoryStore(), "b", privacy).spent(self.EVENT)
        session = self.session(folder, 2, target_epsilon=one.epsilon * 1.01)
        session.run()
        assert session.records[1].contributors == NAMES
        assert session.records[2].contributors == ("a", "c", "d", "e")
        assert "the next training of b would bring epsilon" in session.dropped(2)["b"]
        assert len(Ledger(session.world.store, "b").entries()) == 1

    def test_a_second_try_is_charged_again(self, folder: Path) -> None:
        session = self.session(folder, 1)
        late = {"c", "d"}

        def seconds(name: str) -> Callable[[Board], float]:
            def taken(board: Board) -> float:
                if board.phase == "masked" and name in late:
                    late.remove(name)
                    return 70.0
                return 1.0

            return taken

        for name in "cd":
            session.seconds[name] = seconds(name)
        record = session.run()
        assert record.secure
        assert record.secure.session == "s#2"
        entries = Ledger(session.world.store, "b").entries()
        assert len({entry.weights for entry in entries}) == len(entries) == 2

    @pytest.mark.parametrize("run", ["r1", "r2"])
    def test_a_ledger_that_lost_its_end_is_found(self, folder: Path, run: str) -> None:
        """The store's operator may remove entries; the learner's own masked vectors name them."""
        session = self.session(folder, 2)
        session.run()
        store = session.world.store
        if run == "r2":
            plan = Plan(**{f: getattr(session.plan, f) for f in Plan.__struct_fields__} | {"run": "r2"})
            begin(store, plan, initial)
        store.delete(keys.ledger("b", 2))
        marks = find_marks(store, run, 3 if run == "r1" else 1, "b")
        with pytest.raises(CorruptError, match="its masked vector of round 2 of run r1 names 2"):
            Ledger(HookedStore(store), "b", marks).entries()
