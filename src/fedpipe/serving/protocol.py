"""The Open Inference Protocol, version 2: requests of tensors in JSON or binary, and their answers. No input or output.

Source: the protocol's REST specification, https://github.com/kserve/open-inference-protocol, and its binary tensor data
extension as Triton documents it in docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta, Raw, Struct

from fedpipe.errors import FedpipeError
from fedpipe.registry.prediction import TensorSpec

Array = npt.NDArray[Any]

HEADER_LENGTH = "inference-header-content-length"
"""The header that says where JSON ends and binary tensors begin."""
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"INT{n}": np.dtype(f"int{n}") for n in (8, 16, 32, 64)},
    **{f"UINT{n}": np.dtype(f"uint{n}") for n in (8, 16, 32, 64)},
    **{f"FP{n}": np.dtype(f"float{n}") for n in (16, 32, 64)},
}
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
_DEEPEST = 32
"""Dimensions of a tensor, as in NumPy 1."""
_MOST_TENSORS = 256


class RefusedError(FedpipeError):
    """A request that is answered with an error of the protocol: HTTP status and one sentence."""

    exit_code = 2

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


def described(spec: TensorSpec) -> dict[str, Any]:
    """A tensor as a model's metadata tells it: -1 where a dimension is free."""
    shape = [-1 if size is None else size for size in spec.shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}


Shape = Annotated[list[Annotated[int, Meta(ge=0, le=2**40)]], Meta(max_length=_DEEPEST)]
Parameters = dict[str, Any]


class _Input(Struct):
    name: str
    shape: Shape
    datatype: str
    parameters: Parameters = {}
    data: Raw = Raw()


class _Output(Struct):
    name: str
    parameters: Parameters = {}


class _Body(Struct):
    inputs: Annotated[list[_Input], Meta(max_length=_MOST_TENSORS)]
    outputs: Annotated[list[_Output], Meta(max_length=_MOST_TENSORS)] = []
    id: str = ""
    parameters: Parameters = {}


class Request(NamedTuple):
    """A request that fits a model: arrays by input, and for each wanted output whether it is answered in binary."""

    feed: dict[str, Array]
    outputs: dict[str, bool]
    id: str


_decoder = msgspec.json.Decoder(_Body)


def parse(
    body: bytes | memoryview, header_length: str | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
    *, finite: bool = True, most_values: int = 2**28,
) -> Request:  # fmt: skip
    """Reads a request and checks it against a model.

    Args:
        body: the whole HTTP body.
        header_length: the header `Inference-Header-Content-Length`, if there is one.
        inputs: what the model takes.
        outputs: what it gives.
        finite: whether NaN and infinity are refused.
        most_values: most values of one tensor.

    Raises:
        RefusedError: what is wrong, in one sentence.
    """
    view = memoryview(body)
    json, binary = _parted(view, header_length)
    try:
        request = _decoder.decode(json)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(400, f"the request is not valid: {_short(error)}") from error
    feed = _feed(request.inputs, binary, {spec.name: spec for spec in inputs}, finite, most_values)
    return Request(feed, _wanted(request, [spec.name for spec in outputs]), request.id)


def _parted(view: memoryview, header_length: str | None) -> tuple[memoryview, memoryview]:
    if header_length is None:
        return view, view[len(view) :]
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 16):
        raise RefusedError(400, "Inference-Header-Content-Length is not a whole number")
    length = int(header_length)
    if length > len(view):
        raise RefusedError(400, f"Inference-Header-Content-Length is {length}, the body has {len(view)} bytes")
    return view[:length], view[length:]


def _feed(
    tensors: list[_Input], binary: memoryview, specs: Mapping[str, TensorSpec], finite: bool, most_values: int
) -> dict[str, Array]:
    feed: dict[str, Array] = {}
    for tensor in tensors:
        spec = specs.get(tensor.name)
        if spec is None:
            raise RefusedError(400, f"there is no input {_quoted(tensor.name)}; the model takes {_names(specs)}")
        if tensor.name in feed:
            raise RefusedError(400, f"input {_quoted(tensor.name)} is given twice")
        count = _checked_count(tensor, spec, most_values)
        size = tensor.parameters.get("binary_data_size")
        if "shared_memory_region" in tensor.parameters:
            raise RefusedError(400, "shared memory is not supported: send the tensor in the request")
        if size is None:
            array = _from_json(tensor, spec, count)
        else:
            array, binary = _from_binary(tensor, spec, count, size, binary)
        if finite and spec.dtype.kind == "f" and not np.isfinite(array).all():
            raise RefusedError(
                400, f"input {_quoted(tensor.name)} holds NaN or infinity, or a value too large for its datatype"
            )
        feed[tensor.name] = array
    if len(binary):
        raise RefusedError(400, f"{len(binary)} bytes follow the last binary tensor")
    if missing := [name for name in specs if name not in feed]:
        raise RefusedError(400, f"input {_quoted(missing[0])} is missing")
    return feed


