"""Keeps a store in a folder: the default on a laptop."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from fedpipe.errors import NotFoundError, StoreError, StoreUnavailableError, TooLargeError
from fedpipe.store.base import SMALL, Blob, Entry, Reader, check_key, poll_by_reading
from fedpipe.store.files import SCRATCH
from fedpipe.store.keys import is_passing
from fedpipe.store.places import file_uri

_PIECE = 2**20
_STALE_SECONDS = 24 * 3600
"""Age at which `probe` removes a file that a killed writer left behind."""


class _FileReader:
    """Reads a file up to the size that it had, because another process may append to it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, length: int) -> bytes:
        return self._file.read(max(0, min(length, self.size - self._file.tell())))

    def close(self) -> None:
        self._file.close()


class LocalStore:
    """Keeps objects as files below a folder: atomic by link and rename, swapped under a file lock.

    Args:
        root: the folder.
        prefix: of the keys in it.
    """

    def __init__(self, root: Path, prefix: str = "") -> None:
        self._root = Path(root).absolute()
        self._prefix = prefix
        self._folder = self._root / prefix if prefix else self._root
        self._scratch = self._root / SCRATCH
        self.uri = file_uri(self._folder)

    def below(self, prefix: str) -> Self:
        check_key(prefix)
        return type(self)(self._root, f"{self._prefix}/{prefix}" if self._prefix else prefix)

    def _path(self, key: str) -> Path:
        return self._folder / check_key(key)

    def read(self, key: str, *, limit: int = SMALL) -> Blob:
        path = self._path(key)
        with _mapped(path), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise TooLargeError(f"the object has {size} bytes, the limit is {limit}", where=str(path))
            data = file.read(size)
        return Blob(data, hashlib.sha256(data).hexdigest())

    def poll(self, key: str, version: str = "", *, limit: int = SMALL) -> Blob | None:
        return poll_by_reading(self, key, version, limit)

    def age(self, key: str) -> float | None:
        try:
            with _mapped(self._path(key)):
                written = self._path(key).stat().st_mtime
        except NotFoundError:
            return None
        with self._temporary(key) as temporary, temporary.open("wb") as file:  # a file server's clock counts
            return max(0.0, os.fstat(file.fileno()).st_mtime - written)

    def open(self, key: str) -> Reader:
        path = self._path(key)
        with _mapped(path):
            return _FileReader(path)

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[Reader]:
        reader = self.open(key)
        try:
            with _mapped(self._path(key)):
                yield reader
        finally:
            reader.close()

    def read_range(self, key: str, start: int, length: int) -> bytes:
        with _mapped(self._path(key)), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def size(self, key: str) -> int | None:
        try:
            with _mapped(self._path(key)):
                return self._path(key).stat().st_size
        except NotFoundError:
            return None

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        if path.exists():
            return False
        with self._written(key, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            return True

    def swap(self, key: str, data: bytes, version: str) -> bool:
        with self._locked():
            try:
                current = self.read(key)
            except NotFoundError:
                return False
            if current.version != version:
                return False
            self.replace(key, data)
            return True

    def replace(self, key: str, data: bytes) -> None:
        with self._written(key, data) as temporary:
            temporary.replace(self._path(key))

    def upload(self, key: str, path: Path) -> None:
        with self._temporary(key) as temporary:
            shutil.copyfile(path, temporary)
            temporary.replace(self._path(key))

    def download(self, key: str, path: Path) -> None:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with self._opened(key) as reader, temporary.open("wb") as file:
                while piece := reader.read(_PIECE):
                    file.write(piece)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def keys(self, prefix: str = "", *, limit: int = 0) -> Iterator[str]:
        found = sorted(self._walk(prefix, limit))
        yield from (key for key, _ in found)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        for key, path in sorted(self._walk(prefix, 0)):
            with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                status = Path(path).stat()
                yield Entry(key, status.st_size, status.st_mtime)

    def _walk(self, prefix: str, limit: int) -> Iterator[tuple[str, str]]:
        """Yields keys with their paths, below the folder that the prefix names; at most `limit` of them."""
        inside = prefix.rpartition("/")[0]
        if inside:
            try:
                check_key(inside)
            except StoreError:
                return  # no key begins so
        left, count = [(f"{inside}/" if inside else "", str(self._folder / inside))], 0
        while left:
            above, folder = left.pop()
            for name, path, is_folder in _scan(folder):
                key = f"{above}{name}"
                if is_folder and (key.startswith(prefix) or prefix.startswith(f"{key}/")):
                    left.append((f"{key}/", path))
                elif not is_folder and key.startswith(prefix):
                    yield key, path
                    count += 1
                    if count == limit:
                        return

    def remove_empty_folders(self) -> None:
        """Removes folders without any file, which deleted objects leave. No other process may write meanwhile."""
        for folder, _, _ in os.walk(self._folder, topdown=False):
            if folder != str(self._folder):
                with contextlib.suppress(OSError):  # not empty
                    Path(folder).rmdir()

    def folders(self) -> list[str]:
        if not self._folder.is_dir():
            return []
        return sorted(p.name for p in self._folder.iterdir() if p.is_dir() and not p.name.startswith(SCRATCH))

    def delete(self, key: str) -> None:
        with _mapped(self._path(key)):
            self._path(key).unlink(missing_ok=True)

    def probe(self) -> None:
        """Checks that the folder can be created and written; removes files that writers left a day ago."""
        with self._temporary("probe") as temporary:
            temporary.write_bytes(b"")
        for left in self._scratch.glob("*"):
            with contextlib.suppress(OSError):
                if left.name != "lock" and time.time() - left.stat().st_mtime > _STALE_SECONDS:
                    left.unlink()

    @contextlib.contextmanager
    def _temporary(self, key: str) -> Iterator[Path]:
        """Gives a path on the same file system for an incomplete file, and creates the key's folder."""
        temporary = self._scratch / uuid.uuid4().hex
        try:
            with _mapped(self._folder, absent=StoreError):
                self._scratch.mkdir(parents=True, exist_ok=True)
                self._path(key).parent.mkdir(parents=True, exist_ok=True)
                yield temporary
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    @contextlib.contextmanager
    def _written(self, key: str, data: bytes) -> Iterator[Path]:
        with self._temporary(key) as temporary:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                if not is_passing(key):
                    os.fsync(file.fileno())
            yield temporary

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Allows one swap at a time in the whole folder; the kernel frees the lock of a killed process."""
        with _mapped(self._folder, absent=StoreError):
            self._scratch.mkdir(parents=True, exist_ok=True)
            with (self._scratch / "lock").open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield


def _scan(folder: str) -> list[tuple[str, str, bool]]:
    """Lists a folder: names, paths, and whether each is a folder. An absent folder is empty."""
    try:
        with os.scandir(folder) as found:
            listed = [(one.name, one.path, one.is_dir()) for one in found if not one.name.startswith(SCRATCH)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(listed)


@contextlib.contextmanager
def _mapped(path: Path, absent: type[StoreError] = NotFoundError) -> Iterator[None]:
    """Turns errors of the operating system into errors of the store."""
    try:
        yield
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if missing and absent is NotFoundError:
            raise NotFoundError("there is no such object", where=str(path)) from error
        if error.errno in (errno.EMFILE, errno.ENFILE):  # no fault of this object or its writer
            raise StoreUnavailableError(
                f"the folder cannot be used: {error.strerror}",
                where=str(path),
                remedy="Raise the limit of open files, for instance by ulimit -n.",
            ) from error
        raise StoreError(
            f"the folder cannot be used: {error.strerror}",
            where=str(path),
            remedy="Check its permissions and free space.",
        ) from error
