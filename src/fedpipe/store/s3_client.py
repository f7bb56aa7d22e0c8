"""Connects to an S3 server, and signs requests by the server's clock."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

import minio
import minio.time
import urllib3

from fedpipe.errors import StoreError
from fedpipe.store.base import SECRET_DIR

DEADLINE = 60.0
"""Seconds that one request may take with all its retries; a transfer consists of many requests."""
_SKEW = datetime.timedelta(minutes=1)
"""Tolerated difference of two clocks; S3 servers refuse signatures that are 15 minutes off."""


class Credentials(NamedTuple):
    """Holds the credentials of an S3 store, and never prints them."""

    access_key: str
    secret_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        return "Credentials(***)"


def find_credentials(environ: Mapping[str, str] = os.environ) -> Credentials:
    """Reads credentials from `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or from the mounted secret.

    Raises:
        StoreError: there are neither, or a file of the secret is missing.
    """
    if environ.get("AWS_ACCESS_KEY_ID") and environ.get("AWS_SECRET_ACCESS_KEY"):
        token = environ.get("AWS_SESSION_TOKEN")
        return Credentials(environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"], token)
    folder = environ.get(SECRET_DIR)
    if not folder:
        raise StoreError(
            "there are no credentials for the store",
            remedy=f"Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or {SECRET_DIR} to a mounted secret.",
        )
    try:
        return Credentials(*((Path(folder) / name).read_text().strip() for name in ("accesskey", "secretkey")))
    except OSError as error:
        raise StoreError(
            f"the mounted secret cannot be read: {error.strerror}",
            where=folder,
            remedy="Give the secret the keys accesskey and secretkey.",
        ) from error


class SigningClient(minio.Minio):
    """Signs by the server's clock when the clock of this machine is wrong."""

    offset = datetime.timedelta(0)

    def set_clock(self, pool: urllib3.PoolManager, endpoint: str) -> bool | None:
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


def reason_of(error: Exception) -> str:
    """Returns why a connection failed, in a few words."""
    text = str(error.reason) if isinstance(error, urllib3.exceptions.MaxRetryError) else str(error)
    return text.split(": ", 1)[-1][:200]


def connect(endpoint: str, region: str, credentials: Credentials) -> tuple[SigningClient, urllib3.PoolManager]:
    """Makes a client and its pool of connections; sends nothing. Raises StoreError for a malformed endpoint."""
    url = urllib3.util.parse_url(endpoint)
    if url.scheme not in ("http", "https") or not url.netloc or url.path not in (None, "/"):
        raise StoreError(
            f"{endpoint!r} is not an endpoint",
            where="store.endpoint",
            remedy="Write http://host:port or https://host.",
        )
    pool = urllib3.PoolManager(
        maxsize=16,
        timeout=urllib3.Timeout(connect=5, read=60),
        retries=False,  # `MinioStore` retries, with one deadline for all tries
        blocksize=2**20,  # the default is 16 KiB
    )
    client = SigningClient(
        endpoint=url.netloc,
        access_key=credentials.access_key,
        secret_key=credentials.secret_key,
        session_token=credentials.session_token,
        secure=url.scheme == "https",
        region=region,  # without it the client asks for the bucket's location, which many users may not
        http_client=pool,
    )
    return client, pool
