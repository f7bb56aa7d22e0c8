"""The journal of a site: all that was read, decided, trained and sent, as a chain that the site signs.

    journal/0000000001.jsonl     entries, one JSON object a line; the name is the number of the first one
    journal/head                 number and digest of the last entry, and where it ends, signed by the site
    journal/lock                 held by the process that appends

Entries are numbered without a gap, and each has the digest of the one before, across files. The new head is signed and
written as `head.next` before its entries, and takes the place of `head` after them. So a crash at any point leaves
enough to repair the end, and entries that are missing at the end are found. A full disk or a crash never damages
earlier entries.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct
from msgspec.structs import replace

from fedpipe.errors import CorruptError, InputError
from fedpipe.identity.signing import Signature, Signer
from fedpipe.identity.statements import is_signed_by, signed_with
from fedpipe.store.objects import canonical, decode, decoded_file, digest_of

ROTATION = 4 * 2**20
"""Bytes of a file after which the next one begins."""
LONGEST = 64 * 2**10
"""Most bytes of an entry."""
DAY = 24 * 3600.0
Event = Annotated[str, Meta(pattern=r"^[a-z][a-z\-]{0,38}\Z")]
Number = Annotated[int, Meta(ge=0, le=2**53)]


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that happened at a site.

    `n` counts from 1, `at` is in seconds since 1970, `previous` is the digest of the line before: empty for the first.
    """

    n: Annotated[int, Meta(ge=1, le=2**53)]
    at: Annotated[float, Meta(ge=0, le=2.0**42)]
    event: Event
    fields: dict[str, Any] = {}
    previous: str = ""


