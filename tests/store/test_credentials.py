"""Credentials from the environment: keys, a mounted secret, a web identity and roles, with a real store's own STS."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from minio.credentials import WebIdentityProvider

from fedpipe.errors import StoreError, StoreUnavailableError
from fedpipe.store import open_store
from fedpipe.store.base import Credentials
from fedpipe.store.credentials import find_identity, read_mounted
from fedpipe.store.s3 import MinioStore
from fedpipe.store.users import Users
from tests import servers
from tests.store.surroundings import Metadata, OpenId, answering
from tests.store.test_network import PROXIES, everything

VARIABLES = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "FEDPIPE_SECRET_DIR", "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_SESSION_NAME", "AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL", "AWS_REGION",
    "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_EC2_METADATA_DISABLED",
)  # fmt: skip
HERE = "http://127.0.0.1:1"
_DIGEST = hashlib.sha1(OpenId.client.encode(), usedforsecurity=False).digest()
ROLE = f"arn:minio:iam:::role/{base64.urlsafe_b64encode(_DIGEST).rstrip(b'=').decode()}"
"""The name that MinIO gives to the role of a provider's client."""


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without credentials."""
    for name in (*VARIABLES, *PROXIES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


class TestKeys:
    def test_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in zip(VARIABLES[:3], "abc", strict=True):
            monkeypatch.setenv(name, value)
        found = find_identity(HERE, "").retrieve()
        assert (found.access_key, found.secret_key, found.session_token) == ("a", "b", "c")

    def test_from_a_mounted_secret(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_secret(tmp_path, "a\n", "b\n")
        monkeypatch.setenv("FEDPIPE_SECRET_DIR", str(tmp_path))
        assert read_mounted(tmp_path) == Credentials("a", "b")
        assert find_identity(HERE, "").retrieve().secret_key == "b"

    def test_a_secret_that_lacks_a_key(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FEDPIPE_SECRET_DIR", str(tmp_path))
        with pytest.raises(StoreError, match="accesskey and secretkey"):
            find_identity(HERE, "")
        write_secret(tmp_path, "a", "\n")
        with pytest.raises(StoreError, match="empty key"):
            find_identity(HERE, "")

    def test_a_secret_that_is_rotated_meanwhile(
        self, minio_server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FEDPIPE_SECRET_DIR", str(tmp_path))
        write_secret(tmp_path, servers.ACCESS_KEY, "old-old-old")
        store = open_store(minio_server.uri).below("rotated")
        with pytest.raises(StoreError, match="refuses the credentials"):
            store.create("a", b"")
        write_secret(tmp_path, servers.ACCESS_KEY, servers.SECRET_KEY)
        with pytest.raises(StoreError, match="refuses the credentials"):
            store.create("a", b"")  # the secret is read again at most once a minute
        monkeypatch.setattr("fedpipe.store.credentials._REFUSED_AGAIN", 0.0)
        assert store.create("a", b"")

    def test_from_a_shared_file(
        self, minio_server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "home" / ".aws" / "credentials"
        path.parent.mkdir(parents=True)
        path.write_text(
            f"[default]\naws_access_key_id = x\n[site]\naws_access_key_id = {servers.ACCESS_KEY}\n"
            f"aws_secret_access_key = {servers.SECRET_KEY}\n"
        )
        with pytest.raises(StoreError, match=r"no keys of the profile 'default'"):
            find_identity(HERE, "")
        monkeypatch.setenv("AWS_PROFILE", "site")
        open_store(minio_server.uri).probe()
        path.write_text("no section, hidden")
        with pytest.raises(StoreError, match=r"credentials cannot be read") as caught:
            find_identity(HERE, "")
        assert "hidden" not in everything(caught.value)

    def test_none_lists_what_was_tried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-hidden")
        monkeypatch.setenv("AWS_ROLE_ARN", "arn")
        with pytest.raises(StoreError, match="there are no credentials for the store") as caught:
            open_store(f"s3://tests?endpoint={HERE}")
        for part in (
            "AWS_SECRET_ACCESS_KEY is not set", "FEDPIPE_SECRET_DIR is not set",
            "AWS_WEB_IDENTITY_TOKEN_FILE is not set although AWS_ROLE_ARN is", "/.aws/credentials does not exist",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI are not set", "AWS_EC2_METADATA_SERVICE_ENDPOINT is not set",
        ):  # fmt: skip
            assert part in caught.value.what
        assert "hidden" not in str(caught.value)

    def test_they_are_never_printed(self) -> None:
        assert "hidden" not in repr(Credentials("a", "hidden"))
        store = MinioStore("bucket", endpoint="http://h:1", credentials=Credentials("a", "hidden"))
        assert "hidden" not in repr(store) + repr(store._identity) + store.uri


def write_secret(folder: Path, access: str, secret: str) -> None:
    (folder / "accesskey").write_text(access)
    (folder / "secretkey").write_text(secret)


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenId]:
    made = OpenId()
    with answering(made.answer) as made.url:
        yield made


@pytest.fixture(scope="module")
def trusting(provider: OpenId, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A MinIO server that trusts the provider's tokens for one role."""
    settings = {
        "MINIO_IDENTITY_OPENID_CONFIG_URL": f"{provider.url}/.well-known/openid-configuration",
        "MINIO_IDENTITY_OPENID_CLIENT_ID": provider.client,
        "MINIO_IDENTITY_OPENID_ROLE_POLICY": "consoleAdmin",
    }
    with servers.running("minio", tmp_path_factory.mktemp("trusting"), settings=settings) as server:
        login = WebIdentityProvider(
            jwt_provider_func=lambda: {"access_token": provider.token()}, sts_endpoint=server.endpoint, role_arn=ROLE
        )
        for _ in range(100):  # it fetches the provider's keys after it has started
            with contextlib.suppress(ValueError):
                login.retrieve()
                break
            time.sleep(0.1)
        yield server


