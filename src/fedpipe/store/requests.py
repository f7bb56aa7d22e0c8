"""Requests to a remote store that do not depend on each other, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fedpipe.store.base import Store

T = TypeVar("T")
R = TypeVar("R")
_AT_ONCE = 8


def each(store: Store, request: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Returns the result of a request for each item, in their order; a folder answers faster than a thread starts.

    Args:
        store: to which the requests go.
        request: makes one; several threads call it at once.
        items: the items.

    Raises:
        Exception: what the request for the first item that failed has raised.
    """
    if len(items) < 2 or not store.uri.startswith("s3://"):
        return [request(item) for item in items]
    with ThreadPoolExecutor(min(_AT_ONCE, len(items))) as pool:
        return list(pool.map(request, items))
