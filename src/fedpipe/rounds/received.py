"""Reads the objects that learners write: the only way, in every phase of a run.

A learner may write anything at its own keys, at any time. An object that cannot be used is a reason to drop this
learner (DroppedError), and never an error of the run. It may be too large, unreadable, of another type or format, of
another owner, run or round, or with a number out of bounds. Only a store that does not answer is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import msgspec

from fedpipe.errors import CorruptError, DroppedError, NotFoundError, StoreError, StoreUnavailableError, TooLargeError
from fedpipe.store import Blob, Store, keys
from fedpipe.store.objects import canonical, decode

T = TypeVar("T")
MANIFEST = 2**16
"""Largest manifest of a learner, in bytes, that is read."""


class Source(NamedTuple):
    """Names an object that a learner wrote.

    Args:
        store: the federation's store.
        run: the run that reads it.
        key: the object's key.
        what: the object in messages, such as `update`.
        limit: bytes that are read at most.
        most: values that it may hold; a value of two bytes takes 40 bytes and more of memory.
    """

    store: Store
    run: str
    key: str
    what: str
    limit: int = MANIFEST
    most: int = MANIFEST


def receive(source: Source, kind: type[T], **expected: Any) -> T | None:
    """Read an object that a learner wrote; None if there is none.

    Args:
        source: the object.
        kind: its type.
        expected: values that its fields must have, such as `learner` and `round`.

    Raises:
        DroppedError: the object cannot be used; the reason why its learner is dropped.
        StoreUnavailableError: the store does not answer.
    """
    blob = receive_blob(source)
    if blob is not None and (count := blob.data.count(b",")) > source.most:
        raise DroppedError(f"the {source.what} has {count} values, the limit is {source.most}")
    return None if blob is None else parse(blob, kind, source.what, **expected)


def receive_blob(source: Source, version: str = "") -> Blob | None:
    """Read the bytes of an object that a learner wrote; None if there are none, or if this is still their version.

    Raises:
        DroppedError: the object is too large, or the store refuses to give it.
    """
    return guarded(source, lambda: source.store.poll(source.key, version, limit=source.limit))


def guarded(source: Source, call: Callable[[], T]) -> T | None:
    """Return the result of a call of the store about a learner's object; None if there is no object.

    The object itself may be why the store refuses, for instance because its writer encrypted it with a key of its own.
    It is the learner's mistake when the store answers for another object.

    Raises:
        DroppedError: the store refuses this object.
    """
    try:
        return call()
    except (StoreUnavailableError, DroppedError):
        raise
    except NotFoundError:
        return None
    except (TooLargeError, CorruptError) as error:
        raise DroppedError(cleaned(error.what)) from error
    except StoreError as error:
        if not _answers(source):
            raise
        raise DroppedError(f"the {source.what} cannot be read: {cleaned(error.what)}") from error


def _answers(source: Source) -> bool:
    """Return whether the store answers for an object that all parties may read."""
    try:
        source.store.size(keys.plan(source.run))
    except StoreUnavailableError:
        raise
    except StoreError:
        return False
    return True


def parse(blob: Blob, kind: type[T], what: str, **expected: Any) -> T:
    """Parse bytes that a learner wrote. Raises DroppedError: see `receive`."""
    try:
        found = decode(blob.data, kind, where=what)
        canonical(found)  # it will be a part of records
    except CorruptError as error:
        raise DroppedError(cleaned(error.what)) from error
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise DroppedError(cleaned(f"the {what} could not be written again: {error}")) from error
    for name, value in expected.items():
        if (given := getattr(found, name)) != value:
            raise DroppedError(f"the {what}'s {name} is {cleaned(str(given))}, the round's is {value}")
    return found


def usable(source: Source, kind: type[T], **expected: Any) -> T | None:
    """Read an object like `receive`; None also if it cannot be used, for a reader that can do without it."""
    try:
        return receive(source, kind, **expected)
    except DroppedError:
        return None


def check_printable(what: str, names: Iterable[str]) -> None:
    """Refuse names of metrics that a terminal or a page should not show, such as escape sequences.

    Raises:
        DroppedError: a name is empty, or has control characters.
    """
    odd = next((name for name in names if not name or not name.isprintable()), None)
    if odd is not None:
        raise DroppedError(f"a metric of the {what} is called {odd[:100]!a}, which cannot be shown")


def cleaned(text: str) -> str:
    """Return text that may come from a learner, shortened and without control characters."""
    return "".join(c if c.isprintable() else " " for c in text[:500])
