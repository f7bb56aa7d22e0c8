"""Finds the credentials of an S3 store where the environment says they are, and renews those that expire."""

from __future__ import annotations

import datetime
import os
import re
import secrets
import string
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import urllib3
from minio.credentials.credentials import Credentials as Held
from minio.credentials.providers import AWSConfigProvider, IamAwsProvider, Provider

from fedpipe.errors import StoreError, StoreUnavailableError
from fedpipe.store.base import SECRET_DIR, Credentials
from fedpipe.store.concealment import environ
from fedpipe.store.network import Pool, RouteError, reason_of, remedy_of

Fetch = Callable[[], Held]
_EARLY = 300.0
"""Seconds before credentials expire from which on new ones are fetched; a quarter of short lives."""
_AGAIN = 10.0
"""Seconds after a failed renewal in which the old credentials are used, while they are valid."""
_REFUSED_AGAIN = 60.0
"""Seconds after a renewal in which a refusal does not cause another one."""
SOURCES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_EC2_METADATA_SERVICE_ENDPOINT",
)  # fmt: skip
"""Variables that lead to credentials; some of them name files."""
_METADATA = "http://169.254.169.254"
_CONTAINER = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")


def new_secret() -> str:
    """Return a secret key for a user of the store."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(40))


class Identity(Provider):
    """Provides the client with credentials: the same ones until they expire or the store refuses them."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch, self._lock = fetch, threading.Lock()
        self._held: Held | None = None
        self._due = self._renewed = float("-inf")

    def retrieve(self) -> Held:
        """Returns valid credentials. Raises StoreError where none can be fetched."""
        with self._lock:
            if self._held is None or time.monotonic() >= self._due:
                return self._fetch_new()
            return self._held

    def _fetch_new(self) -> Held:
        try:
            self._held = self._fetch()
        except StoreUnavailableError:
            if self._held is None or self._held.is_expired():
                raise
            self._due = time.monotonic() + _AGAIN
            return self._held
        left = seconds_left(self._held)
        self._due = time.monotonic() + max(1.0, left - min(_EARLY, left / 4))
        return self._held

    def renew(self) -> bool:
        """Fetches other credentials after a refusal. Returns whether they are others; at most once a minute."""
        with self._lock:
            before, now = self._held, time.monotonic()
            if now - self._renewed < _REFUSED_AGAIN:
                return False
            self._renewed = now
            return before != self._fetch_new()


def seconds_left(credentials: Held) -> float:
    """Returns the seconds until credentials expire; infinity for those that do not."""
    if credentials.expiration is None:
        return float("inf")
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    return float((credentials.expiration - now).total_seconds())


def fixed(credentials: Credentials) -> Identity:
    """Returns the identity of given credentials."""
    return Identity(lambda: Held(*credentials))


def read_mounted(folder: str | Path) -> Credentials:
    """Reads the files `accesskey` and `secretkey` of a mounted secret. Raises StoreError."""
    remedy = "Give the secret the keys accesskey and secretkey."
    try:
        found = [(Path(folder) / name).read_text().strip() for name in ("accesskey", "secretkey")]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise StoreError(f"the mounted secret cannot be read: {why}", where=str(folder), remedy=remedy) from error
    if not all(found):
        raise StoreError("the mounted secret has an empty key", where=str(folder), remedy=remedy)
    return Credentials(*found)


def find_identity(endpoint: str, region: str) -> Identity:
    """Finds the first source of credentials that the environment names; it is asked with the first request.

    Args:
        endpoint: of the store, whose STS answers for a web identity unless the store is on AWS.
        region: of the store.

    Raises:
        StoreError: the environment names none, or the mounted secret lacks a key. All sources are listed.
    """
    missing: list[str] = []
    for look in (_keys, _mounted, _web_identity, _shared_file, _container, _instance):
        found = look(endpoint, region)
        if not isinstance(found, str):
            return Identity(found)
        missing.append(found)
    raise _none_found(missing)


def _none_found(missing: list[str]) -> StoreError:
    what = f"there are no credentials for the store: {'; '.join(missing)}"
    return StoreError(what, remedy=f"Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or {SECRET_DIR}, or another one.")


def _keys(endpoint: str, region: str) -> Fetch | str:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    unset = [name for name in names if not environ.get(name)]
    if unset:
        return f"{' and '.join(unset)} {'are' if len(unset) == 2 else 'is'} not set"
    token = environ.get("AWS_SESSION_TOKEN") or None
    held = Held(environ[names[0]], environ[names[1]], token)
    return lambda: held


def _mounted(endpoint: str, region: str) -> Fetch | str:
    """Reads the secret again after a refusal: Kubernetes updates the files when keys are rotated."""
    folder = environ.get(SECRET_DIR)
    if not folder:
        return f"{SECRET_DIR} is not set"
    read_mounted(folder)
    return lambda: Held(*read_mounted(folder))


