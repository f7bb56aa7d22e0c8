"""Reads and writes the values of single tensors of the Open Inference Protocol: JSON or binary, numbers or strings.

Source: the protocol's REST specification, https://github.com/kserve/open-inference-protocol, and its binary tensor data
extension in Triton's docs/protocol/extension_binary_data.md. There a string is its length in four bytes, little-endian,
and its bytes.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Raw, Struct

from fedpipe.codec import from_json, read_json
from fedpipe.data.cells import as_strings
from fedpipe.errors import FedpipeError, one_line

Array = npt.NDArray[Any]
STRINGS = "BYTES"
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"INT{n}": np.dtype(f"int{n}") for n in (8, 16, 32, 64)},
    **{f"UINT{n}": np.dtype(f"uint{n}") for n in (8, 16, 32, 64)},
    **{f"FP{n}": np.dtype(f"float{n}") for n in (16, 32, 64)},
    STRINGS: np.dtype(object),
}
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
MOST_DIMENSIONS = 32
"""Most dimensions of a tensor, as in NumPy 1."""

TensorShape = Annotated[list[Annotated[int, Meta(ge=0, le=2**40)]], Meta(max_length=MOST_DIMENSIONS)]
_MOST_PARAMETER = 100
"""Bytes of a parameter's value that are read."""


class Parameters(Struct):
    """Holds the parameters that have a meaning here, unread; others take no memory."""

    binary_data_size: Raw = Raw()
    binary_data: Raw = Raw()
    binary_data_output: Raw = Raw()
    classification: Raw = Raw()
    shared_memory_region: Raw = Raw()


def value_of(parameter: Raw) -> Any:
    """Returns the value of a parameter; None without one, and its text if that is long."""
    text = bytes(memoryview(parameter)[: _MOST_PARAMETER + 1])
    if not text:
        return None
    return read_json(text) if len(text) <= _MOST_PARAMETER else text.decode(errors="replace")


class RequestError(FedpipeError):
    """Refuses a request with an error of the protocol: an HTTP status and one sentence."""

    exit_code = 2

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


class InputTensor(Struct):
    """Represents an input of a request; its data are not read yet."""

    name: str
    shape: TensorShape
    datatype: str
    parameters: Parameters = msgspec.field(default_factory=Parameters)
    data: Raw = Raw()


MOST_STRINGS = 2**22
"""Most strings of a tensor, since each takes ten times its bytes in memory."""
_STRING = 64
"""Bytes that a string takes in memory in addition to its text."""
_MOST_TEXT = 256
"""Bytes of JSON for a number, with spaces and brackets around it."""
_MORE_TEXT = 4096


class Room(NamedTuple):
    """Limits the values of a request, and reserves memory for them before they are read.

    Args:
        values: most values of a tensor.
        strings: most values of a tensor that become Python objects.
        reserve: takes bytes; raises RequestError if there are none.
    """

    values: int = 2**28
    strings: int = MOST_STRINGS
    reserve: Callable[[int], None] = lambda _: None


def read_tensor(
    tensor: InputTensor, dtype: np.dtype[Any], count: int, binary: memoryview, *, missing: bool = False,
    room: Room | None = None,
) -> tuple[Array, memoryview]:  # fmt: skip
    """Reads the values of a tensor.

    Args:
        tensor: the tensor, whose shape was checked.
        dtype: dtype of the values.
        count: number of the values, the product of the shape.
        binary: binary data that are left.
        missing: whether `null` stands for a missing number or string in JSON.
        room: limits and memory.

    Returns:
        The array, and the binary data that are left after it.

    Raises:
        RequestError: the values do not fit datatype and shape.
    """
    room = room or Room()
    if len(tensor.parameters.shared_memory_region):
        raise RequestError(400, "shared memory is not supported: send the tensor in the request")
    if dtype.kind == "O" and count > room.strings:
        what = f"input {quote(tensor.name)} has {count} strings, but at most {room.strings} are allowed"
        raise RequestError(413, what)
    size = value_of(tensor.parameters.binary_data_size)
    if size is None:
        _check_text(tensor, dtype, count)
        room.reserve(count * (_STRING if dtype.kind == "O" else dtype.itemsize) + len(tensor.data))
        return _from_json(tensor, dtype, count, missing), binary
    if dtype.kind == "O":
        room.reserve(min(count * (_STRING + 4), _STRING * len(binary)) + len(binary))
    return _from_binary(tensor, dtype, count, size, binary)


