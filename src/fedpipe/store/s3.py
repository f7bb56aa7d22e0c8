"""Keeps a store in any S3 bucket, through the `minio` package."""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import urllib3
from minio.error import InvalidResponseError, S3Error, ServerError

from fedpipe.errors import CorruptError, FedpipeError, NotFoundError, StoreError, StoreUnavailableError, TooLargeError
from fedpipe.store.base import SMALL, Blob, Credentials, Entry, Reader, check_key, probe_conditional_writes
from fedpipe.store.bodies import TornError, check_start, is_torn, read_exactly, release, size_of, version_of
from fedpipe.store.credentials import seconds_left
from fedpipe.store.multipart import LARGE, upload_in_parts
from fedpipe.store.network import RouteError, remedy_of, via
from fedpipe.store.s3_client import DEADLINE, Connection, code_of, connect, describe_answer, may_pass, time_of_signing

T = TypeVar("T")
PROBE_DEADLINE = 8.0
"""Seconds after which `probe` reports a mistyped endpoint."""
_PIECE = 2**20
_TRANSIENT = {
    "InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown", "SlowDownRead",
    "SlowDownWrite", "ConditionalRequestConflict", "XMinioServerNotInitialized",
}  # fmt: skip
_DENIED = {
    "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken",
    "InvalidTokenId", "ExpiredPresignRequest", "RequestExpired", "RequestNotReadyYet", "RequestTimeTooSkewed",
}  # fmt: skip
"""Codes for refused credentials; a wrong clock causes most of them, depending on the server."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")


class MinioStore:
    """Keeps objects in a bucket below a prefix.

    Conditional writes are presigned PUTs with `If-None-Match` or `If-Match`. The minio package cannot send these
    headers itself: it turns them into user metadata and overwrites silently.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str,
        region: str = "us-east-1",
        credentials: Credentials | None = None,
        style: str = "",
        deadline: float = DEADLINE,
        _connection: Connection | None = None,
    ) -> None:
        if not _BUCKET.fullmatch(bucket):
            raise StoreError(
                f"{bucket!r} is not a valid bucket name",
                where=f"s3://{bucket}",
                remedy="Use 3 to 63 lower-case letters, digits, '.' and '-'.",
            )
        self._bucket, self._prefix, self._deadline = bucket, prefix, deadline
        self._endpoint, self._region, self._credentials = endpoint, region, credentials
        self._connection = _connection or connect(endpoint, region, credentials, style)
        self._client, self._pool, self._identity, self._hedge = self._connection
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        self._torn: dict[str, tuple[str, int]] = {}  # versions that arrived with other bytes, by key, and how often

    def below(self, prefix: str) -> Self:
        return self._again(self._key(prefix), self._deadline)

    def _again(self, prefix: str, deadline: float) -> Self:
        return type(self)(
            self._bucket, prefix, endpoint=self._endpoint, region=self._region, credentials=self._credentials,
            deadline=deadline, _connection=self._connection,
        )  # fmt: skip

    def _key(self, key: str) -> str:
        check_key(key)
        return f"{self._prefix}/{key}" if self._prefix else key

    def _where(self, key: str) -> str:
        return f"{self.uri}/{key}" if key else f"{self.uri} at {self._endpoint}{via(self._endpoint)}"

    def _retried(self, call: Callable[[], T], key: str) -> T:
        """Retries a request after transient faults, with growing waits, until the deadline."""
        end = time.monotonic() + self._deadline
        for attempt in itertools.count():
            try:
                return call()
            except S3Error as error:
                was_wrong = self._client.set_clock(self._pool, self._endpoint) if error.code in _DENIED else False
                if was_wrong or (error.code in _DENIED and was_wrong is not None and self._identity.renew()):
                    continue
                if error.code not in _TRANSIENT and was_wrong is not None:
                    raise self._translated(error, key) from error
                cause: Exception = error
            except (InvalidResponseError, ServerError) as error:
                if not may_pass(error):
                    what = f"the server is not an S3 store: {describe_answer(error)}"
                    raise StoreError(what, where=self._where(""), remedy="Check the endpoint.") from error
                cause = error
            except (urllib3.exceptions.HTTPError, OSError) as error:
                if isinstance(error, RouteError) and error.lasting:
                    raise StoreError(str(error), where=self._where(""), remedy=error.remedy) from error
                cause = error
            # Jitter keeps a crowd of learners from retrying at the same moment.
            wait = min(5.0, 0.1 * 2**attempt) * random.uniform(0.5, 1.0)  # noqa: S311
            if time.monotonic() + wait > end:
                raise StoreUnavailableError(
                    f"the store cannot be reached: {describe_answer(cause)}",
                    where=self._where(""),
                    remedy=remedy_of(cause, "Check the endpoint, and that the server is running."),
                ) from cause
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _translated(self, error: S3Error, key: str) -> StoreError:
        if error.code in ("NoSuchKey", "NoSuchObject"):
            return NotFoundError("there is no such object", where=self._where(key))
        if error.code == "NoSuchBucket":
            return StoreError(
                f"the bucket {self._bucket!r} does not exist",
                where=self._where(""),
                remedy="Create the bucket first.",
            )
        if error.code in _DENIED:
            return StoreError(
                f"the store refuses the credentials ({error.code}){via(self._endpoint)}",
                where=self._where(key),
                remedy="Check the access key, the secret key and the policy of this user.",
            )
        return StoreError(f"the store refuses the request: {error.code}: {error.message}", where=self._where(key))

    def read(self, key: str, *, limit: int = SMALL) -> Blob:
        def call() -> Blob:
            with self._opened(key) as response:
                return self._whole(response, key, limit)

        return self._retried(call, key)

    def _whole(self, response: Any, key: str, limit: int) -> Blob:
        size = size_of(response, self._where(key))
        if size > limit:
            raise TooLargeError(f"the object has {size} bytes, the limit is {limit}", where=self._where(key))
        version = version_of(response, self._where(key))
        blob = Blob(read_exactly(response, size, self._where(key)), version)
        known, seen = self._torn.get(key, ("", 0))
        count = 1 + seen * (known == version)
        if is_torn(blob, response.headers) and count <= 3:  # the ETag may be no MD5
            self._torn[key] = (version, count)
            raise TornError(f"{self._where(key)} was written while it was read")
        self._torn.pop(key, None)
        return blob

    def poll(self, key: str, version: str = "", *, limit: int = SMALL) -> Blob | None:
        condition = {"If-None-Match": version} if version else {}

        def send() -> Any:
            return self._pool.urlopen("GET", self._presigned("GET", key), headers=condition, preload_content=False)

        def call() -> Blob | None:
            response = self._hedge.first(send)
            try:
                if response.status == 200:
                    return self._whole(response, key, limit)
                if response.status == 304:
                    return None
                raise _refusal(response)
            finally:
                release(response)

        try:
            return self._retried(call, key)
        except NotFoundError:
            return None

    def age(self, key: str) -> float | None:
        try:
            found = self._retried(lambda: self._client.stat_object(self._bucket, self._key(key)), key)
        except NotFoundError:
            return None
        now = (found.metadata or {}).get("Date")
        if now is None or found.last_modified is None:
            raise StoreError("the store does not report its time", where=self._where(key))
        return max(0.0, (parsedate_to_datetime(str(now)) - found.last_modified).total_seconds())

    def _presigned(self, method: str, key: str, seconds: float = 900.0) -> str:
        return self._client.get_presigned_url(
            method, self._bucket, self._key(key), expires=datetime.timedelta(seconds=seconds),
            request_date=time_of_signing() + self._client.offset,
        )  # fmt: skip

    @contextlib.contextmanager
    def _opened(self, key: str, start: int = 0, length: int = 0) -> Iterator[Any]:
        response = self._client.get_object(self._bucket, self._key(key), offset=start, length=length)
        try:
            yield response
        finally:
            release(response)

    def open(self, key: str) -> Reader:
        return _MinioReader(self, key)

    def _start(self, key: str, start: int) -> Any:
        response = self._retried(lambda: self._client.get_object(self._bucket, self._key(key), offset=start), key)
        try:
            check_start(response, start, self._where(key))
            size_of(response, self._where(key))
        except FedpipeError:
            response.close()
            raise
        return response

    def read_range(self, key: str, start: int, length: int) -> bytes:
        def call() -> bytes:
            with self._opened(key, start, length) as response:
                check_start(response, start, self._where(key))
                return read_exactly(response, min(length, size_of(response, self._where(key))), self._where(key))

        if length <= 0:
            return b""
        try:
            return self._retried(call, key)
        except NotFoundError:
            raise
        except StoreError as error:
            if code_of(error) == "InvalidRange":
                return b""
            raise

    def size(self, key: str) -> int | None:
        try:
            return self._retried(lambda: self._client.stat_object(self._bucket, self._key(key)), key).size
        except NotFoundError:
            return None

    def create(self, key: str, data: bytes) -> bool:
        return self._put_if(key, data, {"If-None-Match": "*"})

    def swap(self, key: str, data: bytes, version: str) -> bool:
        return self._put_if(key, data, {"If-Match": version})

    def _put_if(self, key: str, data: bytes, condition: dict[str, str]) -> bool:
        tries = 0

        def call() -> bool:
            nonlocal tries
            tries += 1
            return self._put(key, data, condition)

        if self._retried(call, key):
            return True
        # An earlier try may have succeeded although its response was lost: then the bytes are ours.
        return tries > 1 and self.size(key) is not None and self.read(key).data == data

    def _put(self, key: str, body: Any, headers: dict[str, str]) -> bool:
        response = self._pool.urlopen("PUT", self._presigned("PUT", key), body=body, headers=headers)
        if response.status == 200:
            return True
        # MinIO answers 404 to If-Match on an absent object, which counts as lost; a missing bucket is an error.
        if response.status == 412 or (response.status == 404 and b"NoSuchKey" in response.data):
            return False
        raise _refusal(response)

    def replace(self, key: str, data: bytes) -> None:
        self._retried(lambda: self._put(key, data, {}), key)

    def upload(self, key: str, path: Path) -> None:
        if path.stat().st_size > LARGE:
            upload_in_parts(self, key, path)
            return

        def call() -> None:
            with path.open("rb") as file:
                self._put(key, file, {"Content-Length": str(path.stat().st_size)})

        self._retried(call, key)

    def download(self, key: str, path: Path) -> None:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        reader = self.open(key)
        try:
            with temporary.open("wb") as file:
                while piece := reader.read(_PIECE):
                    file.write(piece)
            temporary.replace(path)
        finally:
            reader.close()
            temporary.unlink(missing_ok=True)

    def keys(self, prefix: str = "", *, limit: int = 0) -> Iterator[str]:
        yield from (entry.key for entry in self.entries(prefix, limit))

    def entries(self, prefix: str = "", limit: int = 0) -> Iterator[Entry]:
        root = f"{self._prefix}/" if self._prefix else ""

        def call() -> list[Entry]:
            found = self._client.list_objects(self._bucket, prefix=root + prefix, recursive=True)
            return [_entry(one, len(root)) for one in itertools.islice(found, limit or None)]

        yield from sorted(self._retried(call, prefix))

    def folders(self) -> list[str]:
        root = f"{self._prefix}/" if self._prefix else ""

        def call() -> list[str]:
            found = self._client.list_objects(self._bucket, prefix=root)
            return [str(o.object_name)[len(root) :].rstrip("/") for o in found if o.is_dir]

        return sorted(self._retried(call, ""))

    def delete(self, key: str) -> None:
        self._retried(lambda: self._client.remove_object(self._bucket, self._key(key)), key)

    def probe(self) -> None:
        probe_conditional_writes(self._again(self._prefix, min(PROBE_DEADLINE, self._deadline)), uuid.uuid4().hex)

    def lend(self, method: str, key: str, seconds: float) -> str:
        """Returns a URL that allows one kind of request for one object, for a while (`fedpipe.store.lent`)."""
        return self._presigned(method, key, seconds)

    def key_life(self) -> float:
        """Returns the seconds until the keys of the store expire, and URLs made with them; infinity without an end."""
        return seconds_left(self._identity.retrieve())

    def make_bucket(self) -> bool:
        """Creates the bucket unless it exists. Returns whether this call created it. Raises StoreError."""

        def call() -> bool:
            try:
                self._client.make_bucket(self._bucket)
            except S3Error as error:
                if error.code != "BucketAlreadyOwnedByYou":
                    raise
                return False
            return True

        return self._retried(call, "")