class TestWebIdentity:
    @pytest.fixture(autouse=True)
    def role(self, provider: OpenId, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """Set what Kubernetes sets in a pod, and return the file of the token."""
        token = tmp_path / "token"
        token.write_text(provider.token())
        monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
        return token

    def test_all_requests(self, trusting: servers.Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        store = open_store(trusting.uri).below("web")
        store.probe()
        assert store.create("a", b"one")
        assert store.read("a").data == b"one"
        assert not Users(trusting.uri).has("nobody")
        assert (tmp_path / "token").read_text() not in caplog.text
        assert "AssumeRole" not in caplog.text

    def test_a_new_token_is_used_when_credentials_expire(
        self, trusting: servers.Server, provider: OpenId, role: Path
    ) -> None:
        role.write_text("no token")
        with pytest.raises(StoreError, match=r"the web identity is refused: .* \(HTTP 400\)") as caught:
            open_store(trusting.uri).probe()
        assert trusting.endpoint in str(caught.value.where)
        role.write_text(provider.token(seconds=-60))
        with pytest.raises(StoreError, match=r"the web identity is refused: .*expired") as caught:
            open_store(trusting.uri).probe()
        assert role.read_text() not in everything(caught.value)
        role.write_text(provider.token())
        open_store(trusting.uri).probe()

    def test_the_token_is_missing(self, trusting: servers.Server, role: Path) -> None:
        role.unlink()
        with pytest.raises(StoreError, match="the file that AWS_WEB_IDENTITY_TOKEN_FILE names does not exist"):
            open_store(trusting.uri).probe()

    def test_the_service_is_down(self, role: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{servers.free_port()}")
        with pytest.raises(StoreUnavailableError, match=r"the web identity cannot be requested: .*refused") as caught:
            open_store(f"s3://tests?endpoint={HERE}").probe()
        assert role.read_text() not in everything(caught.value)

    def test_keys_and_secrets_come_first(
        self, minio_server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_secret(tmp_path, servers.ACCESS_KEY, servers.SECRET_KEY)
        monkeypatch.setenv("FEDPIPE_SECRET_DIR", str(tmp_path))
        open_store(minio_server.uri).probe()  # this server trusts no provider


class TestRoles:
    @pytest.fixture
    def metadata(self, minio_server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
        """The service of an instance, whose credentials are MinIO's."""
        made = Metadata(minio_server.endpoint)
        with answering(made.answer) as url:
            monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"{url}/")
            yield made

    def test_an_instance_role(self, metadata: Metadata, minio_server: servers.Server) -> None:
        store = open_store(minio_server.uri).below("instance")
        store.probe()
        assert store.create("a", b"one")
        assert not Users(minio_server.uri).has("nobody")
        assert len(metadata.handed_out) == 2  # one for each client

    def test_it_is_never_requested_through_a_proxy(
        self, metadata: Metadata, minio_server: servers.Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{servers.free_port()}")
        assert find_identity(minio_server.endpoint, "").retrieve().session_token

    def test_credentials_are_renewed_before_they_expire(self, metadata: Metadata, minio_server: servers.Server) -> None:
        metadata._seconds = 3
        store = open_store(minio_server.uri).below("renewed")
        end = time.monotonic() + 60
        while len(set(metadata.handed_out)) == 1 or not metadata.handed_out:
            store.replace("a", b"one")
            assert store.read("a").data == b"one"
            assert time.monotonic() < end
            time.sleep(0.1)
        assert store.read("a").data == b"one"

    def test_an_outage_is_bridged_by_the_old_ones(self, metadata: Metadata, minio_server: servers.Server) -> None:
        metadata._seconds = 100
        identity = find_identity(minio_server.endpoint, "")
        first = identity.retrieve()
        metadata.status = 503
        identity._due = time.monotonic()
        assert identity.retrieve() == first
        identity._held = None
        with pytest.raises(StoreUnavailableError, match=r"the instance's role is refused \(HTTP 503\)"):
            identity.retrieve()

    def test_refused_ones_are_replaced(self, metadata: Metadata, minio_server: servers.Server) -> None:
        metadata.spoiled = 1
        store = open_store(minio_server.uri).below("spoiled")
        assert store.create("a", b"one")
        assert store.size("a") == 3
        assert len(metadata.handed_out) == 2

    def test_refused_ones_are_replaced_once(self, metadata: Metadata, minio_server: servers.Server) -> None:
        metadata.spoiled = 10
        with pytest.raises(StoreError, match="refuses the credentials"):
            open_store(minio_server.uri).probe()
        assert len(metadata.handed_out) == 2

    @pytest.mark.parametrize("status", [403, 404])
    def test_it_has_no_role(self, metadata: Metadata, minio_server: servers.Server, status: int) -> None:
        metadata.status = status
        with pytest.raises(StoreError, match=rf"the instance's role is refused \(HTTP {status}\)"):
            open_store(minio_server.uri).probe()

    def test_a_containers_role(
        self, minio_server: servers.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        made = Metadata(minio_server.endpoint)
        (tmp_path / "token").write_text("container-token")
        with answering(made.answer) as url:
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/container")
            with pytest.raises(StoreError, match="the container's role is refused: AccessDenied: wrong token"):
                open_store(minio_server.uri).probe()
            monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
            open_store(minio_server.uri).probe()

    def test_an_answer_without_credentials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with answering(lambda *_: (200, "application/json", '{"Code": "Failed", "hidden": 1}')) as url:
            monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
            with pytest.raises(StoreError, match="the instance's role is not available") as caught:
                find_identity(HERE, "").retrieve()
        assert "hidden" not in everything(caught.value)

    def test_aws_without_a_metadata_service(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is requested at most for seconds, and everything that was tried is listed."""
        monkeypatch.setattr("fedpipe.store.credentials._METADATA", f"http://127.0.0.1:{servers.free_port()}")
        identity = find_identity("https://s3.us-east-1.amazonaws.com", "us-east-1")
        started = time.monotonic()
        with pytest.raises(StoreError, match=r"AWS_ACCESS_KEY_ID and .*; at http://127.*: .*refused"):
            identity.retrieve()
        assert time.monotonic() - started < 60

    def test_a_service_that_never_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
            monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", address)
            started = time.monotonic()
            with pytest.raises(StoreUnavailableError, match=r"the instance's role cannot be requested: .*timed out"):
                find_identity(HERE, "").retrieve()
            assert time.monotonic() - started < 60

    def test_it_can_be_forbidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(StoreError, match="AWS_EC2_METADATA_DISABLED forbids"):
            find_identity("https://s3.us-east-1.amazonaws.com", "us-east-1")
