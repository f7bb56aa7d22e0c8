"""Implements the Open Inference Protocol, version 2: tensors in JSON or binary. Performs no input or output itself.

Source: the protocol's REST specification, https://github.com/kserve/open-inference-protocol, and its binary tensor data
extension in Triton's docs/protocol/extension_binary_data.md.
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

from fedpipe.codec import from_json
from fedpipe.errors import FedpipeError
from fedpipe.registry.prediction import TensorSpec

Array = npt.NDArray[Any]

HEADER_LENGTH = "inference-header-content-length"
"""The header with the length of the JSON, after which binary tensors begin."""
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"INT{n}": np.dtype(f"int{n}") for n in (8, 16, 32, 64)},
    **{f"UINT{n}": np.dtype(f"uint{n}") for n in (8, 16, 32, 64)},
    **{f"FP{n}": np.dtype(f"float{n}") for n in (16, 32, 64)},
}
DATATYPES = {dtype: name for name, dtype in DTYPES.items()}
_MOST_DIMENSIONS = 32
"""Most dimensions of a tensor, as in NumPy 1."""
_MOST_TENSORS = 256


class RequestError(FedpipeError):
    """Refuses a request with an error of the protocol: an HTTP status and one sentence."""

    exit_code = 2

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


def describe_tensor(spec: TensorSpec) -> dict[str, Any]:
    """Describes a tensor for a model's metadata; -1 stands for a free dimension."""
    shape = [-1 if size is None else size for size in spec.shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}


TensorShape = Annotated[list[Annotated[int, Meta(ge=0, le=2**40)]], Meta(max_length=_MOST_DIMENSIONS)]
Parameters = dict[str, Any]


class _Input(Struct):
    name: str
    shape: TensorShape
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
    """Holds a request that fits a model: arrays by input, and for each requested output whether it is binary."""

    feed: dict[str, Array]
    outputs: dict[str, bool]
    id: str


def parse(
    body: bytes | memoryview, header_length: str | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
    *, finite: bool = True, most_values: int = 2**28,
) -> Request:  # fmt: skip
    """Parses a request and checks it against a model.

    Args:
        body: the whole HTTP body.
        header_length: the header `Inference-Header-Content-Length`, if there is one.
        inputs: inputs of the model.
        outputs: outputs of the model.
        finite: whether NaN and infinity are refused.
        most_values: most values of one tensor.

    Raises:
        RefusedError: the request is invalid or does not fit the model.
    """
    view = memoryview(body)
    json, binary = _split_body(view, header_length)
    try:
        request = from_json(json, _Body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, f"the request is not valid: {_short(error)}") from error
    feed = _feed(request.inputs, binary, {spec.name: spec for spec in inputs}, finite, most_values)
    return Request(feed, _requested_outputs(request, [spec.name for spec in outputs]), request.id)


def _split_body(view: memoryview, header_length: str | None) -> tuple[memoryview, memoryview]:
    if header_length is None:
        return view, view[len(view) :]
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 16):
        raise RequestError(400, "Inference-Header-Content-Length is not a whole number")
    length = int(header_length)
    if length > len(view):
        raise RequestError(400, f"Inference-Header-Content-Length is {length}, but the body has {len(view)} bytes")
    return view[:length], view[length:]


def _feed(
    tensors: list[_Input], binary: memoryview, specs: Mapping[str, TensorSpec], finite: bool, most_values: int
) -> dict[str, Array]:
    feed: dict[str, Array] = {}
    for tensor in tensors:
        spec = specs.get(tensor.name)
        if spec is None:
            raise RequestError(400, f"there is no input {_quote(tensor.name)}; the model takes {_names(specs)}")
        if tensor.name in feed:
            raise RequestError(400, f"input {_quote(tensor.name)} is given twice")
        count = _check_shape(tensor, spec, most_values)
        size = tensor.parameters.get("binary_data_size")
        if "shared_memory_region" in tensor.parameters:
            raise RequestError(400, "shared memory is not supported: send the tensor in the request")
        if size is None:
            array = _from_json(tensor, spec, count)
        else:
            array, binary = _from_binary(tensor, spec, count, size, binary)
        if finite and spec.dtype.kind == "f" and not np.isfinite(array).all():
            raise RequestError(
                400, f"input {_quote(tensor.name)} contains NaN or infinity, or a value too large for its datatype"
            )
        feed[tensor.name] = array
    if len(binary):
        raise RequestError(400, f"{len(binary)} bytes follow the last binary tensor")
    if missing := [name for name in specs if name not in feed]:
        raise RequestError(400, f"input {_quote(missing[0])} is missing")
    return feed


