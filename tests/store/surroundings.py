"""Small and real surroundings of a store: a proxy, a certificate authority, an OpenID provider, a metadata service."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID
from minio.credentials import AssumeRoleProvider

from tests import servers


class ForwardProxy:
    """A proxy that forwards absolute URLs and tunnels CONNECT; `seen` lists what it was asked for.

    Args:
        user: `user:password` that it asks for.
        refusal: an HTTP status with which it answers everything.
        certificates: a folder as `make_certificates` writes it, for a proxy that is reached by TLS.
        known: the port of this machine that has all names.
    """

    def __init__(self, user: str = "", refusal: int = 0, certificates: Path | None = None, known: int = 0) -> None:
        self._known = known
        self._expected = f"Basic {base64.b64encode(user.encode()).decode()}" if user else None
        self._refusal = refusal
        self.seen: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"{'https' if certificates else 'http'}://127.0.0.1:{self.port}"
        self._context: ssl.SSLContext | None = None
        if certificates:
            self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._context.load_cert_chain(certificates / "public.crt", certificates / "private.key")
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._accept, sock=self._listener, ssl=self._context):
            self._ready.set()
            await self._over.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
            headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
            method, target, _ = first.split(" ")
            self.seen.append(f"{method} {target.partition('?')[0]}")
            status = self._refusal or (407 if headers.get("proxy-authorization") != self._expected else 0)
            if status:
                writer.write(
                    f"HTTP/1.1 {status} No\r\nContent-Type: text/html\r\nContent-Length: 9\r\nConnection: close\r\n\r\n<p>no</p>".encode()
                )
            else:
                await self._pass_on(method, target, lines, reader, writer)

    async def _pass_on(
        self, method: str, target: str, lines: list[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        place = ("127.0.0.1", self._known) if self._known else (parts.hostname, parts.port or 80)
        up_reader, up_writer = await asyncio.open_connection(*place)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            kept = [line for line in lines if not line.lower().startswith(("proxy-", "connection:"))]
            path = target.partition(parts.netloc)[2] or "/"
            head = "\r\n".join([f"{method} {path} HTTP/1.1", *kept, "Connection: close", "", ""])
            up_writer.write(head.encode("latin-1"))
        with contextlib.closing(up_writer):
            await asyncio.gather(_copy(reader, up_writer), _copy(up_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


def make_certificates(folder: Path) -> Path:
    """Write a certificate authority (ca.pem) and a certificate of 127.0.0.1, as MinIO reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    authority, own = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
    ca = x509.BasicConstraints(ca=True, path_length=None)
    root = _certificate("tests authority", authority, "tests authority", authority, ca)
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    leaf = _certificate("tests server", own, "tests authority", authority, x509.SubjectAlternativeName(names))
    (folder / "ca.pem").write_bytes(root.public_bytes(serialization.Encoding.PEM))
    (folder / "public.crt").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    (folder / "private.key").write_bytes(own.private_bytes(*plain))
    return folder


def _certificate(
    name: str, key: rsa.RSAPrivateKey, issuer: str, signer: rsa.RSAPrivateKey, extension: x509.ExtensionType
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    subject, by = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (name, issuer))
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(identifier, critical=False)
        .sign(signer, hashes.SHA256())
    )


Answer = tuple[int, str, str]
"""Status, content type and body."""


@contextlib.contextmanager
def answering(answer: Callable[[str, str, Mapping[str, str]], Answer]) -> Iterator[str]:
    """Serve what a function of method, path and headers (lower case) returns; yield the URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _do(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, kind, text = answer(self.command, self.path, headers)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_PUT = do_POST = _do  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    class Silent(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Stay silent when a client resets its connection."""

    with Silent(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(value: int) -> str:
    return _b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


class OpenId:
    """An OpenID provider: discovery, keys, and signed tokens."""

    client = "fedpipe"

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.url = ""

    def answer(self, method: str, path: str, headers: Mapping[str, str]) -> Answer:
        if path == "/keys":
            numbers = self._key.public_key().public_numbers()
            key = {"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1"}
            key |= {"n": _number(numbers.n), "e": _number(numbers.e)}
            return 200, "application/json", json.dumps({"keys": [key]})
        found = {"issuer": self.url, "jwks_uri": f"{self.url}/keys", "authorization_endpoint": f"{self.url}/login"}
        found |= {"token_endpoint": f"{self.url}/token", "response_types_supported": ["code"]}
        return 200, "application/json", json.dumps(found)

    def token(self, seconds: float = 3600) -> str:
        """Return a signed token of a pod."""
        now = int(time.time())
        claims = {"iss": self.url, "sub": "pod", "aud": self.client, "iat": now, "exp": now + int(seconds)}
        parts = [_b64(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "1", "typ": "JWT"}, claims)]
        signature = self._key.sign(".".join(parts).encode(), padding.PKCS1v15(), hashes.SHA256())
        return ".".join([*parts, _b64(signature)])


class Metadata:
    """A metadata service (IMDSv2, and a container's) that hands out credentials of MinIO's STS.

    Args:
        endpoint: of the MinIO server.
        seconds: after which the credentials expire, as it says.
    """

    def __init__(self, endpoint: str, seconds: float = 3600) -> None:
        self._endpoint, self._seconds = endpoint, seconds
        self.handed_out: list[str] = []
        self.spoiled = 0  # so many of the next session tokens are wrong
        self.status = 200

    def answer(self, method: str, path: str, headers: Mapping[str, str]) -> Answer:
        if self.status != 200:
            return self.status, "text/plain", "no"
        if path == "/latest/api/token":
            given = "x-aws-ec2-metadata-token-ttl-seconds" in headers and method == "PUT"
            return (200, "text/plain", "session-1") if given else (400, "text/plain", "")
        if path.startswith("/latest/") and headers.get("x-aws-ec2-metadata-token") != "session-1":
            return 401, "text/plain", ""
        if path.endswith("/security-credentials/"):
            return 200, "text/plain", "pod-role"
        if path.startswith("/container") and headers.get("authorization") != "container-token":
            return 403, "application/json", json.dumps({"code": "AccessDenied", "message": "wrong token"})
        return 200, "application/json", json.dumps(self._credentials())

    def _credentials(self) -> dict[str, Any]:
        found = AssumeRoleProvider(
            sts_endpoint=self._endpoint, access_key=servers.ACCESS_KEY, secret_key=servers.SECRET_KEY
        ).retrieve()
        self.handed_out.append(found.access_key)
        token = str(found.session_token)
        if self.spoiled:
            self.spoiled -= 1
            token = token[:-4] + "AAAA"
        until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self._seconds)
        return {
            "Code": "Success", "AccessKeyId": found.access_key, "SecretAccessKey": found.secret_key, "Token": token,
            "Expiration": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }  # fmt: skip
