"""Speaks JSON with an HTTP service that a run can do without: small answers, short waits, no redirects."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec
import urllib3

from fedpipe.codec import from_json
from fedpipe.errors import FedpipeError, ServiceError, one_line
from fedpipe.store.network import Address, Pool, reason_of, remedy_of

T = TypeVar("T")

CONNECT_SECONDS = 3.0
ANSWER_SECONDS = 10.0
"""Longest wait for a whole answer."""
MOST_BYTES = 16 * 2**20
"""Largest answer: the latest values of some 100 000 metrics."""
_PIECE = 2**16
_UNVERIFIED: dict[str, Any] = {"cert_reqs": "CERT_NONE", "assert_hostname": False}


class Service:
    """Sends requests to one service.

    Args:
        name: the service in messages, such as `MLflow`.
        address: where it is.
        headers: of each request, beyond the authorization.
        verified: whether its certificate is checked.
        seconds: the longest wait for an answer.
    """

    def __init__(
        self, name: str, address: Address, *, headers: Mapping[str, str] | None = None, verified: bool = True,
        seconds: float = ANSWER_SECONDS,
    ) -> None:  # fmt: skip
        self.name, self.url, self._seconds = name, address.url, seconds
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity", **(headers or {})}
        if address.authorization:
            self._headers["Authorization"] = address.authorization
        self._pool = Pool(**_UNVERIFIED) if not verified else Pool()

    def get(self, path: str, kind: type[T], **query: str) -> T:
        """Reads a resource as a typed struct. Raises ServiceError, whose `status` is HTTP's."""
        return self._answer("GET", f"{path}?{urlencode(query)}" if query else path, None, kind)

    def find(self, path: str, kind: type[T], **query: str) -> T | None:
        """Reads a resource as `get` does; None when there is none. Raises ServiceError."""
        try:
            return self.get(path, kind, **query)
        except ServiceError as error:
            if error.status != 404:
                raise
            return None

    def send(self, method: str, path: str, body: Mapping[str, Any], kind: type[T]) -> T:
        """Sends JSON, and returns the answer as a typed struct. Raises ServiceError."""
        return self._answer(method, path, msgspec.json.encode(body), kind)

    def upload(self, path: str, file: Path, seconds: float) -> None:
        """Puts a file. Raises ServiceError."""
        with file.open("rb") as body:
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(file.stat().st_size)}
            with self._request("PUT", quote(path), body, headers, seconds) as response:
                _read(response, time.monotonic() + seconds)

    def _answer(self, method: str, path: str, body: bytes | None, kind: type[T]) -> T:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        with self._request(method, path, body, headers, self._seconds) as response:
            data = _read(response, time.monotonic() + self._seconds)
        try:
            return from_json(data, kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._error(f"does not answer as documented, because {one_line(error)}") from error

    @contextlib.contextmanager
    def _request(
        self, method: str, path: str, body: Any, headers: Mapping[str, str], seconds: float
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=seconds)
        try:
            response = self._pool.urlopen(
                method, f"{self.url}/{path}", body=body, headers={**self._headers, **headers}, timeout=timeout,
                retries=False, redirect=False, preload_content=False,
            )  # fmt: skip
            try:
                if response.status >= 300:
                    raise self._refusal(response, time.monotonic() + seconds)
                yield response
            finally:
                response.close()
        except ServiceError:
            raise
        except (urllib3.exceptions.HTTPError, OSError, ValueError, FedpipeError) as error:
            remedy = remedy_of(error, "Check its address, and that it runs.")
            raise self._error(f"cannot be reached, because {one_line(reason_of(error))}", remedy=remedy) from error

    def _refusal(self, response: urllib3.BaseHTTPResponse, end: float) -> ServiceError:
        """Returns the error of an answer other than success, with the message of the server if it sends one."""
        try:
            said = from_json(_read(response, end), _Refusal)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError, urllib3.exceptions.HTTPError):
            said = _Refusal()
        why = f", because {one_line(said.message)}" if said.message else ""
        remedy = "Check its credentials." if response.status in (401, 403) else None
        if 300 <= response.status < 400:
            why, remedy = " and sends the request elsewhere", "Use the address that needs no redirect or login."
        return self._error(
            f"refuses a request (HTTP {response.status}){why}", remedy=remedy, status=response.status, code=said.code
        )

    def _error(self, what: str, *, remedy: str | None = None, status: int = 0, code: str = "") -> ServiceError:
        error = ServiceError(f"{self.name} {what}", where=self.url, remedy=remedy)
        error.status, error.code = status, code
        return error


class _Refusal(msgspec.Struct, frozen=True):
    """Holds what MLflow and the Model Registry say when they refuse."""

    message: str = ""
    code: str = msgspec.field(default="", name="error_code")


def _read(response: urllib3.BaseHTTPResponse, end: float) -> bytes:
    """Reads a whole answer, below the limits of size and time; bytes stay as they are sent."""
    found = bytearray()
    while piece := response.read1(_PIECE, decode_content=False):
        found += piece
        if len(found) > MOST_BYTES:
            raise ValueError(f"the answer has more than {MOST_BYTES} bytes")
        if time.monotonic() > end:
            raise TimeoutError("the answer is too slow")
    return bytes(found)
