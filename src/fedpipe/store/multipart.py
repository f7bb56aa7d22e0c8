"""Uploads a large file to S3 in parts: a broken connection repeats a part, and a later call continues.

Until an upload is complete, its name at the server is kept: in this process, and in a folder that `UPLOADS` names. So a
process that was killed continues when it has the same bytes again. A part at the server counts if its MD5 is that of
the file's part.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, tostring

from minio.error import S3Error
from msgspec import Struct

from fedpipe.errors import FedpipeError, NotFoundError, StoreError, StoreUnavailableError
from fedpipe.store.files import write_whole
from fedpipe.store.objects import decoded_file, encode
from fedpipe.store.s3_client import code_of

if TYPE_CHECKING:
    from fedpipe.store.s3 import MinioStore

UPLOADS = "FEDPIPE_UPLOADS"
"""Environment variable: the folder in which one process keeps the names of its unfinished uploads."""
PART = 8 * 2**20
"""Bytes of a part. S3 allows no less than 5 MiB."""
LARGE = 2 * PART
"""Bytes above which a file is sent in parts; a smaller one takes two requests less in one piece."""
_AT_ONCE = 2
"""Parts that are sent at the same time: a broken line repeats no more than these."""
_MOST_PARTS = 10_000
_PAGE = 1000
_TRIES = 3


class Begun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An upload that is not complete: the store and the key of its object, and its name at the server."""

    store: str
    key: str
    upload: str


