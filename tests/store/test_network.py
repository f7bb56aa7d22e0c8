"""Proxies and certificates of other authorities, with a real proxy, real TLS and a real store."""

from __future__ import annotations

import http.server
import itertools
import os
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from fedpipe.errors import FedpipeError, InputError, StoreError, StoreUnavailableError
from fedpipe.store import open_store
from fedpipe.store.network import (
    BUNDLES,
    CLIENT_CERTIFICATE,
    Pool,
    RouteError,
    check_certificate,
    find_proxy,
    is_exempt,
    parse_proxy,
)  # fmt: skip
from fedpipe.store.users import Users
from tests import servers
from tests.store.surroundings import ForwardProxy, make_certificates

_numbers = itertools.count()
PROXIES = [name for scheme in ("http", "https", "all", "no") for name in (f"{scheme}_proxy", f"{scheme}_PROXY".upper())]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, s3_keys: None) -> None:
    """An environment without proxies and bundles."""
    for name in (*PROXIES, *BUNDLES):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls_server(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.running("minio", tmp_path_factory.mktemp("tls-minio"), certificates=certificates) as server:
        yield server


def use(server: servers.Server, tmp_path: Path) -> None:
    """Send every kind of request: by the client, presigned, with a stream, in several parts, and to the admin API."""
    store = open_store(f"s3://tests/routed-{next(_numbers)}?endpoint={server.endpoint}")
    store.probe()
    assert store.create("a", b"one")
    assert not store.create("a", b"two")
    (tmp_path / "large").write_bytes(bytes(66 * 2**20))
    store.upload("large", tmp_path / "large")
    assert store.open("large").read(5) == bytes(5)
    assert list(store.keys()) == ["a", "large"]
    assert not Users(server.uri).has("nobody")


def test_a_bucket_in_the_name_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy stands for the names: conditional, presigned and multipart requests go to the host of the bucket."""
    settings = {"MINIO_DOMAIN": "store.example"}
    with servers.running("minio", tmp_path / "minio", settings=settings) as server:
        with ForwardProxy(known=int(server.endpoint.rpartition(":")[2])) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            store = open_store("s3://tests/routed?endpoint=http://store.example:9000&style=virtual")
            store.probe()
            assert store.create("a", b"one")
            (tmp_path / "large").write_bytes(bytes(20 * 2**20))
            store.upload("large", tmp_path / "large")
            assert store.size("large") == 20 * 2**20
        monkeypatch.delenv("HTTP_PROXY")
        assert list(open_store(f"{server.uri}&style=path").keys()) == ["routed/a", "routed/large"]
    assert {line.split()[1].split("/")[2] for line in proxy.seen} == {"tests.store.example:9000"}
    assert not [line for line in proxy.seen if "/tests/" in line]


class TestProxies:
    @pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
    def test_every_request_passes_it(
        self, minio_server: servers.Server, variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with ForwardProxy() as proxy:
            monkeypatch.setenv(variable, proxy.url)
            use(minio_server, tmp_path)
        assert len(proxy.seen) > 10
        assert any("/minio/admin/" in line for line in proxy.seen)
        assert [line for line in proxy.seen if not line.split(" ")[1].startswith(minio_server.endpoint)] == []

    def test_https_is_tunnelled(
        self, tls_server: servers.Server, certificates: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
        with ForwardProxy(user="me:p@ss/wörd") as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss%2Fw%C3%B6rd@127.0.0.1:{proxy.port}")
            use(tls_server, tmp_path)
        assert set(proxy.seen) == {f"CONNECT {tls_server.endpoint.removeprefix('https://')}"}

    @pytest.mark.parametrize("exempt", ["127.0.0.1", "localhost, 127.0.0.0/8", "*", "127.0.0.1:{port}"])
    def test_no_proxy(
        self, minio_server: servers.Server, exempt: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        with ForwardProxy() as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            monkeypatch.setenv("NO_PROXY", exempt.format(port=minio_server.endpoint.rsplit(":", 1)[1]))
            use(minio_server, tmp_path)
        assert proxy.seen == []

    @pytest.mark.parametrize("secure", [False, True])
    @pytest.mark.parametrize("given", ["", "me:wrong-hidden@"])
    def test_a_password_is_missing_or_wrong(
        self,
        minio_server: servers.Server,
        tls_server: servers.Server,
        secure: bool,
        given: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        server = tls_server if secure else minio_server
        with ForwardProxy(user="me:right") as proxy:
            monkeypatch.setenv("HTTPS_PROXY" if secure else "HTTP_PROXY", f"http://{given}127.0.0.1:{proxy.port}")
            with pytest.raises(
                StoreError, match=r"the proxy http://127.0.0.1:\d+ (asks for|refuses its).*407"
            ) as caught:
                open_store(server.uri).probe()
        assert len(proxy.seen) == 2  # it is created and deleted, without retries
        assert "wrong-hidden" not in everything(caught.value)
        assert "USER:PASSWORD" in str(caught.value.remedy)
        assert ("asks for" in caught.value.what) == (given == "")

    def test_a_proxy_that_forbids_the_host(self, tls_server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
        with ForwardProxy(refusal=403) as proxy:
            monkeypatch.setenv("HTTPS_PROXY", f"http://me:hidden@127.0.0.1:{proxy.port}")
            with pytest.raises(StoreError, match=r"refuses to connect \(HTTP 403\)") as caught:
                open_store(tls_server.uri).probe()
        assert "HTTPS_PROXY" in str(caught.value.remedy)
        assert "NO_PROXY" in str(caught.value.remedy)

    @pytest.mark.parametrize("secure", [False, True])
    def test_a_proxy_behind_tls(
        self,
        minio_server: servers.Server,
        tls_server: servers.Server,
        secure: bool,
        certificates: Path,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        name = "HTTPS_PROXY" if secure else "HTTP_PROXY"
        with ForwardProxy(certificates=certificates) as proxy:
            monkeypatch.setenv(name, proxy.url)
            with pytest.raises(StoreError, match=r"the certificate of the proxy https://127.0.0.1:\d+ is not valid"):
                open_store((tls_server if secure else minio_server).uri).probe()
            monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
            use(tls_server if secure else minio_server, tmp_path)
        assert proxy.seen

    def test_a_proxy_that_answers_itself(self, minio_server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
        store = open_store(minio_server.uri, deadline=0.5)
        with ForwardProxy(refusal=403) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            with pytest.raises(StoreError, match=r"the server is not an S3 store: .*HTTP 403 ?") as caught:
                store.create("a", b"")
            with pytest.raises(
                StoreError, match=r"the server is not an S3 store: it answers with HTTP 403 and text/html"
            ):
                list(store.keys())
            with pytest.raises(StoreError, match=f"through the proxy {proxy.url}"):
                store.size("a")
            assert len(proxy.seen) == 4  # no retries
            assert f"through the proxy {proxy.url}" in str(caught.value)
        with ForwardProxy(refusal=502) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            for call in (lambda: store.create("a", b""), lambda: list(store.keys()), lambda: store.size("a")):
                with pytest.raises(StoreUnavailableError, match="502"):
                    call()

    @pytest.mark.parametrize("secure", [False, True])
    def test_a_proxy_that_is_down(
        self,
        minio_server: servers.Server,
        tls_server: servers.Server,
        secure: bool,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        name = "HTTPS_PROXY" if secure else "HTTP_PROXY"
        monkeypatch.setenv(name, f"http://me:hidden@127.0.0.1:{servers.free_port()}")
        store = open_store((tls_server if secure else minio_server).uri, deadline=0.5)
        with pytest.raises(StoreUnavailableError, match=r"the proxy .* does not answer: .*refused") as caught:
            store.probe()
        assert name in str(caught.value.remedy)
        assert "hidden" not in everything(caught.value)

    @pytest.mark.parametrize(
        ("value", "what"),
        [
            ("socks5://me:hidden@host:1080", "of the kind 'socks5', which is not supported"),
            ("http://me:hid#den@host:3128", "HTTP_PROXY is not the URL of a proxy"),
            ("http://", "HTTP_PROXY is not the URL of a proxy"),
            ("http://host:port", "HTTP_PROXY is not the URL of a proxy"),
        ],
    )
    def test_a_malformed_one(self, value: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", value)
        with pytest.raises(InputError, match=what) as caught:
            open_store("s3://tests?endpoint=http://example.invalid").probe()
        assert "hid" not in everything(caught.value)

    def test_its_forms(self) -> None:
        assert parse_proxy("proxy:3128", "HTTP_PROXY").url == "http://proxy:3128"
        assert parse_proxy("https://proxy", "HTTPS_PROXY").url == "https://proxy:443"
        assert parse_proxy("http://[::1]:3128/", "HTTP_PROXY").url == "http://[::1]:3128"
        assert "secret" not in repr(parse_proxy("http://me:secret@proxy:1", "HTTP_PROXY"))

    def test_lower_case_wins_and_empty_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://upper:1")
        monkeypatch.setenv("http_proxy", "http://lower:1")
        found = find_proxy("http://host")
        assert found is not None
        assert found.url == "http://lower:1"
        monkeypatch.setenv("http_proxy", "")
        assert find_proxy("http://host") is None
        assert find_proxy("https://host") is None

    @pytest.mark.parametrize(
        ("host", "port", "listed", "exempt"),
        [
            ("minio.data.svc.cluster.local", None, ".cluster.local", True),
            ("Minio.Example.org", None, "example.ORG", True),
            ("example.org", None, ".example.org", True),
            ("notexample.org", None, "example.org", False),
            ("s3.example.org", None, "*.example.org", True),
            ("10.20.30.40", 9000, "10.0.0.0/8", True),
            ("11.20.30.40", 9000, "10.0.0.0/8", False),
            ("host", 9000, "host:9001 host:9000", True),
            ("host", 9000, "host:9001", False),
            ("::1", None, "[::1]", True),
            ("fd00::5", None, "fd00::/8", True),
            ("host", None, "", False),
            ("host", None, ",, ,", False),
        ],
    )
    def test_lists_of_exempt_hosts(self, host: str, port: int | None, listed: str, exempt: bool) -> None:
        assert is_exempt(host, port, listed) == exempt


class TestCertificates:
    @pytest.mark.parametrize("variable", BUNDLES)
    def test_a_private_authority(
        self,
        tls_server: servers.Server,
        certificates: Path,
        variable: str,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        path = hashed(certificates / "ca.pem", tmp_path) if variable == "SSL_CERT_DIR" else certificates / "ca.pem"
        monkeypatch.setenv(variable, str(path))
        use(tls_server, tmp_path)

    def test_all_that_are_named_count(
        self, tls_server: servers.Server, certificates: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        other = make_certificates(tmp_path / "other") / "ca.pem"
        monkeypatch.setenv("AWS_CA_BUNDLE", str(other))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
        open_store(tls_server.uri).probe()

    @pytest.mark.parametrize("named", [False, True])
    def test_an_unknown_authority(
        self, tls_server: servers.Server, named: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        if named:
            monkeypatch.setenv("AWS_CA_BUNDLE", str(make_certificates(tmp_path) / "ca.pem"))
        with pytest.raises(StoreError, match=r"the certificate of 127.0.0.1 is not valid") as caught:
            open_store(tls_server.uri).probe()
        assert not isinstance(caught.value, StoreUnavailableError)  # which is raised after retries
        trusted = f"AWS_CA_BUNDLE={tmp_path / 'ca.pem'}" if named else "the system's authorities"
        assert "Set SSL_CERT_FILE" in str(caught.value.remedy)
        assert trusted in str(caught.value.remedy)

    @pytest.mark.parametrize("variable", BUNDLES)
    def test_a_bundle_that_does_not_exist(
        self, tls_server: servers.Server, variable: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(variable, "/nope/ca.pem")
        with pytest.raises(InputError, match=f"/nope/ca.pem: the (file|folder) that {variable} names") as caught:
            open_store(tls_server.uri).probe()
        assert variable in str(caught.value.remedy)

    @pytest.mark.parametrize("data", [b"", b"no certificate", bytes(range(256))])
    def test_a_bundle_that_is_not_pem(
        self, tls_server: servers.Server, data: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "ca.pem").write_bytes(data)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with pytest.raises(InputError, match="the file that SSL_CERT_FILE names is not PEM"):
            open_store(tls_server.uri).probe()

    def test_plain_http_needs_none(self, minio_server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", "/nope/ca.pem")
        open_store(minio_server.uri).probe()

    def test_a_certificate_of_another_host(
        self, tls_server: servers.Server, certificates: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
        other = tls_server.endpoint.replace("127.0.0.1", "localhost")
        with pytest.raises(StoreError, match=r"not valid for 'localhost'\. Check the server's certificate"):
            open_store(f"s3://tests?endpoint={other}").probe()


def test_a_direct_pool_ignores_proxies(minio_server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{servers.free_port()}")
    assert Pool(direct=True, retries=False).request("GET", f"{minio_server.endpoint}/minio/health/live").status == 200


def hashed(certificate: Path, folder: Path) -> Path:
    """A folder as OpenSSL reads it: names are hashes of the subjects."""
    import subprocess

    command = ["openssl", "x509", "-hash", "-noout", "-in", str(certificate)]
    name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    (folder / f"{name}.0").write_bytes(certificate.read_bytes())
    return folder


def everything(error: BaseException | None) -> str:
    """All that a traceback of an error would print, its causes included."""
    import traceback

    assert isinstance(error, FedpipeError)
    assert os.environ  # the environment itself holds the secrets
    return "".join(traceback.format_exception(error))


class TestClientCertificates:
    """A server that asks its clients for a certificate of its authority."""

    @pytest.fixture
    def server(self, certificates: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / "ca.pem"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(certificates / "public.crt", certificates / "private.key")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as made:
            made.socket = context.wrap_socket(made.socket, server_side=True)
            threading.Thread(target=made.serve_forever, daemon=True).start()
            yield f"https://127.0.0.1:{made.server_address[1]}/"
            made.shutdown()

    def test_is_presented(
        self, server: str, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        both = tmp_path / "client.pem"
        both.write_bytes((certificates / "public.crt").read_bytes() + (certificates / "private.key").read_bytes())
        monkeypatch.setenv(CLIENT_CERTIFICATE, str(both))
        assert Pool(retries=False).request("GET", server).status == 200

    def test_is_missing(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(CLIENT_CERTIFICATE, raising=False)
        while True:  # a request that is still being sent is cut off before the reason arrives
            with pytest.raises(urllib3.exceptions.HTTPError) as caught:
                Pool(retries=False).request("GET", server)
            if isinstance(caught.value, RouteError):
                break
        assert "asks for a certificate of this client" in str(caught.value)
        assert caught.value.remedy.startswith(f"Set {CLIENT_CERTIFICATE} to a PEM file")

    def test_is_of_another_authority(self, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        others = make_certificates(tmp_path / "others")
        both = tmp_path / "client.pem"
        both.write_bytes((others / "public.crt").read_bytes() + (others / "private.key").read_bytes())
        monkeypatch.setenv(CLIENT_CERTIFICATE, str(both))
        with pytest.raises(urllib3.exceptions.HTTPError):
            Pool(retries=False).request("GET", server)

    def test_cannot_be_read(self, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(CLIENT_CERTIFICATE, str(tmp_path / "none.pem"))
        with pytest.raises(
            InputError, match=r"none\.pem: the client's certificate and key cannot be read: No such file"
        ):
            Pool(retries=False).request("GET", server)
        (tmp_path / "half.pem").write_text("nothing")
        with pytest.raises(InputError, match=r"it does not hold both"):
            check_certificate(str(tmp_path / "half.pem"), "certificate")
