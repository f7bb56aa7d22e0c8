"""Sites join, are refused and rotate their keys: by the commands, in folders and on real stores."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
import yaml

from fedpipe.commands.admission import accept, attend, refuse, requests
from fedpipe.commands.identities import enroll, revoke
from fedpipe.commands.invitations import invite, withdraw
from fedpipe.commands.joining import join, rotate
from fedpipe.errors import InputError, StoreError, StoreUnavailableError
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.roster import read_roster
from fedpipe.identity.signing import make_key, public_key, signer_of
from fedpipe.identity.statements import signed_with
from fedpipe.sites.approval import Approval
from fedpipe.sites.audit import find_flaw
from fedpipe.sites.decisions import approvals_of, journal_folder, signer_in
from fedpipe.sites.invitation import read_invitation
from fedpipe.sites.joining import make_rotation
from fedpipe.sites.journal import entries_of
from fedpipe.sites.membership import SiteKeys, keys_of, opener_of
from fedpipe.sites.site import Site, read_site
from fedpipe.store import Store, keys, open_store
from fedpipe.store.base import Credentials
from fedpipe.store.concealment import changed_environment
from fedpipe.store.credentials import read_mounted
from fedpipe.store.files import write_whole
from fedpipe.store.lent import Lent
from fedpipe.store.network import BUNDLES
from fedpipe.store.objects import canonical, digest_of
from fedpipe.store.users import Users
from tests import servers
from tests.store.surroundings import ForwardProxy, make_certificates

ROOT = Credentials(servers.ACCESS_KEY, servers.SECRET_KEY)
NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}


def write_file(folder: Path, store: str, *, name: str = "tiny", secure: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "name": name, "store": store, "learners": [{"name": one} for one in "abc"], "data": {"uri": "x.npz"},
        "training": {"rounds": 2, "batch_size": 1},
        **({"algorithm": {"name": "averaging", "secure": {}}} if secure else {}),
    }  # fmt: skip
    (folder / "federation.yaml").write_text(yaml.safe_dump(content))
    return folder / "federation.yaml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A federation in a folder."""
    return write_file(tmp_path / "office", str(tmp_path / "store"))


def of(file: Path) -> Store:
    content = yaml.safe_load(file.read_text())
    return open_store(str(content["store"])).below(content["name"])


