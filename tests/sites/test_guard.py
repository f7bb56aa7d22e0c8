"""Requests of the code of a model: the results of its session, as the policy lets them leave, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fedpipe.data.statistics import ColumnReport, Report
from fedpipe.errors import InputError, StoreError
from fedpipe.identity.signing import Signature
from fedpipe.identity.statements import content_of
from fedpipe.rounds import manifests
from fedpipe.rounds.accounting import TrainingEvent
from fedpipe.rounds.evaluation import EMPTY_TEST, NO_LABELS, Score
from fedpipe.rounds.ledger import Entry
from fedpipe.rounds.manifests import Aligned, Ballot, Dropped, Scores, Spent, Update
from fedpipe.rounds.parcels import Parcel
from fedpipe.rounds.releases import REASON_STAYS
from fedpipe.rounds.timings import Timing
from fedpipe.sessions.current import Opened
from fedpipe.sites.guard import Guard
from fedpipe.sites.site import Site, parse_site
from fedpipe.store import keys
from fedpipe.store.held import Place, Request
from fedpipe.store.objects import digest_of, encode

DIGEST = digest_of(b"")
EMPTY = Signature(key="0" * 64, time=1.0, value="0" * 128)
SPENT = Spent(
    events=3, epsilon_poisson=1.5, epsilon_unamplified=None, delta=1e-5, target_epsilon=4.0, sampling="poisson"
)
UPDATE = Update(
    federation="tiny", run="r1", round=1, learner="s", base=DIGEST, weights=DIGEST, size=1, examples=40,
    metrics={"loss": 0.5}, spent=SPENT,
)  # fmt: skip
BALLOT = Ballot(
    federation="tiny", run="r1", round=2, learner="s", base=DIGEST, candidate=DIGEST, approve=False,
    current=Scores(vote=manifests.Tested(examples=5, metrics={"loss": 1.0})), proposed=Scores(),
)  # fmt: skip
SCORE = Score(learner="s", weights=DIGEST, examples=40, metrics={"loss": 0.5}, states=((20.0, 40.0),))
REPORT = Report(
    learner="s", examples=40, columns=(ColumnReport(name="sex", kind="category", missing=0, categories={"f": 40}),)
)
PARCEL = Parcel(
    federation="tiny", run="r1", session="s", round=1, attempt=1, base=DIGEST, plan=DIGEST, kind="rows", number=0,
    learner="s", to="t", digest=DIGEST,
)  # fmt: skip
ALIGNED = Aligned(
    federation="tiny", run="r1", learner="s", base=DIGEST, plan=DIGEST, session="s", attempt=1, rows=40, common=30,
    others={"t": 50}, personal=DIGEST,
)  # fmt: skip
DROPPED = Dropped(learner="s", why=REASON_STAYS)
TIMING = Timing(step="train", learner="s", round=1, started=1.0, seconds=2.0)
HERE = Place("s3://b/p", prefix="tiny")


class Desk:
    """A guard, and the entries of its journal."""

    def __init__(self, folder: Path, **policy: Any) -> None:
        self.noted: list[tuple[str, dict[str, Any]]] = []
        content = {"store": "s3://b/p?endpoint=http://h", "federation": "tiny", "name": "s", "policy": policy}
        site = replace(parse_site(content, folder, where="site.yaml"), store="s3://b/p")
        assert isinstance(site, Site)
        self.guard = Guard(
            site, Opened(run="r1", plan=DIGEST), lambda event, **fields: self.noted.append((event, fields))
        )

    def send(self, key: str, statement: Any, op: str = "create", place: Place = HERE) -> None:
        data = statement if isinstance(statement, bytes) else encode(statement)
        self.guard.check(Request(op, place, key), len(data), data)  # type: ignore[arg-type]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


ALLOWED: list[tuple[str, Any]] = [
    (keys.update("s", "r1", 1), UPDATE), (keys.ballot("s", "r1", 2), BALLOT), (keys.statistics("s", "r1"), REPORT),
    (keys.score("s", "r1"), SCORE), (keys.score("s", "r1", earlier=True), SCORE),
    (keys.answer("s", "r1", 3, keys.note("dropped", 2)), DROPPED), (keys.answer("s", "r1", 3, "absent"), DROPPED),
    (keys.timing("r1", 1, "train", "s"), TIMING), (keys.content(DIGEST, "s"), b"weights"),
    (keys.content(DIGEST, "s", "proposals"), b"weights"), (keys.answer("s", "r1", 0, keys.ALIGNED), ALIGNED),
]  # fmt: skip


@pytest.mark.parametrize(("key", "statement"), ALLOWED, ids=[key for key, _ in ALLOWED])
def test_results_of_the_session(desk: Desk, key: str, statement: Any) -> None:
    desk.send(key, statement)
    ((event, fields),) = desk.noted
    data = statement if isinstance(statement, bytes) else encode(statement)
    assert (event, fields["object"], fields["bytes"]) == ("sent", key, len(data))
    if not isinstance(statement, bytes):
        assert fields["digest"] == digest_of(data)


def test_an_update_is_in_the_journal_with_its_numbers(desk: Desk) -> None:
    desk.send(keys.update("s", "r1", 1), UPDATE)
    fields = desk.noted[0][1]
    assert (fields["round"], fields["examples"], fields["metrics"]) == (1, 40, {"loss": 0.5})
    assert (fields["weights"], fields["epsilon"]) == (DIGEST, 1.5)


@pytest.mark.parametrize(
    ("op", "key"),
    [
        ("replace", keys.presence("s")), ("replace", keys.approval("s")), ("replace", keys.sign("s", "r1")),
        ("create", keys.update("t", "r1", 1)), ("create", keys.update("s", "r2", 1)), ("replace", keys.board("r1")),
        ("swap", keys.HEAD), ("create", "learners/s/rows.csv"), ("upload", "learners/s/objects/rows"),
        ("replace", keys.shard("s")), ("create", "learners/s/runs/r1/1/../../../../HEAD"),
        ("delete", keys.update("s", "r1", 1)), ("keys", "learners/s/"), ("entries", ""), ("folders", ""), ("probe", ""),
        ("anything", "x"), ("upload", keys.update("s", "r1", 1)), ("create", keys.events("r1", 1, "s")),
        ("create", keys.answer("s", "r1", 1, "masked")), ("create", keys.answer("s", "r1", 1, "keys")),
        ("create", keys.answer("s", "r1", 1, "patients")), ("create", keys.update("s", "r1", 1) + "\n"),
    ],
)  # fmt: skip
def test_other_requests_are_refused_and_noted(desk: Desk, op: str, key: str) -> None:
    with pytest.raises(StoreError, match=r"the site does not allow its code to"):
        desk.send(key, UPDATE, op)
    assert [event for event, _ in desk.noted] == ["refused"]


@pytest.mark.parametrize("place", [Place("s3://b/p", prefix="other"), Place("s3://b/other", prefix="tiny"), None])
def test_other_places(desk: Desk, place: Any) -> None:
    with pytest.raises(StoreError, match=r"does not allow"):
        desk.send(keys.update("s", "r1", 1), UPDATE, place=place)


FORGED: list[tuple[str, Any]] = [
    (keys.update("s", "r1", 1), replace(UPDATE, learner="t")),
    (keys.update("s", "r1", 1), replace(UPDATE, run="r2")),
    (keys.update("s", "r1", 1), replace(UPDATE, federation="other")),
    (keys.update("s", "r1", 1), replace(UPDATE, metrics={"loss": 1.0, "patient_4711": 1.0})),
    (keys.update("s", "r1", 1), replace(UPDATE, tested=manifests.Tested(examples=1, metrics={"x1": 1.0}))),
    (keys.update("s", "r1", 1), BALLOT),
    (keys.answer("s", "r1", 0, keys.ALIGNED), replace(ALIGNED, learner="t")),
    (keys.update("s", "r1", 1), b"rows of patients"),
    (keys.update("s", "r1", 1), encode(UPDATE)[:-1] + b',"rows":[1,2]}'),
    (keys.ballot("s", "r1", 2), replace(BALLOT, why="patient 4711")),
    (keys.score("s", "r1"), replace(SCORE, metrics={"patient_4711": 1.0})),
    (keys.score("s", "r1"), replace(SCORE, uncounted={"": "patient 4711"})),
    (keys.answer("s", "r1", 1, "dropped"), replace(DROPPED, why="patient 4711")),
    (keys.timing("r1", 1, "train", "s"), b'{"step":"train","rows":[1,2]}'),
    (keys.statistics("s", "r1"), replace(REPORT, why="row 3: 'patient 4711'")),
]


@pytest.mark.parametrize(("key", "statement"), FORGED)
def test_statements_with_more_than_the_policy_lets_leave(desk: Desk, key: str, statement: Any) -> None:
    """The process that trains could change fedpipe's own functions, so the agent looks again."""
    with pytest.raises(StoreError, match=r"the site does not allow its code to send"):
        desk.send(key, statement)
    assert [event for event, _ in desk.noted] == ["refused"]
    assert "the code of the model wanted to send" in desk.noted[0][1]["why"]


