"""The ledger: what was spent holds across runs, retries, crashes and two runs at once."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from fedpipe.errors import BudgetError, CorruptError
from fedpipe.federation.training import Privacy
from fedpipe.learners.contribute import contribute
from fedpipe.rounds.accounting import TrainingEvent
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.budget import Budget, training_event
from fedpipe.rounds.history import history
from fedpipe.rounds.manifests import Dropped, Update
from fedpipe.rounds.plan import Plan
from fedpipe.store import MemoryStore, Store
from tests.faults.stores import HookedStore, killing
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan, play, play_collective
from tests.simulation import Killed

EVENT = TrainingEvent(examples=1000, batch_size=50, microbatches=50, noise_multiplier=3.0, steps=60, passes=3)
SETTINGS = {"noise_multiplier": 1.5, "l2_norm_clip": 1.0, "microbatches": 1, "delta": 1e-5, "target_epsilon": 1.9}
PRIVACY = Privacy(**{**SETTINGS, "microbatches": 50})  # type: ignore[arg-type]
WEIGHTS = "sha256:" + "5" * 64


def private_plan(run: str = "r1", **privacy: Any) -> Plan:
    return make_plan(
        make_federation(
            algorithm={"name": "collective"},
            training={"rounds": 9, "batch_size": 1},
            learners=[{"name": "a", "privacy": {**SETTINGS, **privacy}}, {"name": "b"}, {"name": "c"}],
        ),
        run=run,
    )


def learners() -> dict[str, PlusOneLearner]:
    return {n: PlusOneLearner(1.0, wants=999.0, event=EVENT if n == "a" else None) for n in ("a", "b", "c")}


def charged(budget: Budget, times: int) -> float:
    return [budget.charge(EVENT, run="r", number=k, weights=WEIGHTS) for k in range(times)][-1].epsilon


def test_events_add_up(store: MemoryStore) -> None:
    budget = Budget(store, "a", PRIVACY)
    first = charged(budget, 1)
    assert 0 < first < charged(budget, 1) <= 1.9
    spent = Budget(store, "a", PRIVACY).spent()
    assert spent.events == 2
    assert spent.epsilon == spent.epsilon_poisson
    assert spent.epsilon_unamplified is not None
    assert spent.epsilon_unamplified > spent.epsilon


def test_the_target_is_never_passed(store: MemoryStore) -> None:
    budget = Budget(store, "a", PRIVACY)
    with pytest.raises(BudgetError, match=r"would bring epsilon from 1\.\d+ to \d\.\d+, the target is 1\.9") as caught:
        charged(budget, 99)
    assert caught.value.spent == budget.spent()
    assert budget.spent().epsilon <= 1.9
    assert len(Budget(store, "a", PRIVACY).entries()) == caught.value.spent.events


def test_the_budget_without_amplification_is_smaller(store: MemoryStore) -> None:
    careful = Budget(store, "a", Privacy(**{**SETTINGS, "microbatches": 50, "sampling": "none"}))  # type: ignore[arg-type]
    with pytest.raises(BudgetError):
        careful.check(EVENT)
    Budget(store, "a", PRIVACY).check(EVENT)


def test_two_runs_at_once_cannot_spend_the_same_budget(store: MemoryStore) -> None:
    """Both read the ledger, both find room for one more; one of them finds the number taken."""
    room = next(k for k in range(1, 99) if not _fits(k + 1))
    charged(Budget(store, "a", PRIVACY), room - 1)
    one, two = Budget(store, "a", PRIVACY), Budget(store, "a", PRIVACY)
    one.check(EVENT)
    two.check(EVENT)
    one.charge(EVENT, run="r1", number=1, weights=WEIGHTS)
    with pytest.raises(BudgetError):
        two.charge(EVENT, run="r2", number=1, weights=WEIGHTS)
    assert len(one.entries()) == room


def test_another_run_may_spend_at_any_moment_of_a_charge(store: MemoryStore) -> None:
    """Another run takes the last of the budget between any two store calls of a charge: the target still holds."""
    room = next(k for k in range(1, 99) if not _fits(k + 1))
    for moment in range(room + 4):
        shelf = store.below(f"moment-{moment}")
        charged(Budget(shelf, "a", PRIVACY), room - 1)

        def interrupt(number: int, _name: str, _key: str) -> None:
            if number == moment:  # noqa: B023
                Budget(shelf, "a", PRIVACY).charge(EVENT, run="r2", number=1, weights=WEIGHTS)  # noqa: B023

        mine = Budget(HookedStore(shelf, interrupt), "a", PRIVACY)
        with contextlib.suppress(BudgetError):
            mine.charge(EVENT, run="r1", number=1, weights=WEIGHTS)
        assert Budget(shelf, "a", PRIVACY).spent().epsilon <= 1.9
        assert len(Budget(shelf, "a", PRIVACY).entries()) == room


def _fits(trainings: int) -> bool:
    from fedpipe.rounds.accounting import epsilon

    return epsilon([EVENT] * trainings, delta=1e-5, accountant="rdp", sampling="poisson") <= 1.9


def test_a_ledger_that_cannot_be_read_stops_training(store: MemoryStore) -> None:
    store.create("learners/a/ledger/00000001", b"{}")
    with pytest.raises(CorruptError, match="not a valid entry"):
        Budget(store, "a", PRIVACY).check(EVENT)


class TestARun:
    def test_the_budget_is_met_in_the_middle_and_the_others_go_on(self, store: MemoryStore) -> None:
        made = learners()
        play_collective(store, private_plan(target_epsilon=0.9), made)
        records = history(store, "r1")
        mine = [r for r in records if r.proposer == "a"]
        assert [r.accepted for r in mine] == [True, True, False]
        refused = mine[2]
        assert refused.dropped[0].code == "DP_BUDGET_EXCEEDED"
        assert refused.weights == refused.base
        assert made["a"].trained == 2  # the third was not even trained
        assert all(r.accepted for r in records if r.proposer in ("b", "c"))
        spent = [r.spent_by("a") for r in mine]
        assert [s.events for s in spent if s] == [1, 2, 2]
        assert all(s and s.epsilon <= 0.9 for s in spent)
        assert records[2].spent_by("b") is None

    def test_with_averaging_too(self, store: MemoryStore) -> None:
        plan = make_plan(
            make_federation(
                training={"rounds": 3, "batch_size": 1},
                learners=[{"name": "a", "privacy": {**SETTINGS, "target_epsilon": 0.9}}, {"name": "b"}, {"name": "c"}],
            )
        )
        made = learners()
        play(store, plan, made)
        records = history(store, "r1")
        assert [[u.learner for u in r.updates] for r in records[1:]] == [["a", "b", "c"], ["a", "b", "c"], ["b", "c"]]
        assert records[3].dropped[0].code == "DP_BUDGET_EXCEEDED"
        assert made["a"].trained == 2

    def test_it_holds_across_recurring_runs(self, store: MemoryStore) -> None:
        play_collective(store, private_plan(target_epsilon=0.9), learners())
        made = learners()
        play_collective(store, private_plan("r2", target_epsilon=0.9), made)
        assert made["a"].trained == 0
        assert [r.dropped[0].code for r in history(store, "r2") if r.proposer == "a"] == ["DP_BUDGET_EXCEEDED"] * 3

    def test_what_is_published_is_in_the_ledger_wherever_it_is_killed(self) -> None:
        """Kill before and after every store call of a training: no update without its event, retries included."""
        plan = private_plan()
        prepared = MemoryStore()
        start = begin(prepared, plan, fresh)
        objects = {key: prepared.read(key).data for key in prepared.keys()}

        def begun(killed: int, *, after: bool) -> tuple[MemoryStore, HookedStore]:
            store = MemoryStore()
            for key, data in objects.items():
                store.create(key, data)
            return store, killing(store, killed, "after" if after else "before", real=False)

        def train(on: Store) -> Update | Dropped:
            return contribute(on, plan, "a", 1, start.weights, lambda: learners()["a"])

        counting = begun(-1, after=False)[1]
        train(counting)
        assert counting.count[0] >= 10
        for point in range(counting.count[0]):
            for after in (False, True):
                store, dying = begun(point, after=after)
                with pytest.raises(Killed):
                    train(dying)
                self._check_ledger(store)
                assert isinstance(train(store), Update)
                self._check_ledger(store)
                assert len(Budget(store, "a", PRIVACY).entries()) in (1, 2)

    @staticmethod
    def _check_ledger(store: MemoryStore) -> None:
        """Weights that anybody can read were written down before."""
        released = {key.rsplit("/", 1)[1] for key in store.keys("learners/a/proposals/")}
        written = {e.weights.removeprefix("sha256:") for e in Budget(store, "a", PRIVACY).entries()}
        assert released <= written

    def test_a_step_that_cannot_train_privately_does_not_train(self, store: MemoryStore) -> None:
        plan = private_plan()
        start = begin(store, plan, fresh)
        plain = PlusOneLearner(1.0)
        found = contribute(store, plan, "a", 1, start.weights, lambda: plain)
        assert isinstance(found, Dropped)
        assert "trains without differential privacy" in found.why
        assert plain.trained == 0


def test_the_event_of_a_training() -> None:
    training = make_federation(training={"rounds": 1, "batch_size": 16, "local_epochs": 3}).training
    assert training_event(training, PRIVACY, 194) == TrainingEvent(
        examples=194, batch_size=16, microbatches=50, noise_multiplier=1.5, steps=36, passes=3
    )
    short = make_federation(training={"rounds": 1, "batch_size": 16, "local_epochs": 0, "local_steps": 13}).training
    found = training_event(short, PRIVACY, 194)
    assert (found.steps, found.passes) == (13, 2)  # 12 batches a pass: an example may be seen twice
