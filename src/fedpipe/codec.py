"""The only way from bytes or builtin values to typed structs, safe in threads.

msgspec describes a Struct type when it is first decoded. Other threads see the unfinished description and crash the
process (`docs/decisions/0005-types-are-described-under-a-lock.md`). Here each type is described once, under one lock.
Ruff refuses msgspec's own functions in all other modules.
"""

from __future__ import annotations

import os
import threading
from typing import Any, TypeVar, overload

import msgspec

T = TypeVar("T")
_Json = bytes | bytearray | memoryview | str

_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_lock = threading.Lock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@overload
def decoder(kind: type[T]) -> msgspec.json.Decoder[T]: ...
@overload
def decoder(kind: Any) -> msgspec.json.Decoder[Any]: ...
def decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """Return the decoder from JSON to a type; all threads share it."""
    found = _decoders.get(kind)
    if found is None:
        with _lock:
            found = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    return found


@overload
def from_json(data: _Json, kind: type[T]) -> T: ...
@overload
def from_json(data: _Json, kind: Any = Any) -> Any: ...
def from_json(data: _Json, kind: Any = Any) -> Any:
    """Decode JSON to a type; without one, to builtin values. Raises msgspec.DecodeError and RecursionError."""
    return decoder(kind).decode(data)


@overload
def converted(value: Any, kind: type[T]) -> T: ...
@overload
def converted(value: Any, kind: Any) -> Any: ...
def converted(value: Any, kind: Any) -> Any:
    """Convert builtin values to a type. Raises msgspec.ValidationError and RecursionError."""
    decoder(kind)  # describes the type and all types inside it
    return msgspec.convert(value, kind)
