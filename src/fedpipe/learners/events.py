"""Write TensorBoard's event files without TensorFlow.

An event file is a TFRecord file of protocol buffers; of their fields, only those of scalars are written.

Source: tensorflow/core/lib/io/record_writer.h; tensorflow/core/util/event.proto, framework/summary.proto.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Iterable, Mapping

_CASTAGNOLI = 0x82F63B78
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5
"""Wire types of protocol buffers."""


def event_file(points: Iterable[tuple[int, Mapping[str, float]]]) -> bytes:
    """Return a TensorBoard event file with one scalar for each metric and step."""
    now = _field(1, _DOUBLE, struct.pack("<d", time.time()))
    events = [now + _bytes(3, b"brain.Event:2")]
    for step, metrics in points:
        values = (_bytes(1, name.encode()) + _field(2, _FLOAT, _single(v)) for name, v in metrics.items())
        events.append(now + _field(2, _VARINT, _varint(step)) + _bytes(5, b"".join(_bytes(1, v) for v in values)))
    return b"".join(map(_record, events))


def _single(value: float) -> bytes:
    """Return a number in four bytes; infinity where it is too large for them."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    """Return the masked CRC-32C of TFRecord files."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    value ^= 0xFFFFFFFF
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _remainder(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (_CASTAGNOLI if value & 1 else 0)
    return value


_TABLE = [_remainder(byte) for byte in range(256)]


def _field(number: int, kind: int, data: bytes) -> bytes:
    return _varint(number << 3 | kind) + data


def _bytes(number: int, data: bytes) -> bytes:
    return _field(number, _BYTES, _varint(len(data)) + data)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))
