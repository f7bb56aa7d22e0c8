"""Keeps credentials out of the federation file, which becomes part of pipelines, records and reports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fedpipe.errors import FederationError
from fedpipe.store.userinfo import REMEDY, credentials_in

_URIS = re.compile(r"store(\.uri|\.endpoint)?|data\.uri|learners\[\d+\]\.data")
"""Paths of URIs. There, `user:password@host` without a scheme counts too."""


def check_no_credentials_in(content: Mapping[str, Any], *, where: str) -> None:
    """Refuse credentials in the URIs of any text. Raises FederationError, which does not show them."""
    for path, text in _texts_in(content, ""):
        if found := credentials_in(text, bare=_URIS.fullmatch(path) is not None):
            raise FederationError(f"the URI contains {found}", where=f"{where}: {path}", remedy=REMEDY)


def _texts_in(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield every text inside tables and lists, with its path such as `learners[0].data`."""
    left: list[tuple[str, Any]] = [(path, value)]
    seen: set[int] = set()  # YAML's aliases can repeat large parts, or contain themselves
    while left:
        path, value = left.pop()
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            inner = "{}.{}" if isinstance(value, Mapping) else "{}[{}]"
            left += reversed([(inner.format(path, key).removeprefix("."), one) for key, one in items])