def _check_shape(tensor: _Input, spec: TensorSpec, most_values: int) -> int:
    """Checks datatype and shape against the model, and returns the number of values."""
    name = _quote(tensor.name)
    if tensor.datatype != DATATYPES[spec.dtype]:
        raise RequestError(
            400, f"input {name} has datatype {_quote(tensor.datatype)}, but the model takes {DATATYPES[spec.dtype]}"
        )
    shape = tensor.shape
    fits = len(shape) == len(spec.shape) and all(
        size == expected or (expected is None and size > 0) for size, expected in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        expected = [-1 if size is None else size for size in spec.shape]
        raise RequestError(400, f"input {name} has shape {shape}, but the model takes {expected}, -1 for one or more")
    count = math.prod(shape)
    if count > most_values:
        raise RequestError(413, f"input {name} has {count} values, but at most {most_values} are allowed")
    return count


def _from_binary(
    tensor: _Input, spec: TensorSpec, count: int, size: Any, binary: memoryview
) -> tuple[Array, memoryview]:
    name = _quote(tensor.name)
    expected = count * spec.dtype.itemsize
    if len(tensor.data):
        raise RequestError(400, f"input {name} has both JSON and binary data")
    if not isinstance(size, int) or isinstance(size, bool) or size != expected:
        raise RequestError(400, f"binary_data_size of input {name} is {_quote(size)}, but its shape needs {expected}")
    if len(binary) < expected:
        raise RequestError(400, f"input {name} needs {expected} bytes of binary data, but {len(binary)} are left")
    array = np.frombuffer(binary, spec.dtype.newbyteorder("<"), count).reshape(tensor.shape)
    if spec.dtype.kind == "b" and array.view(np.uint8).max(initial=0) > 1:
        raise RequestError(400, f"input {name} contains a byte that is neither 0 nor 1")
    return array.astype(spec.dtype, copy=False), binary[expected:]


@functools.lru_cache(maxsize=256)
def _nested(kind: str, depth: int) -> Any:
    value: Any = {"b": bool, "f": float}.get(kind, int)
    for _ in range(depth):
        value = list[value]
    return value


def _from_json(tensor: _Input, spec: TensorSpec, count: int) -> Array:
    """Reads values in row-major order, flat or nested according to the shape."""
    name, text = _quote(tensor.name), bytes(tensor.data)
    if not text:
        raise RequestError(400, f"input {name} has no data")
    depth = _depth(text)
    if depth not in (1, len(tensor.shape)):
        raise RequestError(400, f"the data of input {name} is neither flat nor nested like its shape")
    try:
        with np.errstate(over="ignore"):  # 1e39 becomes infinity, which `finite` refuses
            array = np.array(from_json(text, _nested(spec.dtype.kind, depth)), spec.dtype)
    except msgspec.DecodeError as error:
        raise RequestError(400, f"the data of input {name} is not {tensor.datatype}: {_short(error)}") from error
    except (OverflowError, ValueError) as error:
        why = "a value is out of range" if isinstance(error, OverflowError) else "its rows differ in length"
        raise RequestError(400, f"the data of input {name} is not {tensor.datatype}: {why}") from error
    if array.size != count or (depth > 1 and array.shape != tuple(tensor.shape)):
        actual = f"shape {list(array.shape)}" if depth > 1 else f"{array.size} values"
        raise RequestError(400, f"the data of input {name} has {actual}, but its shape is {tensor.shape}")
    return array.reshape(tensor.shape)


def _depth(text: bytes) -> int:
    depth = 0
    for byte in text:
        if byte == 0x5B:  # [
            depth += 1
        elif byte not in b" \t\r\n":
            break
        if depth > _MOST_DIMENSIONS:
            break
    return depth


def _requested_outputs(request: _Body, names: list[str]) -> dict[str, bool]:
    binary = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return dict.fromkeys(names, binary)
    requested: dict[str, bool] = {}
    for output in request.outputs:
        if output.name not in names:
            raise RequestError(400, f"there is no output {_quote(output.name)}; the model returns {_names(names)}")
        if output.name in requested:
            raise RequestError(400, f"output {_quote(output.name)} is requested twice")
        for name in ("classification", "shared_memory_region"):
            if name in output.parameters:
                raise RequestError(400, f"the output parameter {name} is not supported")
        requested[output.name] = bool(output.parameters.get("binary_data", binary))
    return requested


class Answer(NamedTuple):
    """Holds an HTTP body, and the length of its JSON if binary tensors follow."""

    body: bytes
    header_length: int | None


def answer(model: str, version: int, request: Request, outputs: Mapping[str, Array]) -> Answer:
    """Answers a request with the outputs of a model.

    Args:
        model: the model's name.
        version: the version that answered.
        request: the request.
        outputs: all outputs of the model by name.
    """
    tensors: list[dict[str, Any]] = []
    pieces: list[bytes] = []
    for name, binary in request.outputs.items():
        array = outputs[name]
        output: dict[str, Any] = {"name": name, "datatype": DATATYPES[array.dtype], "shape": array.shape}
        if binary:
            pieces.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
            output["parameters"] = {"binary_data_size": len(pieces[-1])}
        else:
            output["data"] = array.ravel().tolist()
        tensors.append(output)
    head: dict[str, Any] = {"model_name": model, "model_version": str(version), "outputs": tensors}
    if request.id:
        head["id"] = request.id
    json = msgspec.json.encode(head)
    return Answer(b"".join([json, *pieces]), len(json) if pieces else None)


def _names(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(_quote(name) for name in list(names)[:20])


def _quote(value: Any) -> str:
    return repr(value if isinstance(value, int) else str(value)[:100])


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
