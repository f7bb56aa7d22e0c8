"""Tricks that meet the agent itself: junk in the place of sessions, plans and boards, and plans that nobody approved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from fedpipe.rounds.plan import Plan
from fedpipe.sessions.attendance import Attendance
from fedpipe.sessions.current import Current, Opened
from fedpipe.sessions.presence import read_presence
from fedpipe.sites.agent import Agent, Decision
from fedpipe.sites.decisions import Decisions, approvals_of, journal_folder, journal_of
from fedpipe.sites.journal import entries_of
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import digest_of, encode, put_bytes
from tests.sites.plans import CODE, plan, site, training

LEARNERS = [{"name": "a"}, {"name": "b", "at": "site"}, {"name": "c"}]
HUGE = b'{"format":1,"sessions":[' + b" " * 2**27 + b"]}"
JUNK = {
    "empty": b"", "cut": b"{", "nested": b"[" * 100_000, "null": b"null", "no text": b"\xff\xfe",
    "a web page": b"<html>502 Bad Gateway</html>", "another format": b'{"format":99}', "no table": b"[1,2]",
    "an unknown key": b'{"format":1,"sessions":[],"policy":{}}', "without an end": HUGE,
    "a path in a name": b'{"sessions":[{"run":"../../etc","plan":"sha256:' + b"0" * 64 + b'"}]}',
    "a digest with a path": b'{"sessions":[{"run":"r1","plan":"sha256:../../state/b.key"}]}',
    "a million sessions": b'{"sessions":[' + b",".join([b'{"run":"r1","plan":"sha256:' + b"0" * 64 + b'"}'] * 9999) + b"]}",
}  # fmt: skip


def ours(**more: Any) -> Plan:
    return plan(learners=LEARNERS, **more)


class Ward:
    """The agent of a site with its policy, approvals and journal; it opens its data only when it attends a session."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        policy = {"data": str(folder / "rows.npz"), **settings.pop("policy", {})}
        self.site = site(folder, policy=policy, **settings)
        self.store, self.opened, self.now = MemoryStore("tests"), 0, 0.0
        journal = journal_of(self.site)
        self.decisions = Decisions(self.site, journal)
        self.actor = Agent(
            self.site, self.store, self.attend, decide=self.decide, note=journal.note, read=self.decisions.read,
            clock=lambda: self.now,
        ).run()  # fmt: skip

    def decide(self, given: Plan, _: Opened) -> Decision:
        made = self.decisions.decide(self.store, given)
        return Decision(made.verdict, made.why)

    def attend(self, given: Plan, opened: Opened) -> Generator[float, None, Counter[str]]:
        self.opened += 1
        attendance = Attendance(self.store, given, "b", opened.session, {}, clock=lambda: self.now)
        return (yield from attendance.run())

    def announce(self, *plans: Plan, digest: str = "") -> None:
        put_bytes(self.store, CODE)
        sessions = [Opened(run=one.run, plan=digest or one.put(self.store), job="job", since=self.now) for one in plans]
        self.store.replace(keys.CURRENT, encode(Current(sessions=tuple(sessions))))

    def looks(self, times: int = 3) -> tuple[str, str]:
        """Let the agent look some times, and return what it shows in the store."""
        for _ in range(times):
            self.now += next(self.actor)
        found = read_presence(self.store, "b")
        assert found is not None
        return found.state, found.text

    def notes(self, *events: str) -> list[str]:
        entries = entries_of(journal_folder(Path(self.site.state)))
        return [str(entry.fields.get("why", "")) for entry in entries if entry.event in events]


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
def test_junk_in_the_place_of_sessions(tmp_path: Path, junk: bytes) -> None:
    ward = Ward(tmp_path, approve="any")
    ward.store.replace(keys.CURRENT, junk)
    state, text = ward.looks()
    assert (state, ward.opened) == ("fails", 0)
    assert ward.notes("failed") == [text], "the reason is written down, once"
    ward.announce(ours())
    assert ward.looks()[0] == "attends", "the agent survives"
    assert ward.opened == 1


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[" * 100_000, CODE, b"null"], ids=["empty", "a table", "nested", "code", "null"]
)
def test_junk_in_the_place_of_a_plan(tmp_path: Path, data: bytes) -> None:
    ward = Ward(tmp_path, approve="any")
    ward.announce(ours(), digest=put_bytes(ward.store, data))
    state, text = ward.looks()
    assert (state, ward.opened) == ("fails", 0)
    assert text.startswith("cannot take part in run r1: ")
    assert len(ward.notes("refused")) == 1


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    ward = Ward(tmp_path, approve="any")
    ward.announce(ours(), digest=digest_of(b"elsewhere"))
    assert ward.looks()[0] == "fails"
    assert (ward.opened, len(ward.notes("refused"))) == (0, 1)


def test_the_plan_of_another_run_or_federation(tmp_path: Path) -> None:
    ward = Ward(tmp_path, approve="any")
    other = ours(name="other").put(ward.store)
    ward.announce(ours(), digest=other)
    assert ward.looks() == ("idle", "")
    ward.announce(ours(run="r2"), digest=ours(run="r1").put(ward.store))
    assert ward.looks() == ("idle", "")
    assert ward.opened == 0


def test_a_plan_waits_until_somebody_approves_it(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    ward.announce(ours())
    assert ward.looks() == ("waits", "waits for approval of the plan of run r1: nobody at the site has decided")
    assert (ward.opened, ward.notes("waits")) == (0, ["nobody at the site has decided"])
    approvals_of(ward.site).answer("", "approved")
    assert ward.looks()[0] == "attends"
    assert ward.opened == 1


def test_another_plan_below_the_name_of_an_approved_run(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    ward.announce(ours())
    ward.looks()
    approvals_of(ward.site).answer("", "approved")
    ward.announce(ours(training=training(batch_size=1, learning_rate=9.0)))
    assert ward.looks()[0] == "waits"
    assert ward.opened == 0


def test_a_plan_beyond_the_policy(tmp_path: Path) -> None:
    ward = Ward(tmp_path, approve="any", policy={"epochs": 2})
    ward.announce(ours(training=training(local_epochs=5)))
    why = "the plan trains 5 epochs a round; this site's policy allows 2"
    assert ward.looks() == ("refuses", f"refuses the plan of run r1: {why}")
    assert (ward.opened, ward.notes("refused")) == (0, [why])


def test_one_bad_plan_does_not_keep_the_site_from_another(tmp_path: Path) -> None:
    ward = Ward(tmp_path, approve="any", policy={"epochs": 2})
    ward.announce(ours(training=training(local_epochs=5)), ours(run="r2"))
    assert ward.looks() == ("attends", "attends run r2")


@pytest.mark.parametrize("make", [lambda: b"{", lambda: HUGE, lambda: b"[" * 100_000], ids=["cut", "huge", "nested"])
def test_junk_in_the_place_of_the_board(tmp_path: Path, make: Callable[[], bytes]) -> None:
    """The session is left, the reason is in the journal, and the agent waits for the next one."""
    ward = Ward(tmp_path, approve="any")
    ward.announce(ours())
    ward.store.replace(keys.board("r1"), make())
    state, text = ward.looks(6)
    assert state == "fails"
    assert text.startswith("left run r1: ")
    assert ward.notes("left")[0] == text
