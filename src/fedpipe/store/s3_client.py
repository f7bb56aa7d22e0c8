"""Connects to an S3 server, and signs requests by the server's clock."""

from __future__ import annotations

import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import minio
import minio.time
import urllib3
from minio.error import InvalidResponseError, S3Error, ServerError

from fedpipe.errors import StoreError
from fedpipe.store.base import Credentials
from fedpipe.store.credentials import Identity, find_identity, fixed
from fedpipe.store.hedging import Hedge
from fedpipe.store.network import Pool, reason_of

DEADLINE = 60.0
"""Seconds that one request may take with all its retries; a transfer consists of many requests."""
_SKEW = datetime.timedelta(minutes=1)
"""Tolerated difference of two clocks; S3 servers refuse signatures that are 15 minutes off."""


class SigningClient(minio.Minio):
    """Signs by the server's clock when the clock of this machine is wrong."""

    offset = datetime.timedelta(0)

    def set_clock(self, pool: Pool, endpoint: str) -> bool | None:
        """Adopts the server's time.

        Returns:
            True if it differs from the time of the last signature, which explains a refusal. False if it does not.
            None if the server does not answer now.
        """
        try:
            answer = pool.urlopen("HEAD", endpoint)
        except urllib3.exceptions.HTTPError:
            return None
        date = answer.headers.get("Date")
        if date is None:
            return None if answer.status >= 500 else False
        offset = parsedate_to_datetime(date) - time_of_signing()
        if abs(offset - self.offset) < _SKEW:
            return False
        self.offset = offset
        return True

    def _build_headers(self, *arguments: Any, **more: Any) -> tuple[dict[str, Any], datetime.datetime]:
        headers, date = super()._build_headers(*arguments, **more)
        headers["x-amz-date"] = minio.time.to_amz_date(date + self.offset)
        return headers, date + self.offset


def time_of_signing() -> datetime.datetime:
    """Returns the current time as the minio package uses it in signatures."""
    return minio.time.utcnow()


def may_pass(error: InvalidResponseError | ServerError) -> bool:
    """Returns whether another try may help: gateways answer with 502 while a server restarts."""
    return _status_of(error) >= 500 or _status_of(error) in (408, 429)


def describe_answer(error: Exception) -> str:
    """Returns what a server or a gateway answered, without its page, or why none answered."""
    if isinstance(error, InvalidResponseError):
        kind = (error._content_type or "no type").partition(";")[0]
        return f"it answers with HTTP {error._code} and {kind}"
    return reason_of(error)


def _status_of(error: InvalidResponseError | ServerError) -> int:
    return error._code if isinstance(error, InvalidResponseError) else error.status_code


def code_of(error: StoreError) -> str:
    """Returns the code by which the server refused a request, such as `InvalidRange`; empty without one."""
    return str(error.__cause__.code) if isinstance(error.__cause__, S3Error) else ""


class Connection(NamedTuple):
    """Holds a client, its pool of connections, the identity that it signs with, and repeats late polls."""

    client: SigningClient
    pool: Pool
    identity: Identity
    hedge: Hedge


def connect(endpoint: str, region: str, credentials: Credentials | None, style: str = "") -> Connection:
    """Makes a client and its pool of connections; sends nothing.

    Args:
        endpoint: `http(s)://host[:port]`.
        region: of the store.
        credentials: those of the environment without them.
        style: `virtual`: the bucket is part of the host's name; `path`: of the path; empty: as AWS or others prefer.

    Raises:
        StoreError: the endpoint is malformed, or there are no credentials.
    """
    url = urllib3.util.parse_url(endpoint)
    if url.scheme not in ("http", "https") or not url.netloc or url.path not in (None, "/"):
        raise StoreError(
            f"{endpoint!r} is not an endpoint",
            where="store.endpoint",
            remedy="Write http://host:port or https://host.",
        )
    identity = fixed(credentials) if credentials else find_identity(endpoint, region)
    pool = Pool(
        maxsize=16,
        timeout=urllib3.Timeout(connect=5, read=60),
        retries=False,  # `MinioStore` retries, with one deadline for all tries
        blocksize=2**20,  # the default is 16 KiB
    )
    client = SigningClient(
        endpoint=url.netloc,
        credentials=identity,
        secure=url.scheme == "https",
        region=region,  # without it the client asks for the bucket's location, which many users may not
        http_client=pool,
    )
    if style == "virtual":
        client.enable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
    elif style:
        client.disable_virtual_style_endpoint()  # type: ignore[no-untyped-call]
    return Connection(client, pool, identity, Hedge())
