"""Decisions of a site: written down before anything runs, shown to the coordinator, and made by its commands."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fedpipe.commands.site_decisions import noting
from fedpipe.commands.watch import watch
from fedpipe.errors import CorruptError, DroppedError, InputError, NotFoundError
from fedpipe.identity.enrolment import Enrolled, Enrolment
from fedpipe.identity.signing import make_key
from fedpipe.rounds.plan import Plan
from fedpipe.sessions.presence import Presence, put_presence
from fedpipe.sites.approval import Approval
from fedpipe.sites.audit import find_flaw
from fedpipe.sites.decisions import Decisions, approvals_of, journal_folder, journal_of, shown_decision, signer_in
from fedpipe.sites.journal import DAY, entries_of
from fedpipe.sites.site import Site, read_site
from fedpipe.store import LocalStore, MemoryStore, keys
from fedpipe.store.objects import canonical, digest_of, encode, find, put_bytes
from tests.cli.conftest import Result
from tests.sites.plans import CODE, PRIVACY, plan, site, stored, training

LEARNERS = [{"name": "a", "data": "a.npz"}, {"name": "b", "at": "site"}, {"name": "c", "data": "c.npz"}]
OTHER = b"def build():\n    return model(4)\n"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def decisions(given: Site) -> Decisions:
    return Decisions(given, journal_of(given))


def events(given: Site) -> list[tuple[str, str]]:
    return [(entry.event, str(entry.fields.get("why", ""))) for entry in entries_of(journal_folder(Path(given.state)))]


def test_each_decision_is_written_down_once(tmp_path: Path, store: MemoryStore) -> None:
    own = site(tmp_path, policy={"epochs": 2})
    deciding = decisions(own)
    for _ in range(3):
        assert deciding.decide(store, stored(store)).verdict == "waits"
        assert deciding.decide(store, stored(store, run="r2", training=training(local_epochs=5))).verdict == "refused"
    assert events(own) == [
        ("waits", "nobody at the site has decided"),
        ("refused", "the plan trains 5 epochs a round; this site's policy allows 2"),
    ]


def test_code_that_is_not_there_or_swapped(tmp_path: Path, store: MemoryStore) -> None:
    own = site(tmp_path, approve="any")
    deciding = decisions(own)
    with pytest.raises(NotFoundError):
        deciding.decide(store, plan())
    store.replace(keys.content(plan().code), OTHER)
    with pytest.raises(CorruptError):
        deciding.decide(store, plan())
    assert [event for event, _ in events(own)] == ["refused", "refused"]


def test_the_federation_of_the_site_and_no_other(tmp_path: Path, store: MemoryStore) -> None:
    own = site(tmp_path, federation="other", approve="any")
    made = decisions(own).decide(store, stored(store))
    assert (made.verdict, made.why) == ("refused", "the plan is of the federation 'tiny'; this site's is 'other'")


def test_the_coordinator_sees_the_last_decision(tmp_path: Path, store: MemoryStore) -> None:
    own = site(tmp_path)
    deciding = decisions(own)
    deciding.show(store, deciding.decide(store, stored(store)))
    shown = find(store, keys.approval("b"), Approval)
    assert shown is not None
    assert shown.shown.startswith("waits for approval since 20")
    assert shown.signature is not None
    assert shown.signature.key == own.public_key
    enrolled = Enrolled(learners={"b": Enrolment(key=own.public_key, since=1.0)})
    store.replace(keys.ENROLLED, encode(enrolled))
    assert shown_decision(store, "b") == shown
    forged = replace(shown, verdict="approved")
    store.replace(keys.approval("b"), encode(forged))
    assert shown_decision(store, "b") is None, "the operator of the store cannot speak for the site"
    store.replace(keys.approval("b"), encode(shown))
    before = store.read(keys.approval("b")).version
    deciding.show(store, deciding.decide(store, stored(store)))
    assert store.read(keys.approval("b")).version == before


def test_when_the_policy_pauses(tmp_path: Path, store: MemoryStore) -> None:
    own = site(tmp_path, policy={"rounds_a_day": 1}, approve="any")
    journal = journal_of(own)
    deciding = Decisions(own, journal)
    assert deciding.pause() == ""
    assert deciding.decide(store, stored(store)).verdict == "approved"
    assert deciding.pause() == ""
    journal.note("trained", round=1)
    assert deciding.pause() == "1 round ran in 24 hours; this site's policy allows 1"


def test_a_plan_that_is_refused_while_it_runs(tmp_path: Path, store: MemoryStore) -> None:
    own = site(tmp_path)
    deciding = decisions(own)
    digest = deciding.decide(store, stored(store)).plan
    assert deciding.pause().startswith("the site waits for approval since 20")
    approvals_of(own).answer("", "approved")
    assert deciding.pause() == ""
    approvals_of(own).answer(digest, "refused", "enough")
    assert deciding.pause() == "the site refused the plan: enough"


def test_nothing_is_decided_without_a_journal(tmp_path: Path) -> None:
    own = site(tmp_path)
    journal_folder(Path(own.state)).write_text("")
    with pytest.raises(InputError, match="the journal's folder cannot be written"):
        decisions(own)


class TestCommands:
    """`fedpipe site pending`, `approve`, `refuse`, `review`, `check` and `journal`, as a user types them."""

    @pytest.fixture
    def run(self, tmp_path: Path, fedpipe: Callable[..., Result]) -> Callable[..., Result]:
        (tmp_path / "site.yaml").write_text("store: store\nfederation: tiny\nname: b\n")
        return lambda *words: fedpipe("site", words[0], "-c", str(tmp_path / "site.yaml"), *words[1:])

    def ask(self, folder: Path, store: MemoryStore, given: Plan, code: bytes = CODE, **more: Any) -> str:
        put_bytes(store, code)
        return decisions(site(folder, **more)).decide(store, given).verdict

    def test_pending_and_approve(self, tmp_path: Path, store: MemoryStore, run: Callable[..., Result]) -> None:
        site(tmp_path)
        assert run("pending").out == "no plan waits\n"
        assert self.ask(tmp_path, store, plan()) == "waits"
        shown = run("pending").out
        assert "+def build():" in shown
        assert "training.rounds: absent -> 3" in shown
        assert "absent -> None" not in shown, "empty settings of the plan are left out"
        assert "for run r1 of tiny at memory://" in shown
        done = run("approve", "--why", "ticket 4711")
        assert done.code == 0, done.err
        assert done.out.startswith("approved sha256:")
        assert self.ask(tmp_path, store, plan()) == "approved"
        assert self.ask(tmp_path, store, plan(OTHER, training=training(batch_size=2)), OTHER) == "waits"
        waiting = json.loads(run("pending", "--json").out)
        assert [line for line in waiting[0]["code"].splitlines() if line[0] in "+-"][2:] == [
            "-    return model(3)", "+    return model(4)",
        ]  # fmt: skip
        assert waiting[0]["settings"] == ["training.batch_size: 1 -> 2"]
        done = run("refuse", waiting[0]["digest"][7:15], "--why", "not now")
        assert done.code == 0
        assert self.ask(tmp_path, store, plan(OTHER, training=training(batch_size=2)), OTHER) == "refused"
        assert run("pending").out == "no plan waits\n"

    def test_code_cannot_steer_the_terminal(
        self, tmp_path: Path, store: MemoryStore, run: Callable[..., Result]
    ) -> None:
        code = b"def build():  # \x1b[2J\x1b]0;title\x07 [bold]x[/bold] \x9b31m \xe2\x80\xae\n    return 1\r\n"
        self.ask(tmp_path, store, plan(code), code)
        shown = run("pending").out
        assert "[bold]x[/bold]" in shown
        assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e", "\r"}

    def test_reviewers(
        self, tmp_path: Path, store: MemoryStore, run: Callable[..., Result], fedpipe: Callable[..., Result]
    ) -> None:
        made = [fedpipe("site", "reviewer", str(tmp_path / f"{name}.key")) for name in ("ann", "ben")]
        keys_made = [done.out.strip() for done in made]
        listed = "\n".join(f"    - '{key}'" for key in keys_made)
        text = (
            f"store: store\nfederation: tiny\nname: b\napprove:\n  by: signed-by\n  needed: 2\n  reviewers:\n{listed}\n"
        )
        (tmp_path / "site.yaml").write_text(text)
        settings = {"approve": {"by": "signed-by", "needed": 2, "reviewers": keys_made}}
        assert self.ask(tmp_path, store, plan(), **settings) == "waits"
        assert run("review", "--key", str(tmp_path / "ann.key")).code == 0
        assert "signed by 1 of the reviewers" in run("pending").out
        done = run("approve")
        assert done.code == 2
        assert "Add the digest to approve.plans, or let reviewers sign it" in done.err
        assert run("review", "--key", str(tmp_path / "ben.key"), "--out", str(tmp_path / "ben.json")).code == 0
        assert self.ask(tmp_path, store, plan(), **settings) == "waits"
        assert run("approve", "--review", str(tmp_path / "ben.json")).out.startswith("the reviews are kept")
        assert self.ask(tmp_path, store, plan(), **settings) == "approved"
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "text").write_text("approved")
        for name in ("none.json", "pipe", "text", "."):
            done = run("approve", "--review", str(tmp_path / name))
            assert (done.code, "Name a file that `fedpipe site review --out FILE` wrote." in done.err) == (2, True), (
                name
            )
        done = run("review", "--key", str(tmp_path / "none.key"))
        assert (done.code, "Make one: fedpipe site reviewer FILE" in done.err) == (2, True)
        assert fedpipe("site", "reviewer", str(tmp_path / "ann.key")).code == 2, "a key is never overwritten"

    def test_check(self, tmp_path: Path, run: Callable[..., Result]) -> None:
        (tmp_path / "site.yaml").write_text("store: store\nfederation: tiny\nname: b\npolicy: {epochs: 2}\n")
        (tmp_path / "federation.yaml").write_text(
            "name: tiny\nlearners: [{name: a}, {name: b}]\ntraining: {rounds: 3, batch_size: 8, local_epochs: 5}\n"
            "data: {uri: x.npz}\n"
        )
        done = run("check", str(tmp_path / "federation.yaml"))
        assert (done.code, done.out) == (1, "the plan trains 5 epochs a round; this site's policy allows 2\n")
        (tmp_path / "plan.json").write_bytes(canonical(plan(training=training(local_epochs=3))))
        done = run("check", str(tmp_path / "plan.json"))
        assert (done.code, done.out) == (1, "the plan trains 3 epochs a round; this site's policy allows 2\n")
        (tmp_path / "plan.json").write_bytes(canonical(plan()))
        done = run("check", str(tmp_path / "plan.json"))
        assert done.code == 0
        assert done.out.splitlines() == [
            "the policy of this site allows it:",
            "  a round: 1 epochs in batches of 1, with at least 2 learners",
            "  privacy: none; the coordinator sees single updates",
            "  resources: all cores, all memory, 0 GPUs",
            "  leaves: weights, the usual metrics, counts by class, of at least 0 examples",
        ]
        done = run("check", str(tmp_path / "none.yaml"))
        assert (done.code, "Name a federation file, or a plan from the store." in done.err) == (2, True)

    def test_journal(self, tmp_path: Path, store: MemoryStore, run: Callable[..., Result]) -> None:
        self.ask(tmp_path, store, plan())
        run("refuse", "--why", "no [red]")
        assert run("journal", "--verify").out == "the journal is whole\n"
        shown = run("journal").out.splitlines()
        assert [line.split()[3] for line in shown] == ["waits", "refused"]
        assert "why no [red]" in shown[1]
        entries = [json.loads(line) for line in run("journal", "--json", "--since", "1h").out.splitlines()]
        assert [entry["event"] for entry in entries] == ["waits", "refused"]
        for age in ("30min", "1.5h", "2d", "1w", "2026-01-01"):
            assert run("journal", "--since", age).out.splitlines() == shown
        assert run("journal", "--since", "2099-01-01").out == ""
        done = run("journal", "--since", "yesterday")
        assert (done.code, "Write 2026-11-28" in done.err) == (2, True)
        path = next((tmp_path / "state" / "journal").glob("*.jsonl"))
        path.write_bytes(path.read_bytes().replace(b"nobody", b"NOBODY"))
        done = run("journal", "--verify")
        assert done.code == 3
        assert done.out == f"the journal was changed: {path.name}, line 1: entry 1 was altered\n"
        assert json.loads(run("journal", "--verify", "--json").out)["flaw"]["line"] == 1


def test_mistakes_of_a_policy(tmp_path: Path) -> None:
    for more, message in (
        ({"policy": {"epoch": 1}}, r"site\.yaml: policy: unknown key 'epoch'\. Did you mean 'epochs'\?"),
        ({"policy": {"leaves": {"tensorbord": True}}}, r"unknown key 'tensorbord'\. Did you mean 'tensorboard'\?"),
        ({"policy": {"hours": "night"}}, r"site\.yaml: policy\.hours: is not a part of the day\. Write it as '18:00-06:00'"),
        ({"policy": {"columns": {"age": "numbr"}}}, r"policy\.columns\.age: Invalid enum value 'numbr'\. Valid: "),
        ({"policy": {"epochs": 0}}, r"policy\.epochs: Expected `int` >= 1"),
        ({"policy": {"cpu": "many"}}, r"policy\.cpu: is not a number of cores"),
        ({"approve": {"by": "signed-by", "revewers": []}}, r"approve: unknown key 'revewers'\. Did you mean 'reviewers'"),
        ({"approve": {"by": "signed-by"}}, r"approve\.needed: 1 of 0 reviewers cannot sign"),
        ({"approve": {"by": "listed"}}, r"approve\.plans: lists no plan"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            site(tmp_path, **more)


def test_privacy_of_the_plan_and_of_the_policy(tmp_path: Path, store: MemoryStore) -> None:
    own = site(tmp_path, policy={"privacy": {"target_epsilon": 2}}, approve="any")
    made = decisions(own).decide(store, stored(store, privacy=PRIVACY))
    assert made.why.endswith("target_epsilon is 4, the most is 2")


def test_decisions_and_journal_outlast_the_keys_of_the_site(tmp_path: Path, store: MemoryStore) -> None:
    own = site(tmp_path)
    decisions(own).decide(store, stored(store))
    approvals_of(own).answer("", "approved")
    before = own.public_key
    (tmp_path / "state" / "b.key").write_text(make_key())
    renewed = site(tmp_path)
    assert renewed.public_key != before
    assert decisions(renewed).decide(store, stored(store)).verdict == "approved"
    assert find_flaw(journal_folder(Path(renewed.state)), signer_in(tmp_path / "state").public) is None
    assert (tmp_path / "state" / "decisions.key").stat().st_mode & 0o777 == 0o600


def test_joining_is_in_the_journal(tmp_path: Path, fedpipe: Callable[..., Result]) -> None:
    mistyped = fedpipe("site", "join", str(tmp_path / "none.yaml"), "-c", str(tmp_path / "site.yaml"))
    assert (mistyped.code, (tmp_path / "state").exists()) == (2, False)
    (tmp_path / "none.yaml").write_text("federation: tiny\n")
    done = fedpipe("site", "join", str(tmp_path / "none.yaml"), "-c", str(tmp_path / "site.yaml"))
    assert done.code == 2
    assert [entry.event for entry in entries_of(tmp_path / "state" / "journal")] == ["not-joined"]
    assert "not-joined" in fedpipe("site", "journal", "-c", str(tmp_path / "site.yaml")).out, "without a site.yaml too"
    assert fedpipe("site", "journal", "--verify", "-c", str(tmp_path / "site.yaml")).out == "the journal is whole\n"


def test_watch_shows_since_when_a_site_waits(tmp_path: Path) -> None:
    """`fedpipe watch` shows a waiting site, and not a silent learner."""
    given, own = plan(learners=LEARNERS), site(tmp_path)
    folder = LocalStore(tmp_path / "store").below("tiny")
    put_bytes(folder, CODE)
    deciding = decisions(own)
    deciding.show(folder, deciding.decide(folder, given))
    put_presence(folder, Presence(learner="b", state="waits", text="waits"))
    folder.replace(keys.plan("r1"), encode(given))
    source = {"name": "tiny", "learners": LEARNERS, "training": {"rounds": 1, "batch_size": 1}}
    events = itertools.islice(watch({**source, "store": str(tmp_path / "store")}, "r1", wait=True, again=0.01), 4)
    assert "b: waits for approval since 20" in "; ".join(str(seen) for seen in events)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("{data: rows.csv, columns: {ages: number}}",
         "there is no column 'ages', which the policy names. Did you mean 'age'?"),
        ("{data: rows.csv, columns: {sex: number}}", "column 'sex', row 1 (line 2): 'f' is not a number"),
        ("{data: rows.csv, least_examples: 3}", "there are 2 rows that the policy allows, and it needs 3"),
        ("{data: none.csv}", "site.yaml: policy.data: there is no file or folder"),
        ("{data: rows.csv, hours: 18-6}", "policy.hours: is not a part of the day. Write it as '18:00-06:00', in quotes."),
        ("{data: none.csv, least_examples: 3}", "policy.data: there is no file or folder"),
        ("{data: rows.csv, epoch: 3}", "site.yaml: policy: unknown key 'epoch'. Did you mean 'epochs'?"),
        ("{data: rows.csv}", "/journal: the journal's folder cannot be written: File exists"),
    ],
)  # fmt: skip
def test_an_agent_that_cannot_start(tmp_path: Path, fedpipe: Callable[..., Result], policy: str, message: str) -> None:
    """One sentence with the remedy, and exit code 2, before anything is asked of the store."""
    (tmp_path / "rows.csv").write_text("age,sex\n61,f\n17,m\n")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "journal").write_text("")
    (tmp_path / "site.yaml").write_text(f"store: store\nfederation: tiny\nname: b\npolicy: {policy}\n")
    done = fedpipe("site", "run", "-c", str(tmp_path / "site.yaml"))
    assert done.code == 2
    assert message in done.err
    assert "\n" not in done.err
    assert not (tmp_path / "store").exists()
    assert not list((tmp_path / "state").glob("scratch/*"))


def test_content_beyond_the_bytes_of_a_day_stays(tmp_path: Path) -> None:
    """Also within a round. Statements leave, so that nobody waits for the site."""
    deciding = decisions(site(tmp_path, policy={"bytes_a_day": "1Ki"}))
    weights = keys.content(digest_of(b"weights"), "b")
    deciding.note("sent", object=weights, bytes=1000)
    assert deciding.pause() == ""
    with pytest.raises(DroppedError, match=r"1100 bytes would have left in 24 hours; this site's policy allows 1Ki"):
        deciding.note("sent", object=weights, bytes=100)
    assert "would have left in 24 hours" in deciding.pause(), "so it does not train in vain again"
    deciding.note("sent", object=keys.answer("b", "r1", 1, "dropped"), bytes=100)
    noted = [(entry.event, entry.fields["bytes"]) for entry in entries_of(tmp_path / "state" / "journal")]
    assert noted == [("sent", 1000), ("refused", 100), ("sent", 100)]


def test_an_object_too_large_for_the_day_pauses_its_plan_for_a_day(tmp_path: Path, store: MemoryStore) -> None:
    own = site(tmp_path, policy={"bytes_a_day": "1Ki"}, approve="any")
    now = [1000 * DAY]
    deciding = Decisions(own, journal_of(own, clock=lambda: now[0]), clock=lambda: now[0])
    large = {"object": keys.content(digest_of(b"weights"), "b"), "bytes": 5000}
    deciding.decide(store, stored(store))
    with pytest.raises(DroppedError):
        deciding.note("sent", **large)
    deciding.decide(store, stored(store))
    assert "5000 bytes would have left" in deciding.pause(), "the same plan has the same object"
    deciding.decide(store, stored(store, training=training(rounds=1)))
    assert deciding.pause() == "", "another plan may have smaller ones"
    with pytest.raises(DroppedError):
        deciding.note("sent", **large)
    now[0] += DAY - 1
    assert deciding.pause()
    now[0] += 2
    assert deciding.pause() == ""


def test_a_command_before_the_agent_does_not_hide_that_the_journal_is_gone(tmp_path: Path) -> None:
    """Such as `site rotate`, or joining again."""
    site(tmp_path)
    (tmp_path / "state" / "membership.json").write_text("{}")
    noting(tmp_path / "site.yaml")("asked")
    assert [entry.event for entry in entries_of(tmp_path / "state" / "journal")] == ["missing", "asked"]


def test_a_journal_that_is_gone_is_found(tmp_path: Path, fedpipe: Callable[..., Result]) -> None:
    (tmp_path / "site.yaml").write_text("store: store\nfederation: tiny\nname: b\n")
    verify = ("site", "journal", "--verify", "-c", str(tmp_path / "site.yaml"))
    assert fedpipe(*verify).code == 0, "nothing has happened here"
    site(tmp_path)
    (tmp_path / "state" / "agent.json").write_text("{}")
    done = fedpipe(*verify)
    assert (done.code, "journal: it is missing, although this site has joined or trained" in done.out) == (3, True)
    own = journal_of(read_site(tmp_path / "site.yaml"))
    assert [entry.event for entry in entries_of(own.folder)] == ["missing"], "a new one says so"
    own.note("started")
    for path in own.folder.iterdir():
        path.unlink()
    with pytest.raises(CorruptError, match="the journal ends with entry 0, and had 2 before"):
        own.note("sent")
