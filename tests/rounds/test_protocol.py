"""The number of the protocol: this version and the one before speak to each other, and others are refused."""

from __future__ import annotations

import pytest

from fedpipe.errors import CorruptError, RoundError
from fedpipe.federation.federation import Federation
from fedpipe.rounds.beginning import begin, protocol_of, resumes
from fedpipe.rounds.beginning import make_plan as planned
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.history import history
from fedpipe.rounds.plan import Plan, Shards, read_plan
from fedpipe.rounds.protocol import check_spoken, common, spoken
from fedpipe.store import MemoryStore, objects
from tests.federations import PlusOneLearner, fresh, make_federation, play_round


@pytest.fixture(params=[1, 2, 5])
def protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(objects, "PROTOCOL", request.param)
    return int(request.param)


def test_this_version_and_the_one_before_are_spoken(protocol: int) -> None:
    assert spoken() == ((1,) if protocol == 1 else (protocol - 1, protocol))
    for number in spoken():
        check_spoken(number, "hospital-b")
    with pytest.raises(RoundError, match=r"speaks protocol \d+, and hospital-b speaks .*Upgrade fedpipe of hospital-b"):
        check_spoken(protocol + 1, "hospital-b")
    if protocol > 2:
        with pytest.raises(
            RoundError, match=r"speaks protocol 3, and hospital-b speaks 4 and 5\. .*of the coordinator"
        ):
            check_spoken(protocol - 2, "hospital-b")


def test_a_run_speaks_the_lowest_number_of_its_parties(protocol: int) -> None:
    assert common(()) == protocol
    assert common((protocol, protocol + 3)) == protocol
    assert common((protocol, max(1, protocol - 1))) == max(1, protocol - 1)
    assert common((1,)) == spoken()[0]  # a party that is older still refuses the run itself


def plan_of(federation: Federation, protocol: int = 0) -> Plan:
    return planned("r1", federation, "code", Shards(learners={}), protocol=protocol)


@pytest.mark.parametrize("number", [1, 2])
def test_all_manifests_of_a_run_have_its_number(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(objects, "PROTOCOL", 2)
    plan = plan_of(make_federation(("a", "b")), number)
    first = begin(store, plan, fresh)
    play_round(store, plan, 1, first.weights, {"a": PlusOneLearner(1), "b": PlusOneLearner(2)})
    close_round(store, plan, 1, first.weights)
    records = history(store, "r1")
    assert {record.format for record in records} == {number}
    assert {update.format for record in records for update in record.updates} == {number}


def test_a_run_that_resumes_keeps_its_number(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = make_federation(("a", "b"))
    plan = plan_of(federation)
    first = begin(store, plan, fresh)
    play_round(store, plan, 1, first.weights, {"a": PlusOneLearner(1), "b": PlusOneLearner(2)})
    close_round(store, plan, 1, first.weights)
    monkeypatch.setattr(objects, "PROTOCOL", 2)
    assert protocol_of(store, "r1", ()) == 1
    assert protocol_of(store, "new", ()) == 2
    assert resumes(store, "r1", federation, "code")
    monkeypatch.setattr(objects, "PROTOCOL", 3)
    with pytest.raises(RoundError, match=r"the run speaks protocol 1, and the coordinator speaks 2 and 3"):
        protocol_of(store, "r1", ())
    assert len(history(store, "r1")) == 2  # and can still be read


def test_a_number_of_the_future_cannot_be_read(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PROTOCOL", 2)
    digest = plan_of(make_federation(("a",))).put(store)
    monkeypatch.setattr(objects, "PROTOCOL", 1)
    with pytest.raises(CorruptError, match=r"unknown format 2\. Upgrade fedpipe"):
        read_plan(store, digest)
