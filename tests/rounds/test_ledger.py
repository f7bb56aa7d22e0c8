"""The ledger against those who write to the store: a rewritten or shorter one is found before the learner trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fedpipe.errors import CorruptError, InputError
from fedpipe.identity.signing import find_key, find_mark, make_key, public_key
from fedpipe.identity.statements import signed
from fedpipe.learners.contribute import contribute
from fedpipe.rounds import ledger as module
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.budget import Budget
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.history import history
from fedpipe.rounds.ledger import Entry, Ledger, find_marks, state_of_ledger
from fedpipe.rounds.manifests import Dropped, Record, Update
from fedpipe.rounds.plan import Plan
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import decode, encode
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan, play_round
from tests.rounds.test_budget import EVENT, PRIVACY, SETTINGS, WEIGHTS

TARGET = 4.0


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a learner whose process has seen no ledger yet."""
    monkeypatch.setattr(module, "_remember", lambda *_: None)


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    made = make_key()
    (tmp_path / "a.key").write_text(made)
    monkeypatch.setenv("FEDPIPE_KEYS", str(tmp_path))
    return made


def plan_of(run: str = "r1") -> Plan:
    federation = make_federation(
        training={"rounds": 99, "batch_size": 1, "start": "head"},
        learners=[{"name": "a", "privacy": {**SETTINGS, "target_epsilon": TARGET}}, {"name": "b"}, {"name": "c"}],
    )
    return make_plan(federation, run)


def learners() -> dict[str, Any]:
    return {name: PlusOneLearner(1.0, event=EVENT if name == "a" else None) for name in "abc"}


def played(store: MemoryStore, plan: Plan, number: int) -> Record:
    base = begin(store, plan, fresh).weights if number == 1 else history(store, plan.run)[-1].weights
    play_round(store, plan, number, base, learners())
    return close_round(store, plan, number, base)


def entries(store: MemoryStore) -> list[Entry]:
    names = sorted(store.keys("learners/a/ledger/"))
    return [decode(store.read(name).data, Entry, where=name) for name in names]


def write(store: MemoryStore, found: list[Entry]) -> None:
    """Replaces the ledger, as who writes anything below `learners/`."""
    for name in list(store.keys("learners/a/ledger/")):
        store.delete(name)
    for number, entry in enumerate(found, 1):
        store.create(keys.ledger("a", number), encode(entry))


def linked(found: list[Entry], sign: Callable[[Entry], Entry] = lambda entry: entry) -> list[Entry]:
    """Makes a chain of these entries, each as small as the first."""
    made: list[Entry] = []
    for number, entry in enumerate(found, 1):
        spent = replace(entry.spent, events=number)
        made.append(sign(replace(entry, spent=spent, previous=made[-1].head if made else None, signature=None)))
    return made


def test_each_entry_names_the_one_before_and_is_signed(store: MemoryStore, key: str) -> None:
    plan = plan_of()
    records = [played(store, plan, number) for number in (1, 2, 3)]
    found = entries(store)
    assert [entry.previous for entry in found] == [None, found[0].head, found[1].head]
    assert {entry.signature.key for entry in found if entry.signature} == {public_key(key)}
    assert [r.updates[0].ledger for r in records] == [entry.head for entry in found]
    assert all(update.ledger is None for record in records for update in record.updates[1:])


def _deleted(found: list[Entry]) -> list[Entry]:
    return []


def _shorter(found: list[Entry]) -> list[Entry]:
    return found[:-1]


def _without_the_first(found: list[Entry]) -> list[Entry]:
    return linked(found[1:])


def _swapped(found: list[Entry]) -> list[Entry]:
    return [*found[:1], found[2], found[1]]


def _smaller(found: list[Entry]) -> list[Entry]:
    return linked([replace(entry, event=replace(entry.event, noise_multiplier=99.0)) for entry in found])


def _signed_by_another(found: list[Entry]) -> list[Entry]:
    private = make_key()
    return linked(found, lambda entry: signed(entry, private))


def _of_the_first_format(found: list[Entry]) -> list[Entry]:
    return [replace(entry, format=1, previous=None, signature=None) for entry in found[:1]]


CHANGES = [
    _deleted, _shorter, _without_the_first, _swapped, _smaller, _signed_by_another, _of_the_first_format,
]  # fmt: skip