def site_of(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder / "site.yaml"


def asked(invitation: Path, config: Path) -> str:
    """Ask to join, without waiting; return the key's fingerprint."""
    seen: list[str] = []
    with pytest.raises(StoreUnavailableError, match="there is no answer yet"):
        join(invitation, config, wait=0, listener=seen.append)
    return re.findall(r"[0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{8}", seen[0])[0]


def joined(file: Path, folder: Path, learner: str = "b") -> Path:
    """A site that has joined."""
    made, config = invite(file, learner, out=folder.parent / f"{folder.name}.yaml"), site_of(folder)
    asked(made.file, config)
    accept(file, learner)
    join(made.file, config)
    return config


def events(config: Path) -> list[str]:
    """The events in the journal of a site."""
    return [entry.event for entry in entries_of(config.parent / "state" / "journal")]


def wait_until(moment: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock of this process, which says when an invitation has expired, to a moment."""
    now, ahead = time.time, moment - time.time()
    monkeypatch.setattr(time, "time", lambda: now() + ahead)


def contents(store: Store) -> dict[str, str]:
    return {key: hashlib.sha256(store.read(key).data).hexdigest() for key in store.keys()}


class TestJoining:
    def test_one_command_on_each_side(self, file: Path, tmp_path: Path) -> None:
        made = invite(file, "b", out=tmp_path / "b.yaml")
        config = site_of(tmp_path / "hospital")
        shown = asked(made.file, config)
        (waiting,) = requests(file)
        assert (waiting.learner, waiting.kind, waiting.key, waiting.why) == ("b", "join", shown, "")
        assert abs(waiting.since - time.time()) < 60
        noted: list[str] = []
        accept(file, "b", examples=500, note=lambda event, **fields: noted.append(f"{event} {fields}"))
        assert noted == [f"accepted {{'learner': 'b', 'kind': 'join', 'key': '{shown}'}}"]
        found = join(made.file, config)
        known = read_enrolled(of(file)).learners["b"]
        assert (known.key, known.examples, known.user) == (found.key, 500, "")
        assert (found.site, found.federation, found.written) == ("b", "tiny", True)
        site = read_site(config)
        assert (site.name, site.federation, site.public_key) == ("b", "tiny", found.key)
        assert site.administrator == (file.parent / "keys" / "_administrator.pub").read_text().strip()
        assert requests(file) == []

    def test_the_files_of_a_site_are_for_its_user_alone(self, file: Path, tmp_path: Path) -> None:
        config = joined(file, tmp_path / "hospital")
        state = config.parent / "state"
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        for path in (config, *(one for one in state.iterdir() if one.is_file())):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        private = (config.parent / "state" / "b.key").read_text().strip()
        for key in of(file).keys():
            assert private.encode() not in of(file).read(key).data
        assert not (config.parent / "state" / "joining.json").exists()

    def test_nothing_of_others_changes(self, file: Path, tmp_path: Path) -> None:
        enroll(file, "a")
        store = of(file)
        for key in ("HEAD", "runs/r/1/record", "runs/r/board", "learners/a/runs/r/1/update", f"objects/{'ab' * 32}"):
            store.replace(key, key.encode())
        before, enrolled = contents(store), read_enrolled(store).learners["a"]
        joined(file, tmp_path / "hospital")
        after = contents(store)
        changed = {key for key in after if after[key] != before.get(key)}
        assert before.keys() <= after.keys()
        assert {key.split("/")[0] for key in changed} == {"joining", "enrolled"}
        assert read_enrolled(store).learners["a"] == enrolled

    def test_an_interrupted_one_continues_with_the_same_key(self, file: Path, tmp_path: Path) -> None:
        made, config = invite(file, "b", out=tmp_path / "b.yaml"), site_of(tmp_path / "hospital")
        shown = {asked(made.file, config) for _ in range(3)}
        assert len(shown) == 1
        accept(file, "b")
        join(made.file, config)
        # as if the machine had gone down before site.yaml was written, and after
        key = read_site(config).public_key
        config.unlink()
        assert join(made.file, config).key == key

    def test_one_that_has_joined_stays_as_it_is(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also after its invitation has expired: a container asks to join whenever it starts."""
        made, config = invite(file, "b", out=tmp_path / "b.yaml"), site_of(tmp_path / "hospital")
        asked(made.file, config)
        accept(file, "b")
        first = join(made.file, config)
        before = {path: path.read_bytes() for path in config.parent.rglob("*") if path.is_file()}
        wait_until(made.expires, monkeypatch)
        assert join(made.file, config) == first._replace(written=False)
        assert {path: path.read_bytes() for path in config.parent.rglob("*") if path.is_file()} == before

    def test_an_interrupted_acceptance_continues(self, file: Path, tmp_path: Path) -> None:
        """The enrolment is there and the answer is not; as after a crash between them."""
        made, config = invite(file, "b", out=tmp_path / "b.yaml"), site_of(tmp_path / "hospital")
        asked(made.file, config)
        accept(file, "b", examples=7)
        number = read_invitation(made.file).number
        of(file).delete(keys.joining("b", number, "answer"))
        before = read_enrolled(of(file))
        assert [one.outcome for one in next(attend(file))] == ["accepted"]
        assert read_enrolled(of(file)) == before
        join(made.file, config)

    def test_the_roster_of_secure_sums_has_it(self, tmp_path: Path) -> None:
        file = write_file(tmp_path / "office", str(tmp_path / "store"), secure=True)
        config = joined(file, tmp_path / "hospital")
        site = read_site(config)
        assert read_roster(of(file), "tiny", site.administrator) == {"b": site.public_key}

    def test_a_site_yaml_that_is_there_stays(self, file: Path, tmp_path: Path) -> None:
        made, config = invite(file, "b", out=tmp_path / "b.yaml"), site_of(tmp_path / "hospital")
        invitation = read_invitation(made.file)
        text = f"store: {invitation.store}\nfederation: tiny\nname: b\nstate: own\nkey: own/signing\nlook: 77\n"
        config.write_text(text)
        asked(made.file, config)
        accept(file, "b")
        found = join(made.file, config)
        assert not found.written
        assert config.read_text() == text
        assert (
            read_site(config).public_key == found.key == public_key((config.parent / "own/signing").read_text().strip())
        )

    @pytest.mark.parametrize("line", ["name: c", "federation: other", "store: elsewhere"])
    def test_the_site_yaml_of_another_site_stays(self, line: str, file: Path, tmp_path: Path) -> None:
        made, config = invite(file, "b", out=tmp_path / "b.yaml"), site_of(tmp_path / "hospital")
        key = line.partition(":")[0]
        known = {"store": f"file://{tmp_path}/store", "federation": "tiny", "name": "b"}
        lines = [line if name == key else f"{name}: {value}" for name, value in known.items()]
        config.write_text("\n".join(lines))
        with pytest.raises(InputError, match="is of another site") as caught:
            join(made.file, config)
        assert caught.value.where == f"{config}: {key}"
        assert config.read_text() == "\n".join(lines)
        assert not (config.parent / "state" / "joining.json").exists()
        assert [one.kind for one in requests(file)] == ["invited"]


class TestARegistrar:
    def test_accepts_what_fits_and_refuses_the_rest(self, file: Path, tmp_path: Path) -> None:
        noted: list[tuple[str, str]] = []
        good, bad = invite(file, "b", out=tmp_path / "b.yaml"), invite(file, "c", out=tmp_path / "c.yaml")
        desk = attend_with(file, noted)
        assert next(desk) == []
        asked(good.file, site_of(tmp_path / "hospital"))
        number = read_invitation(bad.file).number
        of(file).create(keys.joining("c", number, "request"), b"{}")
        first = next(desk)
        assert [(one.learner, one.outcome) for one in first] == [("b", "accepted"), ("c", "refused")]
        assert "the request is malformed" in first[1].why
        assert next(desk) == []
        assert noted == [("accepted", ""), ("refused", first[1].why)]
        assert read_enrolled(of(file)).learners.keys() == {"b"}

    def test_the_administrators_journal_has_each_decision(self, file: Path, tmp_path: Path) -> None:
        joined(file, tmp_path / "hospital")
        bad = invite(file, "c", out=tmp_path / "c.yaml")
        of(file).create(keys.joining("c", read_invitation(bad.file).number, "request"), b"{}")
        next(attend(file))
        folder = file.parent / "keys" / "journal"
        found = [(entry.event, entry.fields["learner"]) for entry in entries_of(folder)]
        assert found == [("accepted", "b"), ("refused", "c")]
        assert find_flaw(folder, (file.parent / "keys" / "_administrator.pub").read_text().strip()) is None

    def test_one_that_is_not_in_the_file_yet_waits(self, file: Path, tmp_path: Path) -> None:
        made = invite(file, "b", out=tmp_path / "b.yaml")
        asked(made.file, site_of(tmp_path / "hospital"))
        whole = file.read_text()
        content = yaml.safe_load(whole)
        content["learners"] = [{"name": "a"}, {"name": "c"}]
        file.write_text(yaml.safe_dump(content))
        desk = attend_with(file, [])
        assert [(one.outcome, one.why) for one in next(desk)] == [
            ("waits", "the federation file has no learner of this name")
        ]
        assert next(desk) == []  # it is reported once
        file.write_text(whole)
        assert [one.outcome for one in next(desk)] == ["accepted"]

    def test_a_file_that_is_malformed_for_a_while(self, file: Path, tmp_path: Path) -> None:
        made = invite(file, "b", out=tmp_path / "b.yaml")
        desk, whole = attend_with(file, []), file.read_text()
        assert next(desk) == []
        asked(made.file, site_of(tmp_path / "hospital"))
        file.write_text("name: [")
        (waits,) = next(desk)
        assert (waits.learner, waits.outcome) == ("", "waits")
        assert "is not YAML" in waits.why
        file.write_text(whole)
        assert [one.outcome for one in next(desk)] == ["accepted"]

    def test_a_store_that_is_away_is_a_decision_that_waits(self, tmp_path: Path, s3_keys: None) -> None:
        uri = f"s3://tests/x?endpoint=http://127.0.0.1:{servers.free_port()}"
        file = write_file(tmp_path / "office", str(tmp_path / "store"))
        invite(file, "b", out=tmp_path / "b.yaml")
        with contextlib.closing(attend(file, store=uri)) as desk, short_deadline():
            (waits,) = next(desk)
            assert (waits.learner, waits.outcome) == ("", "waits")
            assert "the store cannot be reached" in waits.why

    def test_without_the_administrators_key(self, file: Path) -> None:
        for call in (requests, lambda file: next(attend(file)), lambda file: accept(file, "b")):
            with pytest.raises(InputError, match="there is no key of the administrator"):
                call(file)
        assert not (file.parent / "keys").exists()


@contextlib.contextmanager
def short_deadline() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr("fedpipe.store.s3_client.DEADLINE", 0.5)
    try:
        yield
    finally:
        patch.undo()


def attend_with(file: Path, noted: list[tuple[str, str]]) -> Iterator[list]:
    return attend(file, note=lambda event, **fields: noted.append((event, fields.get("why", ""))))


class TestRefusals:
    """One sentence each, for the site and in the administrator's journal."""

    def refused(self, file: Path, expected: str, learner: str = "b") -> None:
        noted: list[tuple[str, str]] = []
        (row,) = [one for one in requests(file) if one.learner == learner and one.kind != "invited"]
        assert re.search(expected, row.why), row
        with pytest.raises(InputError, match="cannot be accepted"):
            accept(file, learner)
        made = next(attend_with(file, noted))
        assert [(one.learner, one.outcome, one.why) for one in made] == [(learner, "refused", row.why)]
        assert noted == [("refused", row.why)]
        assert learner not in {name for name, one in read_enrolled(of(file)).learners.items() if one.revoked is None}

    def test_by_a_person(self, file: Path, tmp_path: Path) -> None:
        made, config = invite(file, "b", out=tmp_path / "b.yaml"), site_of(tmp_path / "hospital")
        asked(made.file, config)
        refuse(file, "b", why="not this year")
        with pytest.raises(InputError, match="the administrator refused: not this year") as caught:
            join(made.file, config)
        assert caught.value.remedy == "Ask the federation's administrator for a new invitation."
        assert events(config) == ["asked", "asked", "not-joined"]
        assert not config.exists()
        again = invite(file, "b", out=tmp_path / "again.yaml")  # and a new invitation works
        asked(again.file, config)
        accept(file, "b")
        assert join(again.file, config).written

    def test_an_invitation_that_is_used_twice(self, file: Path, tmp_path: Path) -> None:
        made = invite(file, "b", out=tmp_path / "b.yaml")
        first, second = site_of(tmp_path / "hospital"), site_of(tmp_path / "thief")
        asked(made.file, first)
        asked(made.file, second)
        accept(file, "b")
        assert join(made.file, first).site == "b"
        with pytest.raises(InputError, match="somebody else has used this invitation"):
            join(made.file, second)
        assert not second.exists()
        assert events(second) == ["asked", "asked", "not-joined"]
        assert read_enrolled(of(file)).learners["b"].key == read_site(first).public_key

    def test_one_that_expired(self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made, config = invite(file, "b", out=tmp_path / "b.yaml"), site_of(tmp_path / "hospital")
        asked(made.file, config)
        wait_until(made.expires, monkeypatch)
        with pytest.raises(InputError, match="the invitation expired on"):
            join(made.file, config)
        assert events(config) == ["asked", "not-joined"]
        self.refused(file, "^its invitation expired on .* UTC$")

    def test_one_that_was_altered(self, file: Path, tmp_path: Path) -> None:
        made = invite(file, "b", out=tmp_path / "b.yaml")
        text = made.file.read_text()
        made.file.write_text(text.replace('"learner": "b"', '"learner": "c"'))
        with pytest.raises(InputError, match="the invitation was altered"):
            join(made.file, config := site_of(tmp_path / "hospital"))
        (entry,) = entries_of(config.parent / "state" / "journal")
        assert (entry.event, entry.fields["why"].split(": ")[1]) == ("not-joined", "the invitation was altered")
        assert [one.kind for one in requests(file)] == ["invited"]

    def test_a_request_that_was_altered(self, file: Path, tmp_path: Path) -> None:
        made = invite(file, "b", out=tmp_path / "b.yaml")
        asked(made.file, site_of(tmp_path / "hospital"))
        key = keys.joining("b", read_invitation(made.file).number, "request")
        content = json.loads(of(file).read(key).data)
        content["key"] = public_key(make_key())
        of(file).replace(key, json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
        self.refused(file, "^the request was not made with the token of the invitation, or was altered$")
        with pytest.raises(InputError, match="the administrator refused: the request was not made with the token"):
            join(made.file, tmp_path / "hospital" / "site.yaml")

    def test_one_of_another_federation(self, file: Path, tmp_path: Path) -> None:
        other = write_file(tmp_path / "other", str(tmp_path / "store"), name="other")
        theirs, ours = invite(other, "b", out=tmp_path / "theirs.yaml"), invite(file, "b", out=tmp_path / "b.yaml")
        asked(theirs.file, site_of(tmp_path / "hospital"))
        numbers = [read_invitation(made.file).number for made in (theirs, ours)]
        data = of(other).read(keys.joining("b", numbers[0], "request")).data
        of(file).create(keys.joining("b", numbers[1], "request"), data)
        self.refused(file, "^the request is for the federation 'other'$")

    def test_one_that_another_has_replaced(self, file: Path, tmp_path: Path) -> None:
        first = invite(file, "b", out=tmp_path / "b.yaml")
        asked(first.file, site_of(tmp_path / "hospital"))
        invite(file, "b", out=tmp_path / "again.yaml")
        self.refused(file, "^another invitation has taken the place of its own$")

    def test_one_that_was_withdrawn(self, file: Path, tmp_path: Path) -> None:
        made = invite(file, "b", out=tmp_path / "b.yaml")
        assert withdraw(file, "b")
        assert not withdraw(file, "b")
        asked(made.file, site_of(tmp_path / "hospital"))
        self.refused(file, "^it has no open invitation$")

    def test_terms_that_the_administrator_did_not_sign(self, file: Path, tmp_path: Path) -> None:
        """The store's operator cannot invite."""
        made = invite(file, "b", out=tmp_path / "b.yaml")
        asked(made.file, site_of(tmp_path / "hospital"))
        content = json.loads(of(file).read(keys.invitation("b")).data)
        of(file).replace(keys.invitation("b"), json.dumps(content | {"expires": content["expires"] + 9}).encode())
        self.refused(file, "^it has no open invitation$")

    def test_one_from_before_it_was_revoked(self, file: Path, tmp_path: Path) -> None:
        """Otherwise the store could replay the request of a site that was revoked."""
        made, config = invite(file, "b", out=tmp_path / "b.yaml"), site_of(tmp_path / "hospital")
        asked(made.file, config)
        accept(file, "b")
        revoke(file, "b")
        of(file).delete(keys.joining("b", read_invitation(made.file).number, "answer"))
        self.refused(file, "^it was revoked on .* UTC, after it was invited$")

    def test_one_that_is_enrolled_in_the_meantime(self, file: Path, tmp_path: Path) -> None:
        made = invite(file, "b", out=tmp_path / "b.yaml")
        asked(made.file, site_of(tmp_path / "hospital"))
        enroll(file, "b")
        (row,) = requests(file)
        assert re.fullmatch("it has been enrolled since .* UTC with another key", row.why)
        before = read_enrolled(of(file))
        assert [one.outcome for one in next(attend(file))] == ["refused"]
        assert read_enrolled(of(file)) == before

    def test_a_large_one(self, file: Path, tmp_path: Path) -> None:
        made = invite(file, "b", out=tmp_path / "b.yaml")
        of(file).create(keys.joining("b", read_invitation(made.file).number, "request"), bytes(2**16 + 1))
        self.refused(file, "^the request is malformed: the object has 65537 bytes, the limit is 65536$")


class TestInvite:
    @pytest.mark.parametrize(
        ("arguments", "message", "remedy"),
        [
            ({"learner": "bb"}, "there is no learner 'bb'", "Did you mean 'b'?"),
            ({"learner": "_coordinator"}, "the coordinator is not a site", "Run `fedpipe enroll --coordinator`."),
            ({"expires": 8 * 24 * 3600.0}, "an invitation lives for at most 7 days", "Write for instance 7d."),
            ({"expires": 0.0}, "an invitation lives for at most 7 days", "Write for instance 7d."),
            ({"endpoint": "https://x"}, "a folder has no endpoint", "Leave it out."),
            ({"ca": Path("absent")}, "cannot be read: No such file or directory", "Name a file in PEM form."),
        ],
    )
    def test_mistakes(self, arguments: dict, message: str, remedy: str, file: Path, tmp_path: Path) -> None:
        given = {"learner": "b", "out": tmp_path / "b.yaml", **arguments}
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            invite(file, given.pop("learner"), **given)
        assert caught.value.remedy == remedy
        assert not (tmp_path / "b.yaml").exists()
        assert list(of(file).keys()) == []

    def test_a_file_that_is_there_stays(self, file: Path, tmp_path: Path) -> None:
        (tmp_path / "b.yaml").write_text("mine")
        with pytest.raises(InputError, match="exists already"):
            invite(file, "b", out=tmp_path / "b.yaml")
        assert (tmp_path / "b.yaml").read_text() == "mine"

    def test_nothing_is_left_when_the_file_cannot_be_written(self, file: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot be written"):
            invite(file, "b", out=tmp_path / "absent" / "b.yaml")
        assert list(of(file).keys()) == []

    def test_one_that_is_enrolled(self, file: Path) -> None:
        enroll(file, "b")
        with pytest.raises(InputError, match=r"'b' has been enrolled since .* UTC") as caught:
            invite(file, "b")
        assert "fedpipe site rotate" in str(caught.value.remedy)

    @pytest.mark.parametrize("name", ["minio.store.svc", "minio.in-cluster"])
    def test_a_name_inside_the_cluster(
        self, name: str, tmp_path: Path, s3_keys: None, minio_server: servers.Server
    ) -> None:
        """The store is near by port forwarding; the site needs another endpoint."""
        file = write_file(tmp_path / "office", f"s3://tests/h?endpoint=http://{name}:9000")
        near = minio_server.uri.replace("s3://tests", "s3://tests/inside")
        with pytest.raises(InputError, match=f"the site cannot reach http://{re.escape(name)}:9000") as caught:
            invite(file, "b", store=near)
        assert caught.value.where == "--endpoint"
        made = invite(file, "b", store=near, endpoint="https://minio.example.org", out=tmp_path / "b.yaml")
        invitation = read_invitation(made.file)
        assert invitation.store == "s3://tests/inside?endpoint=https://minio.example.org&region=us-east-1"
        for url in (invitation.request, invitation.answer):
            assert url.startswith("https://minio.example.org/tests/inside/tiny/joining/b/")
        assert made.endpoint == "https://minio.example.org"

    def test_the_certificate_of_an_authority_is_in_it(self, file: Path, tmp_path: Path) -> None:
        pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        (tmp_path / "ca.pem").write_text(pem)
        made = invite(file, "b", ca=tmp_path / "ca.pem", out=tmp_path / "b.yaml")
        assert read_invitation(made.file).ca == pem
        (tmp_path / "ca.pem").write_text("no certificate")
        with pytest.raises(InputError, match="is not a certificate in PEM form"):
            invite(file, "c", ca=tmp_path / "ca.pem", out=tmp_path / "c.yaml")


class TestRotation:
    def test_needs_no_person(self, file: Path, tmp_path: Path) -> None:
        config = joined(file, tmp_path / "hospital")
        before = read_site(config).public_key
        with pytest.raises(StoreUnavailableError, match="is not granted yet"):
            rotate(config, wait=0)
        (row,) = requests(file)
        assert (row.learner, row.kind, row.why) == ("b", "rotation", "")
        assert read_site(config).public_key == before  # it signs with the old key until the new one is enrolled
        assert [(one.kind, one.outcome) for one in next(attend(file))] == [("rotation", "accepted")]
        after = rotate(config)
        assert read_site(config).public_key == after != before
        assert read_enrolled(of(file)).learners["b"].key == after
        assert requests(file) == []
        assert not (tmp_path / "hospital" / "state" / "rotation.json").exists()

    def test_decisions_and_journal_stay_valid(self, file: Path, tmp_path: Path) -> None:
        """Also when it is interrupted before any of its writes."""
        config = joined(file, tmp_path / "hospital")
        decided, before = self.decide(config), read_site(config).public_key
        with contextlib.suppress(StoreUnavailableError):
            rotate(config, wait=0)
        next(attend(file))
        shutil.copytree(config.parent, tmp_path / "copy")
        for number in itertools.count():
            shutil.rmtree(config.parent)
            shutil.copytree(tmp_path / "copy", config.parent)
            try:
                with failing_at(number):
                    rotate(config)
            except Interrupted:
                if (config.parent / "state" / "rotation.json").exists():
                    rotate(config)
                self.check_valid(read_site(config), decided, before)
            else:
                break
        assert number == 2
        assert events(config) == ["asked", "asked", "joined", "asked", "rotated"]

    def check_valid(self, site: Site, decided: list[tuple[str, str, float]], before: str) -> None:
        assert site.public_key != before
        assert [(one.plan, one.verdict, one.since) for one in approvals_of(site).decisions()] == decided
        assert find_flaw(journal_folder(Path(site.state)), signer_in(Path(site.state)).public) is None

    def decide(self, config: Path) -> list[tuple[str, str, float]]:
        """Two decisions, which the site signs."""
        site = read_site(config)
        made = []
        for number in range(2):
            plan = digest_of(str(number).encode())
            bare = Approval(
                learner="b", plan=plan, code=plan, verdict="refused", number=number + 1, since=float(number)
            )
            approvals_of(site)
            signed = signed_with(bare, signer_in(Path(site.state)))
            path = Path(site.state, "approvals", plan.removeprefix("sha256:"))
            path.write_bytes(canonical(signed))
            made.append((plan, "refused", float(number)))
        return made

    def test_it_keeps_the_limit_of_examples(self, file: Path, tmp_path: Path) -> None:
        made, config = invite(file, "b", out=tmp_path / "b.yaml"), site_of(tmp_path / "hospital")
        asked(made.file, config)
        accept(file, "b", examples=77)
        join(made.file, config)
        with contextlib.suppress(StoreUnavailableError):
            rotate(config, wait=0)
        next(attend(file))
        assert read_enrolled(of(file)).learners["b"].examples == 77

    def test_it_is_repeated_after_a_crash(self, file: Path, tmp_path: Path) -> None:
        """The key is enrolled, and the request is still there: as after a crash before it was removed."""
        config = joined(file, tmp_path / "hospital")
        files = keys_of(read_site(config))
        renewal = files.renew(opener_of(read_site(config)), time.time())
        next(attend(file))
        of(file).replace(keys.rotation("b"), renewal.request.encode())
        assert [one.outcome for one in next(attend(file))] == ["accepted"]
        assert files.settle(opener_of(read_site(config)))
        assert files.settle(opener_of(read_site(config)))

    def test_only_the_holder_of_the_key_may(self, file: Path, tmp_path: Path) -> None:
        config = joined(file, tmp_path / "hospital")
        membership = keys_of(read_site(config)).membership
        assert membership is not None
        forged = make_rotation("tiny", "b", signer_of(make_key()), make_key(), time.time())
        of(file).replace(keys.rotation("b"), forged)
        before = read_enrolled(of(file))
        made = next(attend(file))
        assert [(one.outcome, one.why) for one in made] == [("refused", "the request is signed with another key")]
        assert read_enrolled(of(file)) == before
        assert requests(file) == []

    def test_one_that_was_revoked_gets_none(self, file: Path, tmp_path: Path) -> None:
        config = joined(file, tmp_path / "hospital")
        revoke(file, "b")
        with pytest.raises(StoreUnavailableError):
            rotate(config, wait=0)
        assert next(attend(file)) == []

    def test_one_that_has_not_joined(self, file: Path, tmp_path: Path) -> None:
        config = site_of(tmp_path / "hospital")
        config.write_text(f"store: {tmp_path}/store\nfederation: tiny\nname: b\n")
        with pytest.raises(InputError, match="this site has not joined a federation") as caught:
            rotate(config)
        assert "fedpipe site join FILE" in str(caught.value.remedy)


class Interrupted(BaseException):
    """Ends a process at a write."""


@contextlib.contextmanager
def failing_at(number: int) -> Iterator[None]:
    """End the process, so to speak, before its write of this number."""
    left = itertools.count(number, -1)

    def write(path: Path, data: bytes, *, mode: int = 0o666) -> None:
        if next(left) == 0:
            raise Interrupted
        write_whole(path, data, mode=mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedpipe.sites.membership.write_whole", write)
        yield


def s3_file(folder: Path, server: servers.Server) -> Path:
    return write_file(
        folder / "office", server.uri.replace("s3://tests", f"s3://tests/{folder.name.replace('_', '-')}")
    )


@pytest.fixture
def minio_file(tmp_path: Path, minio_server: servers.Server, s3_keys: None) -> Path:
    """A federation with a prefix of its own on MinIO."""
    return s3_file(tmp_path, minio_server)


@contextlib.contextmanager
def fedpipe(*arguments: object, folder: Path, keys_of_store: bool) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, with the keys of the store's administrator or without any."""
    environment = {**os.environ, "COLUMNS": "200"} | ({} if keys_of_store else NO_KEYS)
    command = [sys.executable, "-m", "fedpipe", *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def done(*arguments: object, folder: Path, keys_of_store: bool) -> str:
    """The output of a command that succeeds."""
    with fedpipe(*arguments, folder=folder, keys_of_store=keys_of_store) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


class TestOnMinio:
    def test_two_commands(self, minio_file: Path, tmp_path: Path) -> None:
        """By processes as users start them: the site's has no keys of the store."""
        office, hospital = minio_file.parent, site_of(tmp_path / "hospital").parent
        done("invite", "b", "-o", tmp_path / "b.yaml", folder=office, keys_of_store=True)
        with fedpipe("enroll", "--requests", "--watch", folder=office, keys_of_store=True):
            out = done("site", "join", tmp_path / "b.yaml", folder=hospital, keys_of_store=False)
        assert "b has joined tiny; its key is" in out
        with fedpipe("site", "status", "--json", folder=hospital, keys_of_store=False) as status:
            assert json.loads(status.communicate(timeout=300)[0])["enrolled"] is True
        self.checks_rights(minio_file, read_site(tmp_path / "hospital" / "site.yaml"))

    def checks_rights(self, file: Path, site) -> None:
        known = read_enrolled(of(file)).learners["b"]
        held = read_mounted(site.credentials)
        assert held.access_key == known.user == f"fedpipe-tiny-b-{known.user[-8:]}"
        own = opener_of(site)(held)
        assert own.create("learners/b/x", b"1")
        for key in ("learners/a/x", "enrolled", keys.invitation("b"), "HEAD"):
            with pytest.raises(StoreError, match="refuses the credentials"):
                own.replace(key, b"1")
        with pytest.raises(StoreError, match="refuses the credentials"):
            own.read(keys.invitation("b"))

    def test_the_urls_open_one_object_each(self, minio_file: Path, tmp_path: Path) -> None:
        made = invite(minio_file, "b", out=tmp_path / "b.yaml")
        invitation = read_invitation(made.file)
        with changed_environment(NO_KEYS):
            lent = Lent()
            assert lent.find(invitation.answer) is None
            assert lent.create(invitation.request, b"1")
            assert not lent.create(invitation.request, b"2")
            pool = urllib3.PoolManager()
            for method, url in (
                ("GET", invitation.request),
                ("DELETE", invitation.request),
                ("PUT", invitation.answer),
                ("PUT", invitation.request.replace("/joining/b/", "/joining/c/")),
                ("PUT", invitation.request.replace("/request", "/answer")),
                ("GET", invitation.answer.replace("/answer", "/request")),
                ("GET", invitation.answer.replace("X-Amz-Expires=", "X-Amz-Expires=1")),
            ):
                refused = pool.request(method, url, body=b"x" if method == "PUT" else None)
                assert refused.status in (400, 403), (method, url)
        assert of(minio_file).read(keys.joining("b", invitation.number, "request")).data == b"1"

    def test_a_url_that_expired(self, minio_file: Path) -> None:
        store = of(minio_file)
        url = store.lend("GET", "x", 1)  # type: ignore[attr-defined]
        time.sleep(2.1)
        with pytest.raises(StoreError, match="the store refuses the request") as caught:
            Lent().find(url)
        assert str(caught.value.remedy).startswith("Ask for a new invitation")
        assert "X-Amz" not in str(caught.value)

    def test_rotation_changes_the_secret_and_locks_nobody_out(self, minio_file: Path, tmp_path: Path) -> None:
        config = joined(minio_file, tmp_path / "hospital")
        site = read_site(config)
        before = read_mounted(site.credentials)
        with pytest.raises(StoreUnavailableError):
            rotate(config, wait=0)
        assert opener_of(site)(before).create("learners/b/x", b"1")
        assert [one.outcome for one in next(attend(minio_file))] == ["accepted"]
        with pytest.raises(StoreError, match="refuses the credentials"):
            opener_of(site)(before).create("learners/b/y", b"1")
        rotate(config)
        after = read_mounted(site.credentials)
        assert after.access_key == before.access_key
        assert after.secret_key != before.secret_key
        assert opener_of(site)(after).create("learners/b/y", b"1")
        assert read_enrolled(of(minio_file)).learners["b"].key == read_site(config).public_key

    def test_one_that_was_revoked_joins_again(self, minio_file: Path, tmp_path: Path) -> None:
        config = joined(minio_file, tmp_path / "hospital")
        revoke(minio_file, "b")
        before = read_site(config).public_key
        again = invite(minio_file, "b", out=tmp_path / "again.yaml")
        asked(again.file, config)
        accept(minio_file, "b")
        found = join(again.file, config)
        assert not found.written
        assert read_enrolled(of(minio_file)).learners["b"].revoked is None
        assert found.key != before

    def test_a_failed_acceptance_leaves_no_user(self, minio_file: Path, tmp_path: Path) -> None:
        made = invite(minio_file, "b", out=tmp_path / "b.yaml")
        asked(made.file, site_of(tmp_path / "hospital"))
        of(minio_file).replace("enrolled", b"{")
        with pytest.raises(Exception, match="is not a valid enrolled"):
            accept(minio_file, "b")
        of(minio_file).delete("enrolled")
        accept(minio_file, "b")
        assert Users(str(yaml.safe_load(minio_file.read_text())["store"])).has(
            read_enrolled(of(minio_file)).learners["b"].user
        )


class TestTheWayToTheStore:
    """A store with an authority of its own, behind a company's proxy."""

    @pytest.fixture
    def tls_server(self, tmp_path: Path) -> Iterator[servers.Server]:
        certificates = make_certificates(tmp_path / "certificates")
        with servers.running("minio", tmp_path / "minio", certificates=certificates) as server:
            yield server

    @pytest.fixture(autouse=True)
    def bare(self, monkeypatch: pytest.MonkeyPatch, s3_keys: None) -> None:
        for name in (*BUNDLES, "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)

    def test_the_authority_comes_with_the_invitation(self, tls_server: servers.Server, tmp_path: Path) -> None:
        file, config = s3_file(tmp_path, tls_server), site_of(tmp_path / "hospital")
        bundle = {"SSL_CERT_FILE": str(tmp_path / "certificates" / "ca.pem")}
        with changed_environment(bundle):
            made = invite(file, "b", out=tmp_path / "b.yaml")
        with ForwardProxy() as proxy:
            with changed_environment(NO_KEYS | {"HTTPS_PROXY": proxy.url}):
                asked(made.file, config)
            with changed_environment(bundle):
                accept(file, "b")
            with changed_environment(NO_KEYS | {"HTTPS_PROXY": proxy.url}):
                join(made.file, config)
        assert set(proxy.seen) == {f"CONNECT {tls_server.endpoint.removeprefix('https://')}"}
        assert read_site(config).ca == str(config.parent / "state" / "ca.pem")

    def test_without_the_authority_it_is_one_sentence(self, tls_server: servers.Server, tmp_path: Path) -> None:
        file = s3_file(tmp_path, tls_server)
        with changed_environment({"SSL_CERT_FILE": str(tmp_path / "certificates" / "ca.pem")}):
            (tmp_path / "other").mkdir()
            other = make_certificates(tmp_path / "other") / "ca.pem"
            made = invite(file, "b", ca=other, out=tmp_path / "b.yaml")
        with pytest.raises(StoreError, match=r"the certificate of 127\.0\.0\.1 is not valid"):
            join(made.file, site_of(tmp_path / "hospital"))

    @pytest.mark.parametrize(
        ("refusal", "message"),
        [(403, r"refuses to connect \(HTTP 403\)"), (407, r"asks for a user and a password \(HTTP 407\)")],
    )
    def test_a_proxy_that_refuses(self, refusal: int, message: str, tls_server: servers.Server, tmp_path: Path) -> None:
        file = s3_file(tmp_path, tls_server)
        with changed_environment({"SSL_CERT_FILE": str(tmp_path / "certificates" / "ca.pem")}):
            made = invite(file, "b", out=tmp_path / "b.yaml")
        config = site_of(tmp_path / "hospital")
        with ForwardProxy(refusal=refusal) as proxy, pytest.raises(StoreError, match=message):
            join_through(proxy, "HTTPS_PROXY", made.file, config)

    def test_a_server_that_answers_html(self, tmp_path: Path, minio_server: servers.Server) -> None:
        made = invite(s3_file(tmp_path, minio_server), "b", out=tmp_path / "b.yaml")
        config, message = site_of(tmp_path / "hospital"), "not an S3 store: it answers with HTTP 404 and text/html"
        with ForwardProxy(refusal=404) as proxy, pytest.raises(StoreError, match=message):
            join_through(proxy, "HTTP_PROXY", made.file, config)


def join_through(proxy: ForwardProxy, variable: str, invitation: Path, config: Path) -> None:
    with changed_environment(NO_KEYS | {variable: proxy.url}):
        join(invitation, config)


class TestKeysByHand:
    """A store without MinIO's administration."""

    def test_an_administrator_hands_them_over(
        self, versitygw_server: servers.Server, s3_keys: None, tmp_path: Path
    ) -> None:
        file = s3_file(tmp_path, versitygw_server)
        made, config = invite(file, "b", out=tmp_path / "b.yaml"), site_of(tmp_path / "hospital")
        with changed_environment(NO_KEYS):
            asked(made.file, config)
        (waits,) = next(attend(file))
        assert (waits.learner, waits.outcome) == ("b", "waits")
        assert "--access-key" in waits.why
        assert "b" not in read_enrolled(of(file)).learners
        accept(file, "b", given=ROOT)
        with changed_environment(NO_KEYS):
            join(made.file, config)
        assert read_mounted(read_site(config).credentials) == ROOT
        assert read_enrolled(of(file)).learners["b"].user == ROOT.access_key

        with pytest.raises(StoreUnavailableError):
            rotate(config, given=ROOT, wait=0)
        assert [one.outcome for one in next(attend(file))] == ["accepted"]
        assert rotate(config) == read_enrolled(of(file)).learners["b"].key
        assert read_mounted(read_site(config).credentials) == ROOT


def test_keys_of_a_site_that_joins_are_in_its_state(tmp_path: Path) -> None:
    files = SiteKeys.of(tmp_path, "b")
    assert (files.key, files.credentials) == (tmp_path / "b.key", tmp_path / "store")
    assert (files.membership, files.pending, files.renewal) == (None, None, None)