def _web_identity(endpoint: str, region: str) -> Fetch | str:
    """Exchanges the token in a file, which Kubernetes renews, for credentials of a role."""
    name = "AWS_WEB_IDENTITY_TOKEN_FILE"
    path = os.environ.get(name)
    if not path:
        alone = " although AWS_ROLE_ARN is" if os.environ.get("AWS_ROLE_ARN") else ""
        return f"{name} is not set{alone}"
    sts = os.environ.get("AWS_ENDPOINT_URL_STS") or (None if _on_aws(endpoint) else endpoint)

    def fetch() -> Held:
        if not Path(path).is_file():
            raise StoreError(f"the file that {name} names does not exist", where=path, remedy=f"Check {name}.")
        pool = _pool("the web identity", 5, 20, 3)
        return _fetched(IamAwsProvider(custom_endpoint=sts, region=region, http_client=pool), pool)

    return fetch


def _shared_file(endpoint: str, region: str) -> Fetch | str:
    profile = os.environ.get("AWS_PROFILE") or "default"
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    if not path.is_file():
        return f"{path} does not exist"
    provider = AWSConfigProvider(str(path), profile)
    try:
        provider.retrieve()
    except ValueError:
        return f"{path} has no keys of the profile {profile!r}"
    except Exception:  # configparser quotes the line with its error, which may hold a key
        return f"{path} cannot be read"
    return lambda: provider.retrieve()


def _container(endpoint: str, region: str) -> Fetch | str:
    if not any(map(os.environ.get, _CONTAINER)):
        return f"{' and '.join(_CONTAINER)} are not set"

    def fetch() -> Held:
        pool = _pool("the container's role", 2, 5, 2, direct=True)
        return _fetched(IamAwsProvider(http_client=pool), pool)

    return fetch


def _instance(endpoint: str, region: str) -> Fetch | str:
    """Asks the metadata service only where it can be expected: it is slow to be missing."""
    given = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "").rstrip("/")
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return "AWS_EC2_METADATA_DISABLED forbids an instance role"
    if not given and not _on_aws(endpoint):
        return "AWS_EC2_METADATA_SERVICE_ENDPOINT is not set, and the store is not on AWS, so no role was requested"

    def fetch() -> Held:
        pool = _pool("the instance's role", 1, 2, 1, direct=True)
        provider = IamAwsProvider(custom_endpoint=given or _METADATA, http_client=pool)
        try:
            return _fetched(provider, pool)
        except StoreError as error:
            if given:
                raise
            others = (_keys, _mounted, _web_identity, _shared_file, _container)
            missing = [str(look(endpoint, region)) for look in others]
            raise _none_found([*missing, f"at {_METADATA}, {error.what}"]) from error

    return fetch


def _on_aws(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def _pool(who: str, connect: float, read: float, retries: int, *, direct: bool = False) -> _IdentityPool:
    again = urllib3.Retry(
        retries, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504), allowed_methods=None,
        raise_on_status=False, redirect=False,
    )  # fmt: skip
    return _IdentityPool(who, direct=direct, timeout=urllib3.Timeout(connect=connect, read=read), retries=again)


class _IdentityPool(Pool):
    """Requests credentials, and reports a refusal with its reason.

    A web identity's token is sent in the body: minio's providers put it into the URL, which logs and errors quote.
    """

    def __init__(self, who: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.who = who

    def urlopen(self, method: str, url: str, redirect: bool = True, **more: Any) -> Any:  # type: ignore[override]
        place, _, query = url.partition("?")
        if method == "POST" and query and not more.get("body"):
            more |= {"body": query, "headers": {"Content-Type": "application/x-www-form-urlencoded"}}
            url = place
        response = super().urlopen(method, url, redirect, **more)
        if response.status == 200:
            return response
        kind = StoreUnavailableError if response.status >= 500 else StoreError
        what = f"{self.who} is refused{_why(response.data)} (HTTP {response.status})"
        raise kind(what, where=place, remedy="Check the role, and whom it trusts.")


def _why(body: bytes) -> str:
    """Returns the code and message of a refusal, in the XML of STS or the JSON of a metadata service."""
    text = body[:4096].decode(errors="replace")
    patterns = [rf'<{name}>([^<]*)<|"{name}"\s*:\s*"([^"]*)"' for name in ("Code", "Message")]
    found = [re.search(pattern, text, re.IGNORECASE) for pattern in patterns]
    parts = [(match[1] or match[2] or "").strip() for match in found if match]
    return "".join(f": {part[:200]}" for part in parts if part)


def _fetched(provider: IamAwsProvider, pool: _IdentityPool) -> Held:
    """Returns a provider's credentials; its errors quote URLs and answers, so they are not passed on."""
    try:
        return provider.retrieve()
    except StoreError:
        raise
    except (urllib3.exceptions.HTTPError, OSError) as error:
        kind = StoreError if isinstance(error, RouteError) and error.lasting else StoreUnavailableError
        what = f"{pool.who} cannot be requested: {reason_of(error)}"
        remedy = remedy_of(error, "Check that the service for credentials can be reached from here.")
    except (ValueError, KeyError, TypeError, AttributeError, ElementTree.ParseError):
        kind, what = StoreError, f"{pool.who} is not available: the answer holds no credentials"
        remedy = "Check that a role is attached."
    raise kind(what, remedy=remedy) from None
