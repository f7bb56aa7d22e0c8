"""site.yaml: read, completed and checked, each mistake with its key and the remedy; and the status of a site."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpipe.commands import site as commands
from fedpipe.errors import InputError
from fedpipe.identity.enrolment import Enrolled, Enrolment
from fedpipe.identity.signing import find_key, find_signer, make_key, public_key
from fedpipe.sites.site import Site, parse_site, read_site
from fedpipe.store import LocalStore, keys
from fedpipe.store.concealment import changed_environment
from fedpipe.store.network import BUNDLES
from fedpipe.store.objects import encode
from tests import servers
from tests.cli.conftest import Result
from tests.store.surroundings import ForwardProxy, answering, make_certificates

GOOD: dict[str, Any] = {"store": "store", "federation": "digits", "name": "hospital-b"}


def parsed(folder: Path, **more: Any) -> Site:
    return parse_site({**GOOD, **more}, folder, where="site.yaml")


def test_paths_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(
        "store: store\nfederation: digits\nname: hospital-b\nkey: keys/own\npolicy: {data: rows.npz}\n"
    )
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "own").write_text("ab" * 32)
    site = read_site(tmp_path / "site.yaml")
    assert site.store == f"file://{tmp_path}/store"
    assert site.policy.data == f"{tmp_path}/rows.npz"
    assert (site.state, site.key) == (f"{tmp_path}/state", f"{tmp_path}/keys/own")
    assert site.public_key == public_key("ab" * 32)
    assert (site.look, site.approve) == (15.0, "ask")


def test_data_in_a_store_stay_a_uri(tmp_path: Path) -> None:
    assert parsed(tmp_path, policy={"data": "s3://b/rows.npz"}).policy.data == "s3://b/rows.npz"


def test_the_state_is_a_folder_that_others_cannot_read(tmp_path: Path) -> None:
    site = parsed(tmp_path)
    assert site.key == f"{tmp_path}/state/hospital-b.key"
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert site.public_key == ""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"polcy": {}}, r"site\.yaml: unknown key 'polcy'\. Did you mean 'policy'\?"),
        ({"policy": {"date": "x"}}, r"site\.yaml: policy: unknown key 'date'\. Did you mean 'data'\?"),
        ({"name": "Hospital B"}, r"site\.yaml: name: not a safe name\. Use at most 40"),
        ({"look": 5}, r"site\.yaml: look: Expected `float` >= 15\.0\. Write a number >= 15\."),
        ({"approve": "everything"}, r"approve: Invalid enum value 'everything'\. Valid: any, ask, listed, signed-by\."),
        ({"administrator": "abc"}, r"administrator: is not a public key\. Write its 64 hexadecimal digits\."),
        ({"approve": {"by": "signed-by", "reviewers": ["abc"]}}, r"approve\.reviewers\[0\]: is not a public key"),
        (
            {"approve": {"by": "listed", "plans": ["3f2a"]}},
            r"Write the whole digest, as `fedpipe site pending` shows it\.",
        ),
        (
            {"policy": {"columns": ["y"]}},
            r"columns: Expected `object`, got `array`\. Write a table of keys and values\. Valid entries",
        ),
        (
            {"policy": {"algorithms": "split"}},
            r"Expected `array`, got `str`\. Write a list\. Valid entries: averaging, coll",
        ),
        ({"certificate": "none.pem"}, r"cannot be read: No such file or directory\. Set certificate to a PEM file"),
        ({"ca": "ca.pem"}, r"site\.yaml: ca, .*/ca\.pem: the file that ca names cannot be read: No such file"),
        ({"credentials": "none"}, r"site\.yaml: credentials, .*/none: the mounted secret cannot be read"),
        ({"store": "ftp://host/b"}, r"site\.yaml: store: the store 'ftp://host/b' has an unknown scheme"),
        ({"store": "s3://u:secret@b/p"}, r"site\.yaml: store: the URI contains"),
    ],
)
def test_mistakes(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parsed(tmp_path, **more)
    assert "secret@" not in str(caught.value)


def test_a_missing_key_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the key 'store' is missing\. Add it: docs/sites\.md describes each key"):
        parse_site({"federation": "digits", "name": "a"}, tmp_path, where="site.yaml")
    with pytest.raises(InputError, match=r"is not a table of keys and values\. Write it as docs/sites\.md shows"):
        parse_site([1], tmp_path, where="site.yaml")
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read: No such file.*join with `fedpipe site join`"):
        read_site(tmp_path / "none.yaml")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(InputError, match=r"ca, .*: the file that ca names is not PEM"):
        parsed(tmp_path, ca="ca.pem")
    (tmp_path / "own").write_text("word")
    with pytest.raises(InputError, match=r"key, .*: the private key is malformed"):
        parsed(tmp_path, key="own")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"state, .*/file: the folder cannot be written: .*the user of the agent"):
        parsed(tmp_path, state="file")


def test_a_site_signs_with_its_own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPIPE_KEYS", str(tmp_path / "others"))
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "hospital-b.key").write_text(make_key())
    private = make_key()
    (tmp_path / "own").write_text(private)
    with changed_environment(parsed(tmp_path, key="own").surroundings()):
        signer = find_signer("hospital-b")
        assert signer is not None
        assert signer.public == public_key(private)
    with changed_environment(parsed(tmp_path).surroundings()):
        assert find_key("hospital-b") is None


class TestStatus:
    """`fedpipe site status`: each obstacle is named, and the exit code is for programs."""

    @pytest.fixture
    def site(self, tmp_path: Path) -> Path:
        (tmp_path / "site.yaml").write_text("store: store\nfederation: digits\nname: hospital-b\n")
        return tmp_path

    def test_without_a_key(self, site: Path, fedpipe: Callable[..., Result]) -> None:
        done = fedpipe("site", "status", "-c", str(site / "site.yaml"))
        assert done.code == 1
        assert "hospital-b of digits" in done.out
        assert "the site has no signing key" in done.out

    def test_enrolled(self, site: Path, fedpipe: Callable[..., Result]) -> None:
        private = make_key()
        (site / "state").mkdir()
        (site / "state" / "hospital-b.key").write_text(private)
        enrolled = Enrolled(learners={"hospital-b": Enrolment(key=public_key(private), since=1.0)})
        LocalStore(site / "store").below("digits").replace(keys.ENROLLED, encode(enrolled))
        done = fedpipe("site", "status", "-c", str(site / "site.yaml"), "--json")
        assert done.code == 1
        found = json.loads(done.out)
        assert found["key"] == public_key(private)
        assert (found["enrolled"], found["flaws"]) == (True, ["its agent does not run. Start it: fedpipe site run"])

    @pytest.mark.parametrize(
        ("enrolment", "flaw"),
        [
            (Enrolment(key="ab" * 32, since=1.0), "enrolled with another key"),
            (Enrolment(key="ab" * 32, since=1.0, revoked=2.0), "was revoked on 1970-01-01 00:00 UTC"),
        ],
    )
    def test_refused(self, site: Path, fedpipe: Callable[..., Result], enrolment: Enrolment, flaw: str) -> None:
        (site / "state").mkdir()
        (site / "state" / "hospital-b.key").write_text(make_key())
        data = encode(Enrolled(learners={"hospital-b": enrolment}))
        LocalStore(site / "store").below("digits").replace(keys.ENROLLED, data)
        done = fedpipe("site", "status", "-c", str(site / "site.yaml"))
        assert done.code == 1
        assert flaw in done.out

    def test_a_mistake_in_the_file(self, site: Path, fedpipe: Callable[..., Result]) -> None:
        (site / "site.yaml").write_text("store: store\nfederation: digits\nname: hospital-b\nsate: x\n")
        done = fedpipe("site", "status", "-c", str(site / "site.yaml"))
        assert done.code == 2
        assert "unknown key 'sate'. Did you mean 'state'?" in done.err


class TestStart:
    """The first request is refused by the store or a proxy: one sentence with the remedy. Without an answer, it waits."""

    @pytest.fixture
    def start(
        self, tmp_path: Path, fedpipe: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, s3_keys: None
    ) -> Callable[..., Result]:
        for name in (*BUNDLES, "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        (tmp_path / "rows.csv").write_text("age\n61\n")

        def run(endpoint: str, **more: str) -> Result:
            content = {"store": f"s3://tests/refused?endpoint={endpoint}", "federation": "tiny", "name": "b"}
            content |= {"policy": {"data": "rows.csv"}, **more}
            (tmp_path / "site.yaml").write_text(yaml.safe_dump(content))
            return fedpipe("site", "run", "-c", tmp_path / "site.yaml")

        return run

    def refused(self, done: Result, *words: str) -> None:
        assert done.code == 2
        assert done.err.startswith("fedpipe: ")
        for word in words:
            assert word in done.err

    def test_a_proxy_that_refuses(
        self, start: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, minio_server: servers.Server
    ) -> None:
        with ForwardProxy(user="site:word") as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            done = start(minio_server.endpoint)
        self.refused(
            done, "asks for a user and a password (HTTP 407)", "Write USER:PASSWORD@ before the host in HTTP_PROXY"
        )

    def test_a_ca_that_does_not_fit(self, start: Callable[..., Result], tmp_path: Path) -> None:
        ours, others = make_certificates(tmp_path / "ours"), make_certificates(tmp_path / "others")
        with servers.running("minio", tmp_path / "minio", certificates=ours) as server:
            done = start(server.endpoint, ca=str(others / "ca.pem"))
        self.refused(done, "the certificate of 127.0.0.1 is not valid", str(others / "ca.pem"))

    @pytest.mark.parametrize(
        ("status", "what"), [(404, "HTTP 404"), (200, "its answer of type text/html names no version")]
    )
    def test_a_store_that_answers_html(self, start: Callable[..., Result], status: int, what: str) -> None:
        with answering(lambda *_: (status, "text/html", "<p>Guests, please log in</p>")) as endpoint:
            done = start(endpoint)
        self.refused(done, f"the server is not an S3 store: {what}", "Check the endpoint.")

    def test_keys_that_the_store_does_not_know(
        self, start: Callable[..., Result], tmp_path: Path, minio_server: servers.Server
    ) -> None:
        (tmp_path / "credentials").mkdir()
        for name in ("accesskey", "secretkey"):
            (tmp_path / "credentials" / name).write_text("of-yesterday")
        done = start(minio_server.endpoint, credentials="credentials")
        self.refused(done, "the store refuses the credentials", "Check the access key, the secret key and the policy")

    def test_a_store_that_is_away_is_awaited(
        self, tmp_path: Path, s3_keys: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(commands, "_START", 0.1)
        commands._check_store(
            parsed(tmp_path, store=f"s3://tests/away?endpoint=http://127.0.0.1:{servers.free_port()}")
        )
