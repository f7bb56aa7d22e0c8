"""Implements the Open Inference Protocol, version 2: requests and answers. Performs no input or output itself.

Source: the protocol's REST specification, https://github.com/kserve/open-inference-protocol. The values of tensors are
the subject of `serving/tensors.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy.typing as npt
from msgspec import Meta, Struct

from fedpipe.codec import from_json
from fedpipe.data.schema import MOST_COLUMNS
from fedpipe.registry.card import Card
from fedpipe.registry.prediction import TensorSpec, first_unusable
from fedpipe.serving.columns import feed_of_columns, gives_columns
from fedpipe.serving.tensors import (
    DATATYPES,
    InputTensor,
    Parameters,
    RequestError,
    Room,
    quote,
    read_tensor,
    short,
    to_bytes,
    value_of,
)

Array = npt.NDArray[Any]

HEADER_LENGTH = "inference-header-content-length"
"""The header with the length of the JSON, after which binary tensors begin."""
_MOST_TENSORS = 256 + MOST_COLUMNS
"""Most tensors of a request: the columns of a table, or the inputs of a model."""


def describe_tensor(spec: TensorSpec) -> dict[str, Any]:
    """Describes a tensor for a model's metadata; -1 stands for a free dimension."""
    shape = [-1 if size is None else size for size in spec.shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}


class _Output(Struct):
    name: str
    parameters: Parameters = msgspec.field(default_factory=Parameters)


class _Body(Struct):
    inputs: Annotated[list[InputTensor], Meta(max_length=_MOST_TENSORS)]
    outputs: Annotated[list[_Output], Meta(max_length=_MOST_TENSORS)] = []
    id: str = ""
    parameters: Parameters = msgspec.field(default_factory=Parameters)


class Request(NamedTuple):
    """Holds a request that fits a model: arrays by input, and for each requested output whether it is binary."""

    feed: dict[str, Array]
    outputs: dict[str, bool]
    id: str


def parse(
    body: bytes | bytearray | memoryview, header_length: str | None, inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec], *, card: Card | None = None, room: Room | None = None,
) -> Request:  # fmt: skip
    """Parses a request and checks it against a model.

    Args:
        body: the whole HTTP body.
        header_length: the header `Inference-Header-Content-Length`, if there is one.
        inputs: inputs of the model.
        outputs: outputs of the model.
        card: says whether NaN is allowed, and names the columns of a table: a request may give them instead of inputs.
        room: limits of the values, and memory for them.

    Raises:
        RequestError: the request is invalid or does not fit the model.
    """
    view = memoryview(body)
    json, binary = _split_body(view, header_length)
    try:
        request = from_json(json, _Body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, f"the request is not valid: {short(error)}") from error
    specs, card, room = {spec.name: spec for spec in inputs}, card or Card(), room or Room()
    if gives_columns(request.inputs, specs, card):
        feed, binary = feed_of_columns(request.inputs, binary, specs, card, room)
    else:
        feed, binary = _feed(request.inputs, binary, specs, card, room)
    if len(binary):
        raise RequestError(400, f"{len(binary)} bytes follow the last binary tensor")
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
    tensors: list[InputTensor], binary: memoryview, specs: Mapping[str, TensorSpec], card: Card, room: Room
) -> tuple[dict[str, Array], memoryview]:
    feed: dict[str, Array] = {}
    for tensor in tensors:
        spec = specs.get(tensor.name)
        if spec is None:
            raise RequestError(400, f"there is no input {quote(tensor.name)}; the model takes {_names(specs)}")
        if tensor.name in feed:
            raise RequestError(400, f"input {quote(tensor.name)} is given twice")
        count = _check_shape(tensor, spec, room.values)
        missing = spec.dtype.kind == "f" and any(column.missing for column in card.columns)
        array, binary = read_tensor(tensor, spec.dtype, count, binary, missing=missing, room=room)
        if first_unusable(array, card) is not None:
            raise RequestError(
                400, f"input {quote(tensor.name)} contains NaN or infinity, or a value too large for its datatype"
            )
        feed[tensor.name] = array
    if missing_names := [name for name in specs if name not in feed]:
        raise RequestError(400, f"input {quote(missing_names[0])} is missing")
    return feed, binary


def _check_shape(tensor: InputTensor, spec: TensorSpec, most_values: int) -> int:
    """Checks datatype and shape against the model, and returns the number of values."""
    name = quote(tensor.name)
    if tensor.datatype != DATATYPES[spec.dtype]:
        raise RequestError(
            400, f"input {name} has datatype {quote(tensor.datatype)}, but the model takes {DATATYPES[spec.dtype]}"
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


def _requested_outputs(request: _Body, names: list[str]) -> dict[str, bool]:
    binary = value_of(request.parameters.binary_data_output) is True
    if not request.outputs:
        return dict.fromkeys(names, binary)
    requested: dict[str, bool] = {}
    for output in request.outputs:
        if output.name not in names:
            raise RequestError(400, f"there is no output {quote(output.name)}; the model returns {_names(names)}")
        if output.name in requested:
            raise RequestError(400, f"output {quote(output.name)} is requested twice")
        for name in ("classification", "shared_memory_region"):
            if len(getattr(output.parameters, name)):
                raise RequestError(400, f"the output parameter {name} is not supported")
        own = output.parameters.binary_data
        requested[output.name] = bool(value_of(own)) if len(own) else binary
    return requested


class Answer(NamedTuple):
    """Holds the pieces of an HTTP body, and the length of its JSON if binary tensors follow."""

    pieces: tuple[bytes | memoryview, ...]
    header_length: int | None


MOST_JSON_VALUES = 2**20
"""Most values of an answer in JSON, each of which takes some 24 bytes of text."""


def size_of_answer(request: Request, outputs: Mapping[str, Array]) -> int:
    """Returns about how many bytes an answer takes with the outputs. Raises RequestError if it is too long for JSON."""
    wanted = {name: outputs[name] for name in request.outputs}
    count = sum(array.size for name, array in wanted.items() if not request.outputs[name] or array.dtype == object)
    if count > MOST_JSON_VALUES:
        what = f"the answer has {count} values, but at most {MOST_JSON_VALUES} are sent as JSON or strings"
        raise RequestError(413, f"{what}: ask for binary data, or send fewer examples")
    return 24 * count + sum(array.nbytes for array in outputs.values())  # binary data are the outputs themselves


def answer(model: str, version: int, request: Request, outputs: Mapping[str, Array]) -> Answer:
    """Answers a request with the outputs of a model.

    Args:
        model: the model's name.
        version: the version that answered.
        request: the request.
        outputs: all outputs of the model by name.
    """
    tensors: list[dict[str, Any]] = []
    pieces: list[bytes | memoryview] = []
    for name, binary in request.outputs.items():
        array = outputs[name]
        output: dict[str, Any] = {"name": name, "datatype": DATATYPES[array.dtype], "shape": array.shape}
        if binary:
            pieces.append(to_bytes(array))
            output["parameters"] = {"binary_data_size": len(pieces[-1])}
        else:
            output["data"] = array.ravel().tolist()
        tensors.append(output)
    head: dict[str, Any] = {"model_name": model, "model_version": str(version), "outputs": tensors}
    if request.id:
        head["id"] = request.id
    json = msgspec.json.encode(head)
    return Answer((json, *pieces), len(json) if pieces else None)


def _names(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(quote(name) for name in list(names)[:20])