def _check_text(tensor: InputTensor, dtype: np.dtype[Any], count: int) -> None:
    """Checks that the text may hold as many values as the shape claims, before it is parsed."""
    size = len(tensor.data)
    if not size:
        raise RequestError(400, f"input {quote(tensor.name)} has no data")
    least, most = 2 * count - 1, _MORE_TEXT + _MOST_TEXT * count
    if size < least or (size > most and dtype.kind != "O"):
        too = "few" if size < least else "many"
        what = f"the data of input {quote(tensor.name)} are {size} bytes of JSON, too {too} for its shape"
        raise RequestError(400, f"{what} {tensor.shape}")


def _from_binary(
    tensor: InputTensor, dtype: np.dtype[Any], count: int, size: Any, binary: memoryview
) -> tuple[Array, memoryview]:
    name = quote(tensor.name)
    if len(tensor.data):
        raise RequestError(400, f"input {name} has both JSON and binary data")
    strings, expected = dtype.kind == "O", count * dtype.itemsize
    valid = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    if strings and not valid:
        raise RequestError(400, f"binary_data_size of input {name} is {quote(size)}, not a number of bytes")
    if not strings and not (valid and size == expected):
        raise RequestError(400, f"binary_data_size of input {name} is {quote(size)}, but its shape needs {expected}")
    if len(binary) < size:
        raise RequestError(400, f"input {name} needs {size} bytes of binary data, but {len(binary)} are left")
    if strings:
        return as_strings(_split_strings(binary[:size], count, name)).reshape(tensor.shape), binary[size:]
    array = np.frombuffer(binary, dtype.newbyteorder("<"), count).reshape(tensor.shape)
    if dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise RequestError(400, f"input {name} contains a byte that is neither 0 nor 1")
    return array.astype(dtype, copy=False), binary[size:]


def _split_strings(data: memoryview, count: int, name: str) -> list[str]:
    if len(data) < 4 * count:  # before memory for the strings is used
        raise RequestError(400, f"input {name} needs {count} strings, but has only {len(data)} bytes")
    strings: list[str] = []
    at = 0
    for _ in range(count):
        if len(data) < at + 4:
            raise RequestError(400, f"the binary data of input {name} end after {len(strings)} of {count} strings")
        (length,) = struct.unpack_from("<I", data, at)
        at += 4
        if len(data) < at + length:
            what = f"string {len(strings)} of input {name} has {length} bytes, but {len(data) - at} are left"
            raise RequestError(400, what)
        try:
            strings.append(str(data[at : at + length], "utf-8"))
        except UnicodeDecodeError:
            raise RequestError(400, f"string {len(strings)} of input {name} is not UTF-8") from None
        at += length
    if at != len(data):
        raise RequestError(400, f"{len(data) - at} bytes follow the last string of input {name}")
    return strings


@functools.lru_cache(maxsize=256)
def _nested(kind: str, depth: int, missing: bool) -> Any:
    value: Any = {"b": bool, "f": float, "O": str}.get(kind, int)
    if missing:
        value = value | None
    for _ in range(depth):
        value = list[value]
    return value