def test_too_few_examples(tmp_path: Path) -> None:
    desk = Desk(tmp_path, leaves={"examples": 41})
    for key, statement in ((keys.update("s", "r1", 1), UPDATE), (keys.statistics("s", "r1"), REPORT)):
        with pytest.raises(StoreError, match=r"with more than its policy lets leave"):
            desk.send(key, statement)
    desk.send(keys.update("s", "r1", 1), replace(UPDATE, metrics={}))


def test_event_files_leave_if_the_policy_says_so(tmp_path: Path) -> None:
    Desk(tmp_path, leaves={"tensorboard": True}).send(keys.events("r1", 1, "s"), b"points")


def test_messages_to_other_parties_leave_if_the_policy_says_so(desk: Desk, tmp_path: Path) -> None:
    key = keys.parcel("s", "0" * 64)
    open_desk = Desk(tmp_path, leaves={"activations": True})
    open_desk.send(key, b"arrays")
    assert [event for event, _ in open_desk.noted] == ["sent"]
    with pytest.raises(StoreError, match="a message to another party"):
        desk.send(key, b"arrays")
    desk.guard.check(Request("delete", HERE, key), 0, b"")
    for text in (b"fedpipe exchange\ntiny/r1", b"fedpipe secret\ntiny/r1/s/0/1/base/plan"):
        open_desk.guard.check_statement(text)
        with pytest.raises(InputError, match="does not sign"):
            desk.guard.check_statement(text)
    for text in (
        b"fedpipe exchange\ntiny/r2",
        b"fedpipe exchange\ntiny/r11",
        b"fedpipe secrets\ntiny/r1",
        b"fedpipe exchange\n\xff",
    ):
        with pytest.raises(InputError, match="does not sign"):
            open_desk.guard.check_statement(text)