class JournalHead(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The end of a journal: the number and the digest of its last entry, the file that has it, and that file's size."""

    format: int = 1
    entries: Number = 0
    digest: str = ""
    first: Number = 1
    size: Number = 0
    signature: Signature | None = None


class Usage(NamedTuple):
    """The work of the last 24 hours: rounds that were trained, and bytes that were sent."""

    rounds: int = 0
    bytes: int = 0


class _Day:
    """The entries of the last 24 hours, in memory: each object that is sent asks for their sum.

    The files are read at first, and again after another process has appended, or the clock was set back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last, self._begin = -1, 0.0
        self._counted: list[tuple[float, int, int]] = []  # a heap of time, rounds and bytes
        self._rounds = self._bytes = 0

    def add(self, entry: Entry) -> None:
        """Count an entry that this process has appended."""
        if entry.n == self._last + 1:
            self._last = entry.n
            self._count(entry)

    def usage(self, folder: Path) -> Usage:
        """Return the sum, while no process appends. Raises InputError and CorruptError."""
        begin, head = self._clock() - DAY, read_head(folder) or JournalHead()
        if head.entries != self._last or begin < self._begin:
            self._read(folder, begin)
            self._last = head.entries
        self._begin = begin
        while self._counted and self._counted[0][0] <= begin:
            _, rounds, sent = heapq.heappop(self._counted)
            self._rounds, self._bytes = self._rounds - rounds, self._bytes - sent
        return Usage(self._rounds, self._bytes)

    def _read(self, folder: Path, begin: float) -> None:
        self._counted, self._rounds, self._bytes, self._last = [], 0, 0, -1
        for path in reversed(files_of(folder)):
            entries = [entry for entry in _entries_in(path) if entry.at > begin]
            for entry in entries:
                self._count(entry)
            if not entries and path.stat().st_size:  # an empty one is that of a process that ended before its line
                break

    def _count(self, entry: Entry) -> None:
        rounds = int(entry.event == "trained")
        sent = int(entry.fields.get("bytes", 0)) if entry.event == "sent" else 0
        if rounds or sent:
            heapq.heappush(self._counted, (entry.at, rounds, sent))
            self._rounds, self._bytes = self._rounds + rounds, self._bytes + sent


class Journal:
    """Appends to the journal of a site; several processes may do so at once.

    Args:
        folder: of the journal; it is made.
        signer: signs the end with the key of the site's decisions.
        clock: seconds since 1970.
        rotation: bytes of a file after which the next one begins.

    Raises:
        InputError: the folder cannot be written.
        CorruptError: the end of the journal was changed.
    """

    def __init__(
        self, folder: Path, signer: Signer, *, clock: Callable[[], float] = time.time,
        rotation: int = ROTATION,
    ) -> None:  # fmt: skip
        self.folder, self._signer, self._clock, self._rotation = folder, signer, clock, rotation
        self._last = 0
        self._day = _Day(self._clock)
        with self._writing("the journal's folder"):
            folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._settled()

    @property
    def is_new(self) -> bool:
        """Whether there was no entry when this process looked last."""
        return self._last == 0

    def note(self, event: str, **fields: Any) -> Entry:
        """Append an entry.

        Args:
            event: what happened, such as `trained` or `sent`.
            fields: such as object, bytes, digest, run, round, examples, metrics, epsilon or why.

        Raises:
            InputError: the disk is full, or the folder cannot be written.
            CorruptError: the end of the journal was changed.
        """
        with self._locked():
            entry = self._append(self._settled(), event, fields)
            self._last = entry.n
            self._day.add(entry)
        return entry

    def usage(self) -> Usage:
        """Return the work of the last 24 hours; entries that a wrong clock dated into the future count too.

        Raises:
            InputError, CorruptError: the journal cannot be read.
        """
        with self._locked():
            return self._day.usage(self.folder)

    def _append(self, head: JournalHead, event: str, fields: Mapping[str, Any]) -> Entry:
        kept = {name: value for name, value in fields.items() if value is not None}
        entry = Entry(n=head.entries + 1, at=float(self._clock()), event=event, fields=kept, previous=head.digest)
        line = canonical(entry)
        if len(line) > LONGEST:
            shown = {"cut": f"{len(line)} bytes", "digest": digest_of(line)}
            entry = replace(entry, fields=shown)
            line = canonical(entry)
        begins = head.size >= self._rotation or not head.entries
        first, size = (entry.n, 0) if begins else (head.first, head.size)
        after = JournalHead(entries=entry.n, digest=digest_of(line), first=first, size=size + len(line) + 1)
        with self._writing("the journal"):
            self._write_head(after, "head.next")
            try:
                _write_at(self._file(first), size, line + b"\n")
            except OSError:
                with contextlib.suppress(OSError):
                    if begins:
                        self._file(first).unlink(missing_ok=True)
                    else:
                        _cut(self._file(first), size)
                    (self.folder / "head.next").unlink()
                raise
            (self.folder / "head.next").replace(self.folder / "head")
        return entry

    def _settled(self) -> JournalHead:
        """Return the end as `_settle` does. Raises CorruptError also if the journal had more entries before."""
        head = self._settle()
        if head.entries < self._last:
            raise self._changed(f"the journal ends with entry {head.entries}, and had {self._last} before")
        self._last = head.entries
        return head

    def _settle(self) -> JournalHead:
        """Return the end of the journal, after the repair of what a crash left. Raises CorruptError."""
        head = read_head(self.folder) or JournalHead()
        following = read_head(self.folder, "head.next", lenient=True)
        if head.entries:
            self._check(head)
        file = self._file(head.first)
        if following is None:
            (self.folder / "head.next").unlink(missing_ok=True)
            if _size(file) != head.size or _beyond(self.folder, head):
                raise self._changed(f"the journal does not end with entry {head.entries}, which its signed head names")
            return head
        self._check(following)
        if (following.entries, following.digest) == (head.entries, head.digest):
            (self.folder / "head.next").unlink()
            return head
        if following.entries != head.entries + 1:
            raise self._changed("the next head does not follow the head")
        return self._repaired(head, following)

    def _repaired(self, head: JournalHead, following: JournalHead) -> JournalHead:
        """Finish or undo the entry that a crash interrupted."""
        same = following.first == head.first and head.entries > 0
        path, begin = self._file(following.first), head.size if same else 0
        tail = _read_from(path, begin)
        with self._writing("the journal"):
            if len(tail) == following.size - begin and digest_of(tail[:-1]) == following.digest:
                (self.folder / "head.next").replace(self.folder / "head")
                return following
            if len(tail) > following.size - begin:
                raise self._changed(f"the journal has more than entry {following.entries}")
            if same:
                _cut(path, begin)
            else:
                path.unlink(missing_ok=True)
            (self.folder / "head.next").unlink()
        self._append(head, "repaired", {"why": f"a crash interrupted entry {following.entries}", "bytes": len(tail)})
        return read_head(self.folder) or head

    def _check(self, head: JournalHead) -> None:
        if not is_signed_by(head, self._signer.public):
            raise self._changed("the head of the journal is not signed by this site")

    def _changed(self, what: str) -> CorruptError:
        remedy = "Find the place with `fedpipe site journal --verify`, and restore the journal from a copy."
        return CorruptError(what, where=str(self.folder), remedy=remedy)

    def _write_head(self, head: JournalHead, name: str) -> None:
        made = signed_with(head, self._signer, self._clock)
        part = self.folder / f"{name}.part"
        part.unlink(missing_ok=True)
        _write_at(part, 0, canonical(made))
        part.replace(self.folder / name)
        _sync(self.folder)  # or after a power failure, an entry could be there without its head

    def _file(self, first: int) -> Path:
        return self.folder / f"{first:010d}.jsonl"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._writing("the journal"):
            handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, InputError) as error:
            cause = error.__cause__ if isinstance(error, InputError) else error
            why = getattr(cause, "strerror", None) or str(error)
            raise InputError(
                f"{what} cannot be written: {why}",
                where=str(self.folder),
                remedy="Make room on the disk, and give this user the right to write there.",
            ) from error


def files_of(folder: Path) -> list[Path]:
    """Return the files of a journal, in order."""
    return sorted(path for path in folder.glob("*.jsonl") if path.stem.isdecimal())


def read_head(folder: Path, name: str = "head", *, lenient: bool = False) -> JournalHead | None:
    """Return the end of a journal; None without one, or with `lenient` for one that a crash cut.

    Raises:
        InputError: it cannot be read.
        CorruptError: it is malformed.
    """
    try:
        return decoded_file(folder / name, JournalHead)
    except CorruptError:
        if lenient:
            return None
        raise


def entries_of(folder: Path, *, since: float = 0.0) -> Iterator[Entry]:
    """Yield the entries of a journal from a time on, in order. Raises CorruptError at one that is malformed."""
    for path in files_of(folder):
        yield from (entry for entry in _entries_in(path) if entry.at >= since)


def _entries_in(path: Path) -> Iterator[Entry]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):  # another process may be writing the last one
                yield decode(line, Entry, where=f"{path}, line {number}")


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Write at the end of a file, and wait until the disk has it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while data:
            written = os.pwrite(handle, data, offset)
            offset, data = offset + written, data[written:]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def _read_from(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(2 * LONGEST)
    except FileNotFoundError:
        return b""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _beyond(folder: Path, head: JournalHead) -> bool:
    """Return whether there are files after the last one that the head names."""
    files = files_of(folder)
    return bool(files) and int(files[-1].stem) > (head.first if head.entries else 0)
