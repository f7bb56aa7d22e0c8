"""The only way from bytes or builtin values to typed structs, safe in threads.

msgspec describes a Struct type when it is first decoded. Other threads see the unfinished description and crash the
process (`docs/decisions/0005-types-are-described-under-a-lock.md`). Here each type is described once, under one lock.
Ruff refuses msgspec's own functions in all other modules.
"""

from __future__ import annotations

import os
import threading
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
_Json = bytes | bytearray | memoryview | str

_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_lock = threading.Lock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    """Return the decoder from JSON to a type; all threads share it."""
    found = _decoders.get(kind)
    if found is None:
        with _lock:
            found = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    return found


def from_json(data: _Json, kind: type[T]) -> T:
    """Decode JSON to a type. Raises msgspec.DecodeError and RecursionError."""
    return decoder(kind).decode(data)


def read_json(data: _Json) -> Any:
    """Decode JSON to builtin values. Raises msgspec.DecodeError and RecursionError."""
    return decoder(Any).decode(data)


def converted(value: Any, kind: type[T]) -> T:
    """Convert builtin values to a type. Raises msgspec.ValidationError and RecursionError."""
    decoder(kind)  # describes the type and all types inside it
    return msgspec.convert(value, kind)
