"""Split and collective learning as pods: what only learners' own users of the store and keys show."""

from __future__ import annotations

import json
from collections.abc import Callable

from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.statements import check_signed
from fedpipe.rounds.history import history
from tests.e2e.sites import Site


def test_parties_of_a_cut_network_are_pods(site: Callable[..., Site]) -> None:
    """Each reads its rows and writes its parcels with rights of its own, and removes them when a round is over."""
    made = site(
        "cut", [{"name": "alice"}, {"name": "bob"}], start="split",
        algorithm={"name": "split", "label_party": "bob", "ids": "id", "align": "intersection"},
    )  # fmt: skip
    made.driver("cut").run({"run": "cut"}, until="coordinate")
    _, first, second = history(made.store, "cut")
    assert [(one.learner, one.rows, one.common) for one in first.aligned or ()] == [
        ("alice", 1797, 1797), ("bob", 1797, 1797),
    ]  # fmt: skip
    enrolled = read_enrolled(made.store)
    for statement in (*(first.aligned or ()), *first.updates, *second.updates):
        assert statement.signature is not None
        check_signed(statement, enrolled)
    assert second.metrics["loss"] < first.metrics["loss"]
    assert second.metrics["accuracy"] > 0.8
    left = [made.store.read(key).data for key in made.store.keys("learners/") if "/parcels/" in key]
    assert {json.loads(data.partition(b"\n")[0])["kind"] for data in left} == {"key"}


def test_voters_are_pods(site: Callable[..., Site]) -> None:
    names = ("hospital-a", "hospital-b", "hospital-c")
    made = site(
        "votes", [{"name": name} for name in names], start="collective", framework="numpy",
        algorithm={"name": "collective"},
    )  # fmt: skip
    made.driver("votes").run({"run": "votes"}, until="coordinate")
    records, enrolled = history(made.store, "votes"), read_enrolled(made.store)
    assert [record.proposer for record in records[1:]] == ["hospital-a", "hospital-b"]
    for record in records[1:]:
        assert tuple(ballot.learner for ballot in record.ballots) == names
        assert record.outcome is not None
        for ballot in record.ballots:
            assert ballot.signature is not None
            check_signed(ballot, enrolled)
    assert records[1].accepted, "the first proposal is better than weights that were never trained"
