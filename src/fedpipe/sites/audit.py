"""Finds where the journal of a site was changed: which file, which line, and how."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from fedpipe.errors import CorruptError, InputError
from fedpipe.identity.statements import is_signed_by
from fedpipe.sites.journal import Entry, JournalHead, files_of, read_head
from fedpipe.store.objects import canonical, decode, digest_of


class Flaw(NamedTuple):
    """A place at which a journal was changed; line 0 stands for a whole file."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}: {self.what}" if self.line else f"{self.file}: {self.what}"


class _Line(NamedTuple):
    file: str
    number: int
    data: bytes
    entry: Entry | None

    @property
    def digest(self) -> str:
        return digest_of(self.data.removesuffix(b"\n"))


def find_flaw(folder: Path, public: str = "") -> Flaw | None:
    """Return the first place at which a journal was changed; None when it is whole.

    Args:
        folder: of the journal.
        public: the site's public key; empty to leave the signature out.

    Raises:
        InputError: the journal cannot be read.
    """
    try:
        with _held(folder):
            sizes = {path: path.stat().st_size for path in files_of(folder)}
            head, following = _heads(folder, sizes, public)
    except CorruptError as error:
        return Flaw("head", 0, error.what)
    lines = _lines(sizes)
    window = list(itertools.islice(lines, 3))
    last, due = None, 1
    while window:
        if flaw := _flaw_of(window, due, head):
            return flaw
        last, due = window.pop(0), due + 1
        window += itertools.islice(lines, 1)
    return _flaw_of_end(head, last, due - 1) or _flaw_of_files(sizes, head, following)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep an agent from appending meanwhile, where there is its lock: a copy need not have it."""
    try:
        handle = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _flaw_of_files(
    sizes: Mapping[Path, int], head: JournalHead | None, following: JournalHead | None
) -> Flaw | None:  # fmt: skip
    """Return a file that no head has begun; it has no line that could be wrong."""
    first, begun = head.first if head else 0, following.first if following else 0  # a process may have ended there
    beyond = [path.name for path, size in sizes.items() if int(path.stem) > first and (size or int(path.stem) != begun)]
    return Flaw(beyond[0], 0, "does not belong to the journal") if beyond else None


def _heads(folder: Path, sizes: Mapping[Path, int], public: str) -> tuple[JournalHead | None, JournalHead | None]:
    """Return the end of a journal, and the next one if it has begun, signed if a key is given. Raises CorruptError."""
    head, following = read_head(folder), read_head(folder, "head.next", lenient=True)
    if head is not None and public and not is_signed_by(head, public):
        raise CorruptError("is not signed by this site")
    if following is None:
        return head, None
    if public and not is_signed_by(following, public):
        raise CorruptError("the next head is not signed by this site")
    finished = any(line.entry and line.entry.n == following.entries for line in _lines(sizes, following.first))
    return following if finished else head, following  # a process may have ended before the head was replaced


def _lines(sizes: Mapping[Path, int], first: int = 0) -> Iterator[_Line]:
    """Yield the lines of files, up to the sizes that they had when the head was read."""
    for path, left in sizes.items():
        if int(path.stem) < first:
            continue
        try:
            with path.open("rb") as file:
                number = 0
                while data := file.readline(left):
                    number, left = number + 1, left - len(data)
                    yield _Line(path.name, number, data, _parsed(data))
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _parsed(data: bytes) -> Entry | None:
    """Return the entry of a line; None unless these are exactly its bytes."""
    try:
        entry = decode(data, Entry, where="")
    except CorruptError:
        return None
    return entry if canonical(entry) + b"\n" == data else None


def _flaw_of(window: list[_Line], due: int, head: JournalHead | None) -> Flaw | None:
    """Return what is wrong with the first of up to three lines, or with the second if that explains it."""
    line = window[0]
    if line.entry is None:
        return Flaw(line.file, line.number, "the line was altered" if line.data.endswith(b"\n") else "the line is cut")
    if line.entry.n > due:
        missing = f"entry {due} is" if line.entry.n == due + 1 else f"the entries {due} to {line.entry.n - 1} are"
        return Flaw(line.file, line.number, f"{missing} missing before entry {line.entry.n}")
    if line.entry.n < due:
        return Flaw(line.file, line.number, f"entry {line.entry.n} stands where entry {due} is due")
    if _is_whole(window, head):
        return None
    wrong = line if _is_whole(window[1:], head) else window[1]  # the second names a digest, and was altered itself
    return Flaw(wrong.file, wrong.number, f"entry {wrong.entry.n if wrong.entry else due} was altered")


def _is_whole(window: list[_Line], head: JournalHead | None) -> bool:
    """Return whether the digest of a line is the one that the next line, or the head, names; True if none does."""
    if not window or window[0].entry is None:
        return True
    number, following = window[0].entry.n, window[1].entry if len(window) > 1 else None
    if head is not None and head.entries == number:
        return head.digest == window[0].digest
    return following is None or following.n != number + 1 or following.previous == window[0].digest


def _flaw_of_end(head: JournalHead | None, last: _Line | None, entries: int) -> Flaw | None:
    if head is None:
        return Flaw("head", 0, "is missing") if entries else None
    file, line = (last.file, last.number) if last else ("head", 0)
    if head.entries > entries:
        return Flaw(file, line, f"the journal ends with entry {entries}, but its signed head names {head.entries}")
    if head.entries < entries:
        return Flaw(file, line, f"the journal has entry {entries}, but its signed head ends with {head.entries}")
    return None