def test_content_that_is_read_is_noted(desk: Desk) -> None:
    key = keys.content(DIGEST)
    for request in (Request("open", HERE, key), Request("read", HERE, keys.board("r1")), Request("piece", None, "")):
        desk.guard.check(request, 0, b"")
    assert desk.noted == [], "nothing was read yet"
    desk.guard.read(Request("open", HERE, key), 7)
    desk.guard.read(Request("read", HERE, keys.board("r1")), 9)
    assert desk.noted == [("read", {"object": key, "bytes": 7})]


def signed_bytes(statement: Any, place: str = "") -> bytes:
    return content_of(statement, EMPTY, place)


class TestSignatures:
    """The agent signs for its code what it would send, and nothing else."""

    @pytest.mark.parametrize(
        ("statement", "place"),
        [
            (UPDATE, ""),
            (BALLOT, ""),
            (SCORE, "tiny/r1"),
            (REPORT, "tiny/r1"),
            (PARCEL, ""),
            (ALIGNED, ""),
            (Score(learner="s", weights=DIGEST, why=EMPTY_TEST), "tiny/r1"),
            (Score(learner="s", weights=DIGEST, why=NO_LABELS), "tiny/r1"),
        ],
    )
    def test_own_statements(self, desk: Desk, statement: Any, place: str) -> None:
        desk.guard.check_statement(signed_bytes(statement, place))

    @pytest.mark.parametrize(
        ("statement", "place"),
        [
            (replace(UPDATE, learner="t"), ""), (replace(UPDATE, run="r2"), ""), (SCORE, "tiny/r2"),
            (SCORE, "other/r1"), (replace(UPDATE, metrics={"patient_4711": 1.0}), ""),
            (replace(BALLOT, why="patient 4711"), ""), (replace(PARCEL, why="patient 4711"), ""),
        ],
    )  # fmt: skip
    def test_forged_ones(self, desk: Desk, statement: Any, place: str) -> None:
        with pytest.raises(InputError, match=r"the site does not"):
            desk.guard.check_statement(signed_bytes(statement, place))

    @pytest.mark.parametrize(
        "data",
        [b"", b"update\n{}", b"fedpipe \n{}", b"fedpipe join\n{}", b"fedpipe approval\n{}", b"fedpipe journal\n{}",
         b"fedpipe decision of a site\n{}", b"fedpipe agreement to a sum\n{}", b"fedpipe reveal of a sum\n{}",
         b"fedpipe update\n{}", b"fedpipe update\nrows", b"fedpipe update", b"fedpipe roster\n{}"],
    )  # fmt: skip
    def test_anything_else(self, desk: Desk, data: bytes) -> None:
        with pytest.raises(InputError, match=r"the site does not"):
            desk.guard.check_statement(data)


def test_an_entry_of_the_ledger(desk: Desk) -> None:
    event = TrainingEvent(**dict.fromkeys(TrainingEvent.__struct_fields__, 1))
    entry = Entry(learner="s", run="r1", round=1, weights=DIGEST, event=event, spent=SPENT)
    desk.send(keys.ledger("s", 3), entry)
    desk.guard.check_statement(signed_bytes(entry))
    with pytest.raises(StoreError):
        desk.send(keys.ledger("s", 3), replace(entry, learner="t"))


def test_no_more_content_than_models_of_this_size_have(desk: Desk) -> None:
    """Or code could send the data themselves, as an object that nobody asked for."""
    desk.guard.allow(base=2**20)
    key, most = keys.content(DIGEST, "s"), 24 * 2**20
    desk.guard.check(Request("upload", HERE, key), most, b"")
    with pytest.raises(StoreError, match="beyond what a model of this size needs"):
        desk.guard.check(Request("upload", HERE, key), 1, b"")
    desk.guard.allow(base=0)
    desk.guard.check(Request("upload", HERE, key), 1, b"")


def test_no_more_objects_than_an_answer_has(desk: Desk) -> None:
    """Their names could carry data. That holds also where the size of the model is unknown."""
    desk.guard.allow(base=None)
    desk.guard.check(Request("upload", HERE, keys.content(DIGEST, "s", "personal")), 2**40, b"")
    for number in range(255):
        desk.send(keys.timing("r1", 1, f"x{number}", "s"), replace(TIMING, step=f"x{number}"))
    with pytest.raises(StoreError, match="beyond what a model of this size needs"):
        desk.send(keys.timing("r1", 1, "train", "s"), TIMING)