def _checked_count(tensor: _Input, spec: TensorSpec, most_values: int) -> int:
    """How many values the tensor has, once datatype and shape are those of the model."""
    name = _quoted(tensor.name)
    if tensor.datatype != DATATYPES[spec.dtype]:
        raise RefusedError(
            400, f"input {name} has datatype {_quoted(tensor.datatype)}, the model takes {DATATYPES[spec.dtype]}"
        )
    shape = tensor.shape
    fits = len(shape) == len(spec.shape) and all(
        size == wanted or (wanted is None and size > 0) for size, wanted in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        wanted = [-1 if size is None else size for size in spec.shape]
        raise RefusedError(400, f"input {name} has shape {shape}, the model takes {wanted}, -1 for one or more")
    count = math.prod(shape)
    if count > most_values:
        raise RefusedError(413, f"input {name} has {count} values, at most {most_values} are allowed")
    return count


def _from_binary(
    tensor: _Input, spec: TensorSpec, count: int, size: Any, binary: memoryview
) -> tuple[Array, memoryview]:
    name = _quoted(tensor.name)
    expected = count * spec.dtype.itemsize
    if len(tensor.data):
        raise RefusedError(400, f"input {name} has data in JSON and in binary")
    if not isinstance(size, int) or isinstance(size, bool) or size != expected:
        raise RefusedError(400, f"binary_data_size of input {name} is {_quoted(size)}, its shape needs {expected}")
    if len(binary) < expected:
        raise RefusedError(400, f"input {name} needs {expected} bytes of binary data, {len(binary)} are there")
    array = np.frombuffer(binary, spec.dtype.newbyteorder("<"), count).reshape(tensor.shape)
    if spec.dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise RefusedError(400, f"input {name} holds a byte that is neither 0 nor 1")
    return array.astype(spec.dtype, copy=False), binary[expected:]


@functools.lru_cache(maxsize=256)
def _values(kind: str, depth: int) -> msgspec.json.Decoder[Any]:
    value: Any = {"b": bool, "f": float}.get(kind, int)
    for _ in range(depth):
        value = list[value]
    return msgspec.json.Decoder(value)


def _from_json(tensor: _Input, spec: TensorSpec, count: int) -> Array:
    """Values in row-major order, flat or nested as the shape says."""
    name, text = _quoted(tensor.name), bytes(tensor.data)
    if not text:
        raise RefusedError(400, f"input {name} has no data")
    depth = _depth(text)
    if depth not in (1, len(tensor.shape)):
        raise RefusedError(400, f"the data of input {name} is neither flat nor nested as its shape")
    try:
        with np.errstate(over="ignore"):  # 1e39 becomes infinity, which `finite` refuses
            array = np.array(_values(spec.dtype.kind, depth).decode(text), spec.dtype)
    except msgspec.DecodeError as error:
        raise RefusedError(400, f"the data of input {name} is not of {tensor.datatype}: {_short(error)}") from error
    except (OverflowError, ValueError) as error:
        why = "a value is out of range" if isinstance(error, OverflowError) else "its rows differ in length"
        raise RefusedError(400, f"the data of input {name} is not of {tensor.datatype}: {why}") from error
    if array.size != count or (depth > 1 and array.shape != tuple(tensor.shape)):
        found = f"shape {list(array.shape)}" if depth > 1 else f"{array.size} values"
        raise RefusedError(400, f"the data of input {name} has {found}, its shape {tensor.shape} says otherwise")
    return array.reshape(tensor.shape)


def _depth(text: bytes) -> int:
    depth = 0
    for byte in text:
        if byte == 0x5B:  # [
            depth += 1
        elif byte not in b" \t\r\n":
            break
        if depth > _DEEPEST:
            break
    return depth


def _wanted(request: _Body, names: list[str]) -> dict[str, bool]:
    binary = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return dict.fromkeys(names, binary)
    wanted: dict[str, bool] = {}
    for output in request.outputs:
        if output.name not in names:
            raise RefusedError(400, f"there is no output {_quoted(output.name)}; the model gives {_names(names)}")
        if output.name in wanted:
            raise RefusedError(400, f"output {_quoted(output.name)} is asked for twice")
        for name in ("classification", "shared_memory_region"):
            if name in output.parameters:
                raise RefusedError(400, f"the output parameter {name} is not supported")
        wanted[output.name] = bool(output.parameters.get("binary_data", binary))
    return wanted


class Answer(NamedTuple):
    """An HTTP body, and the length of its JSON when binary tensors follow."""

    body: bytes
    header_length: int | None


def answer(model: str, version: int, request: Request, found: Mapping[str, Array]) -> Answer:
    """The answer to a request.

    Args:
        model: the model's name.
        version: the version that answered.
        request: what was asked.
        found: all outputs of the model by name.
    """
    outputs: list[dict[str, Any]] = []
    pieces: list[bytes] = []
    for name, binary in request.outputs.items():
        array = found[name]
        output: dict[str, Any] = {"name": name, "datatype": DATATYPES[array.dtype], "shape": array.shape}
        if binary:
            pieces.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
            output["parameters"] = {"binary_data_size": len(pieces[-1])}
        else:
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    head: dict[str, Any] = {"model_name": model, "model_version": str(version), "outputs": outputs}
    if request.id:
        head["id"] = request.id
    json = msgspec.json.encode(head)
    return Answer(b"".join([json, *pieces]), len(json) if pieces else None)


def _names(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(_quoted(name) for name in list(names)[:20])


def _quoted(value: Any) -> str:
    return repr(value if isinstance(value, int) else str(value)[:100])


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