class Unfinished:
    """The uploads that are not complete.

    Args:
        folder: of their names, for this process alone; empty: they are kept in memory only.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder) if folder else None
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], Begun] = {}
        self._earlier: dict[tuple[str, str], Begun] = {}
        for path in sorted(self._folder.iterdir()) if self._folder and self._folder.is_dir() else []:
            with contextlib.suppress(FedpipeError):
                if begun := decoded_file(path, Begun):
                    self._earlier[begun.store, begun.key] = begun

    def find(self, store: str, key: str) -> Begun | None:
        """Returns the unfinished upload of an object, also of an earlier process; None without one."""
        with self._lock:
            return self._known.get((store, key)) or self._earlier.get((store, key))

    def keep(self, begun: Begun) -> Begun:
        """Keeps an upload until it is complete, and returns it. The folder need not be writable."""
        with self._lock:
            self._known[begun.store, begun.key] = begun
            if path := self._path(begun.store, begun.key):
                with contextlib.suppress(FedpipeError, OSError):
                    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    write_whole(path, encode(begun), mode=0o600)
        return begun

    def forget(self, store: str, key: str) -> None:
        """Drops an upload that is complete, or that nobody will continue."""
        with self._lock:
            for known in (self._known, self._earlier):
                known.pop((store, key), None)
            if path := self._path(store, key):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def earlier(self, store: str) -> list[Begun]:
        """Returns the uploads to a store that an earlier process has left, and that nothing has continued."""
        with self._lock:
            return [begun for begun in self._earlier.values() if begun.store == store]

    def _path(self, store: str, key: str) -> Path | None:
        return self._folder and self._folder / hashlib.sha256(f"{store}\n{key}".encode()).hexdigest()


unfinished = functools.cache(Unfinished)
"""Returns the unfinished uploads of this process, by their folder."""


def upload_in_parts(store: MinioStore, key: str, path: Path) -> None:
    """Uploads a file, and continues what an earlier call or process has left.

    An object with the same bytes stays as it is. The uploads of other objects that an earlier process has left are
    ended: its work was lost with it.

    Args:
        store: of the object.
        key: of the object.
        path: of the file.

    Raises:
        StoreUnavailableError: the store does not answer; a later call continues.
        StoreError: the store refuses.
    """
    kept, place = unfinished(os.environ.get(UPLOADS, "")), f"{store.uri} at {store._endpoint}"
    for begun in kept.earlier(place):
        if begun.key != key:
            _Transfer(store, begun.key).abort(begun.upload)
            kept.forget(place, begun.key)
    with path.open("rb") as file:
        transfer = _Transfer(store, key, file)
        for _ in range(_TRIES):
            known = kept.find(place, key)
            begun = known or kept.keep(Begun(store=place, key=key, upload=transfer.begin()))
            try:
                transfer.send(begun.upload, resumed=known is not None)
            except StoreUnavailableError:
                raise
            except StoreError as error:
                kept.forget(place, key)
                if code_of(error) != "NoSuchUpload":
                    transfer.abort(begun.upload)
                    raise
                if not transfer.is_there():  # the server or its administrator has ended the upload
                    continue
            kept.forget(place, key)
            return
    raise StoreError(
        f"the store has ended the upload {_TRIES} times before it was complete", where=f"{store.uri}/{key}",
        remedy="Check the bucket's lifecycle rule for incomplete uploads.",
    )  # fmt: skip


class _Transfer:
    """The requests of an upload.

    Args:
        store: of the object.
        key: of the object.
        file: its bytes; None to abort only.
    """

    def __init__(self, store: MinioStore, key: str, file: IO[bytes] | None = None) -> None:
        self._store, self._key, self._file = store, key, file
        self._client, self._bucket, self._name = store._client, store._bucket, store._key(key)
        self._size = os.fstat(file.fileno()).st_size if file else 0
        self._length = max(PART, -(-self._size // _MOST_PARTS))
        self._numbers = range(1, -(-self._size // self._length) + 1)

    def begin(self) -> str:
        """Begins an upload, and returns its name at the server."""

        def call() -> str:
            return self._client._create_multipart_upload(self._bucket, self._name, {})

        return self._store._retried(call, self._key)

    def send(self, upload: str, *, resumed: bool) -> None:
        """Sends the parts that the server does not have, and completes the upload."""
        known = self._at_server(upload) if resumed else {}
        pool = ThreadPoolExecutor(_AT_ONCE)
        try:
            versions = list(pool.map(lambda number: self._sent(upload, number, known.get(number, "")), self._numbers))
        finally:
            pool.shutdown(cancel_futures=True)
        self._complete(upload, versions)

    def _sent(self, upload: str, number: int, known: str) -> str:
        """Sends a part, unless its version at the server is that of the file, and returns its version."""
        data = self._part(number)
        if known and known == _md5(data).hex():
            return known
        send = functools.partial(self._client._upload_part, self._bucket, self._name, data, None, upload, number)
        return self._store._retried(send, self._key)

    def _part(self, number: int) -> bytes:
        assert self._file is not None
        return os.pread(self._file.fileno(), self._length, (number - 1) * self._length)

    def _at_server(self, upload: str) -> dict[int, str]:
        """Returns the versions of the parts at the server; none if it does not show them."""
        found: dict[int, str] = {}
        try:
            for _ in range(_MOST_PARTS // _PAGE):
                marker = str(max(found)) if found else None
                page = self._store._retried(
                    functools.partial(
                        self._client._list_parts, self._bucket, self._name, upload, _PAGE, part_number_marker=marker
                    ),
                    self._key,
                )
                found |= {part.part_number: part.etag for part in page.parts}
                if not page.is_truncated:
                    break
        except StoreUnavailableError:
            raise
        except StoreError as error:
            if code_of(error) == "NoSuchUpload":
                raise
            return {}
        return found

    def _complete(self, upload: str, versions: list[str]) -> None:
        """Makes the object of its parts, unless it exists with the same bytes."""
        body = _listed(versions)
        try:
            self._completed(upload, body, {"If-None-Match": "*"})
        except StoreError as error:
            if code_of(error) != "PreconditionFailed":
                raise
            if self.is_there():
                self.abort(upload)
            else:  # its bytes do not match its name
                self._completed(upload, body, {})

    def _completed(self, upload: str, body: bytes, condition: dict[str, str]) -> None:
        def call() -> None:
            response = self._client._execute(
                "POST", self._bucket, self._name, body=body, query_params={"uploadId": upload},
                headers={"Content-Type": "application/xml", **condition},
            )  # fmt: skip
            if b"<Error>" in response.data:  # a server that takes long has answered 200 before it knew
                raise S3Error.fromxml(response)

        self._store._retried(call, self._key)

    def is_there(self) -> bool:
        """Returns whether the object exists, as these parts make it."""
        try:
            found = self._store._retried(lambda: self._client.stat_object(self._bucket, self._name), self._key)
        except NotFoundError:
            return False
        parts = b"".join(_md5(self._part(number)) for number in self._numbers)
        return found.etag == f"{_md5(parts).hex()}-{len(self._numbers)}"

    def abort(self, upload: str) -> None:
        """Ends an upload, if the store allows it; else its lifecycle rule does."""
        with contextlib.suppress(FedpipeError):
            self._store._retried(
                lambda: self._client._abort_multipart_upload(self._bucket, self._name, upload), self._key
            )


def _md5(data: bytes) -> bytes:
    """Returns the digest by which S3 names the versions of parts; it does not protect against anybody."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def _listed(versions: list[str]) -> bytes:
    """Returns the body of the request that makes an object of parts."""
    body = Element("CompleteMultipartUpload", xmlns="http://s3.amazonaws.com/doc/2006-03-01/")
    for number, version in enumerate(versions, 1):
        part = SubElement(body, "Part")
        SubElement(part, "PartNumber").text = str(number)
        SubElement(part, "ETag").text = f'"{version}"'
    return tostring(body)
