"""Manages the users of a MinIO server, through its admin API."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import urllib3
from minio import MinioAdmin
from minio.error import MinioAdminException

from fedpipe.errors import StoreError, one_line
from fedpipe.store.base import Credentials
from fedpipe.store.credentials import find_identity, fixed
from fedpipe.store.network import Pool, reason_of, remedy_of
from fedpipe.store.uri import endpoint_of

_SECONDS = 10.0
_REMEDY = (
    "Create a user yourself with the policy that `fedpipe policy` prints, and pass its keys by --access-key and "
    "--secret-key-file."
)


class Users:
    """Creates and removes users of a store.

    Args:
        uri: of the store, `s3://...` with its endpoint.
        credentials: of the store's administrator; those of the environment by default.

    Raises:
        StoreError: fedpipe cannot create users there, or there are no credentials.
    """

    def __init__(self, uri: str, credentials: Credentials | None = None) -> None:
        endpoint = urlsplit(endpoint_of(uri))
        if endpoint.netloc.endswith(".amazonaws.com"):
            raise StoreError("fedpipe cannot create users on AWS", where=uri, remedy=_REMEDY)
        self._uri = uri
        self._admin = MinioAdmin(
            endpoint=endpoint.netloc,
            credentials=fixed(credentials) if credentials else find_identity(endpoint.geturl(), ""),
            secure=endpoint.scheme == "https",
            http_client=Pool(timeout=urllib3.Timeout(_SECONDS), retries=urllib3.Retry(1)),
        )

    def has(self, name: str) -> bool:
        """Returns whether a user exists. Raises StoreError."""
        with self._translated():
            return name in json.loads(self._admin.user_list())

    def put(self, credentials: Credentials, policy: dict[str, Any]) -> None:
        """Creates a user with a policy of its own, or replaces its secret and policy. Raises StoreError."""
        name = credentials.access_key
        with self._translated():
            self._admin.policy_add(name, policy=policy)
            self._admin.user_add(name, credentials.secret_key)
            self._admin.policy_set(name, user=name)

    def remove(self, name: str) -> None:
        """Removes a user and its policy, if they exist. Raises StoreError."""
        with self._translated():
            if self.has(name):
                self._admin.user_remove(name)
            if name in json.loads(self._admin.policy_list()):
                self._admin.policy_remove(name)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (MinioAdminException, ValueError) as error:
            what = f"the store refuses to manage users: {one_line(error)}"
            raise StoreError(what, where=self._uri, remedy=_REMEDY) from error
        except urllib3.exceptions.HTTPError as error:
            what = f"the store's admin API does not answer: {reason_of(error)}"
            raise StoreError(what, where=self._uri, remedy=remedy_of(error, _REMEDY)) from error