class _MinioReader:
    """Reads a stream, and resumes it where it was when a connection breaks."""

    def __init__(self, store: MinioStore, key: str) -> None:
        self._store, self._key, self._position = store, key, 0
        self._response = store._start(key, 0)
        self._version = version_of(self._response, store._where(key))
        self.size = int(self._response.headers["Content-Length"])  # which `_start` has checked

    def read(self, length: int) -> bytes:
        wanted = min(length, self.size - self._position)
        pieces = []
        while wanted:
            piece = self._store._retried(functools.partial(self._piece, wanted), self._key)
            pieces.append(piece)
            self._position += len(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, wanted: int) -> bytes:
        try:
            if self._response is None:
                self._response = self._store._start(self._key, self._position)
                if self._response.headers.get("ETag") != self._version:
                    raise CorruptError("the object changed while it was read", where=self._store._where(self._key))
            piece = bytes(self._response.read(wanted))
            if not piece:
                raise urllib3.exceptions.ProtocolError("the connection ended early")
            return piece
        except (urllib3.exceptions.HTTPError, OSError):
            self.close()
            raise

    def close(self) -> None:
        if self._response is not None:
            release(self._response)
            self._response = None


def _entry(found: Any, skipped: int) -> Entry:
    return Entry(str(found.object_name)[skipped:], found.size or 0, found.last_modified.timestamp())


def _refusal(response: Any) -> Exception:
    """Returns the error that a response stands for."""
    if b"<Error>" in response.data:
        return S3Error.fromxml(response)
    return ServerError(f"HTTP {response.status}", response.status)