def _from_json(tensor: InputTensor, dtype: np.dtype[Any], count: int, missing: bool) -> Array:
    """Reads values in row-major order, flat or nested according to the shape."""
    name, text = quote(tensor.name), memoryview(tensor.data)
    depth = _depth(text)
    if depth not in (1, len(tensor.shape)):
        raise RequestError(400, f"the data of input {name} is neither flat nor nested like its shape")
    try:
        if count and len(text) > _LONG and dtype.kind != "O":
            array = _in_chunks(bytes(text), dtype, (count,) if depth == 1 else tuple(tensor.shape), missing)
        else:
            array = _decoded(text, dtype, depth, missing)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(400, f"the data of input {name} is not {tensor.datatype}: {short(error)}") from error
    except (OverflowError, ValueError) as error:
        why = "a value is out of range" if isinstance(error, OverflowError) else "its rows differ in length"
        why = str(error) if isinstance(error, _ShapeError) else why
        raise RequestError(400, f"the data of input {name} is not {tensor.datatype}: {why}") from error
    if array.size != count or (depth > 1 and array.shape != tuple(tensor.shape)):
        actual = f"shape {list(array.shape)}" if depth > 1 else f"{array.size} values"
        raise RequestError(400, f"the data of input {name} has {actual}, but its shape is {tensor.shape}")
    return array.reshape(tensor.shape)


class _ShapeError(ValueError):
    """The brackets and commas of a text do not make the shape."""


def _decoded(text: bytes | memoryview, dtype: np.dtype[Any], depth: int, missing: bool) -> Array:
    values = from_json(text, _nested(dtype.kind, depth, missing))
    with np.errstate(over="ignore"):  # 1e39 becomes infinity, which `finite` refuses
        return np.array(values, object if missing and dtype.kind != "f" else dtype)  # None becomes NaN


def _in_chunks(text: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], missing: bool) -> Array:
    """Reads a long text of numbers piece by piece, after a comparison of its brackets and commas with the shape.

    So it takes little memory, and other threads need not wait.
    """
    if text.translate(None, _VALUES) != _outline(shape):
        raise _ShapeError("its brackets and commas do not make the shape")
    flat = text.translate(None, b"[]")
    array = np.empty(math.prod(shape), object if missing and dtype.kind != "f" else dtype)
    at = filled = 0
    while filled < len(array):
        end = flat.find(b",", at + _CHUNK)
        end = len(flat) if end < 0 else end
        piece = _decoded(b"[%b]" % flat[at:end], dtype, 1, missing)
        array[filled : filled + len(piece)] = piece
        at, filled = end + 1, filled + len(piece)
    return array.reshape(shape)


_VALUES = bytes(byte for byte in range(256) if byte not in b"[],")
_LONG, _CHUNK = 2**16, 2**14


def _outline(shape: tuple[int, ...]) -> bytes:
    """Returns the brackets and commas of nested lists.

    >>> _outline((2, 3))
    b'[[,,],[,,]]'
    """
    inner = b""
    for size in reversed(shape):
        inner = b"[%b]" % ((inner + b",") * size)[:-1]  # `join` would need 80 bytes for each
    return inner


def _depth(text: memoryview) -> int:
    depth = 0
    for byte in text:
        if byte == 0x5B:  # [
            depth += 1
        elif byte not in b" \t\r\n":
            break
        if depth > MOST_DIMENSIONS:
            break
    return depth


def to_bytes(array: Array) -> bytes | memoryview:
    """Returns the binary data of a tensor, which shares its memory if possible."""
    if array.dtype == object:
        encoded = [str(value).encode() for value in array.reshape(-1)]
        return b"".join(piece for text in encoded for piece in (struct.pack("<I", len(text)), text))
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
    return flat.view(np.uint8).data if flat.size else b""


def strings_from(data: Sequence[int] | memoryview, count: int, name: str) -> Array:
    """Returns the strings of an output's binary data. Raises RequestError."""
    return as_strings(_split_strings(memoryview(bytes(data)), count, quote(name)))


def quote(value: Any) -> str:
    """Returns a value from a request as a message shows it."""
    return repr(value if isinstance(value, int) else str(value)[:100])


def short(error: Exception) -> str:
    """Returns the first part of a foreign error."""
    return one_line(error) or type(error).__name__