@pytest.mark.parametrize("other_run", [False, True], ids=["same run", "next run"])
@pytest.mark.parametrize("signs", [False, True], ids=["without key", "with key"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__[1:])
def test_a_ledger_that_was_changed_is_found_before_the_learner_trains(
    store: MemoryStore, request: pytest.FixtureRequest, change: Any, signs: bool, other_run: bool
) -> None:
    if signs:
        request.getfixturevalue("key")
    plan = plan_of()
    for number in (1, 2, 3):
        last = played(store, plan, number)
    write(store, change(entries(store)))
    number = 4
    if other_run:
        plan, number = plan_of("r2"), 1
        begin(store, plan, fresh)
    made = learners()["a"]
    if change is _signed_by_another and not signs:
        return  # heads do not depend on signatures, so nothing was changed
    found = contribute(store, plan, "a", number, last.weights, lambda: made)
    assert isinstance(found, Dropped)
    assert "privacy ledger of a" in found.why
    assert made.trained == 0


def test_the_budget_holds_however_often_the_ledger_is_deleted(store: MemoryStore, key: str) -> None:
    """64 trainings were possible, with an epsilon of 5.8."""
    plan, trained = plan_of(), 0
    for number in range(1, 20):
        trained += any(u.learner == "a" for u in played(store, plan, number).updates)
        write(store, [])
    assert trained == 1


@pytest.mark.parametrize("lost", ["records", "updates"])
def test_one_of_both_marks_is_enough(store: MemoryStore, lost: str) -> None:
    plan = plan_of()
    last = played(store, plan, 1)
    if lost == "updates":
        store.delete(keys.update("a", "r1", 1))
    else:
        store.replace(keys.record("r1", 1), encode(replace(last, updates=last.updates[1:])))
    assert [mark.events for mark in find_marks(store, "r1", 2, "a")] == [1]


def test_a_session_remembers_what_the_store_has_lost(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    Budget(store, "a", PRIVACY).charge(EVENT, run="r1", number=1, weights=WEIGHTS)
    Budget(store, "a", PRIVACY).spent()
    write(store, [])
    with pytest.raises(CorruptError, match="has 0 entries, but an earlier look at it names 1"):
        Budget(store, "a", PRIVACY).check(EVENT)
    Budget(MemoryStore(), "a", PRIVACY).check(EVENT)


class TestAKeyWithAMark:
    """Keys that are made when there is a ledger already come with its state."""

    def test_trusts_the_entries_before_it(self, store: MemoryStore, tmp_path: Path, key: str) -> None:
        for number in (1, 2):
            Budget(store, "a", PRIVACY).charge(EVENT, run="r1", number=number, weights=WEIGHTS)
        count, head = state_of_ledger(store, "a")
        assert count == 2
        new = make_key()
        (tmp_path / "a.key").write_text(new)
        with pytest.raises(CorruptError, match=r"entry 1 .* is not signed with this learner's key"):
            Ledger(store, "a").entries()
        (tmp_path / "a.key").write_text(f"{new} {count} {head}\n")
        assert find_key("a") == new
        assert find_mark("a") == (count, head)
        assert len(Ledger(store, "a").entries()) == 2
        Budget(store, "a", PRIVACY).charge(EVENT, run="r1", number=3, weights=WEIGHTS)
        assert len(Ledger(store, "a").entries()) == 3

    def test_finds_that_they_are_gone(self, store: MemoryStore, tmp_path: Path, key: str) -> None:
        Budget(store, "a", PRIVACY).charge(EVENT, run="r1", number=1, weights=WEIGHTS)
        (tmp_path / "a.key").write_text(f"{key} 1 {state_of_ledger(store, 'a')[1]}")
        write(store, [])
        with pytest.raises(CorruptError, match="has 0 entries, but the learner's key names 1"):
            Ledger(store, "a").entries()

    @pytest.mark.parametrize("mark", ["1", "x sha256:" + "0" * 64, "1 sha256:0", "1 2 3"])
    def test_that_is_malformed(self, tmp_path: Path, key: str, mark: str) -> None:
        (tmp_path / "a.key").write_text(f"{key} {mark}")
        with pytest.raises(InputError, match="malformed"):
            find_mark("a")


def test_a_ledger_of_an_earlier_version_goes_on(store: MemoryStore) -> None:
    """Its entries name no other; what follows them does."""
    for number in (1, 2):
        Budget(store, "a", PRIVACY).charge(EVENT, run="r1", number=number, weights=WEIGHTS)
    write(store, [replace(entry, format=1, previous=None) for entry in entries(store)])
    Budget(store, "a", PRIVACY).charge(EVENT, run="r1", number=3, weights=WEIGHTS)
    assert entries(store)[2].previous == entries(store)[1].head
    write(store, [*entries(store)[:2], replace(entries(store)[2], previous=None)])
    with pytest.raises(CorruptError, match="does not follow"):
        Ledger(store, "a").entries()


def test_an_update_of_which_round_counts() -> None:
    """Marks are looked for in the last update, wherever it is."""
    store, plan = MemoryStore(), plan_of()
    for number in (1, 2):
        played(store, plan, number)
    found = find_marks(store, "r1", 5, "a")
    assert [mark.events for mark in found] == [2, 2]
    assert isinstance(history(store, "r1")[2].updates[0], Update)
