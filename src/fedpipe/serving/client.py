"""A model behind a server that speaks the Open Inference Protocol, ours or another."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import urllib3

from fedpipe.errors import InputError
from fedpipe.registry.card import Card
from fedpipe.registry.prediction import TensorSpec
from fedpipe.serving.protocol import DATATYPES, DTYPES, HEADER_LENGTH

Array = npt.NDArray[Any]


class _Parameters(msgspec.Struct):
    binary_data_size: int | None = None


class _Tensor(msgspec.Struct):
    """A tensor as the protocol writes it: described, or with its data."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: _Parameters | None = None
    data: list[Any] | None = None


class _Metadata(msgspec.Struct):
    name: str
    inputs: list[_Tensor]
    outputs: list[_Tensor]
    parameters: dict[str, Any] | None = None


class _Answer(msgspec.Struct):
    outputs: list[_Tensor]


class _Listed(msgspec.Struct):
    """A model in the list of our own server; one that failed has no inputs."""

    name: str
    inputs: list[_Tensor] = []


class _Listing(msgspec.Struct):
    models: list[_Listed]


class RemoteModel:
    """A served model.

    Args:
        url: `http(s)://host[:port]` for the only model there, or with `/v2/models/NAME[/versions/VERSION]`.
        token: the bearer token; FEDPIPE_TOKEN by default.

    Raises:
        InputError: nothing answers there, or what answers has no such model.
    """

    def __init__(self, url: str, *, token: str | None = None) -> None:
        token = os.environ.get("FEDPIPE_TOKEN", "") if token is None else token
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=5, read=60), retries=False)
        base, found, path = url.rstrip("/").partition("/v2")
        self._url = url.rstrip("/") if found and path else f"{base}/v2/models/{self._only(base)}"
        response = self._sent("GET", self._url)
        try:
            described = msgspec.json.decode(response.data, type=_Metadata)
            self.name = described.name
            self.inputs = [_spec(tensor) for tensor in described.inputs]
            self.outputs = [_spec(tensor) for tensor in described.outputs]
            parameters = described.parameters or {}
            known = {name: parameters[name] for name in ("classes", "spread", "finite") if name in parameters}
            self.signature = msgspec.convert(known, Card)
        except (KeyError, msgspec.DecodeError) as error:
            why = "what answers does not describe a model as the Open Inference Protocol does"
            raise InputError(why, where=self._url) from error

    def _only(self, base: str) -> str:
        remedy = f"Write {base}/v2/models/NAME."
        response = self._sent("GET", f"{base}/models")
        try:
            names = [model.name for model in msgspec.json.decode(response.data, type=_Listing).models if model.inputs]
        except msgspec.DecodeError as error:
            raise InputError("what answers does not list its models", where=base, remedy=remedy) from error
        if len(names) != 1:
            there = f"{len(names)} models are served there: {', '.join(names) or 'none'}"
            raise InputError(there, where=base, remedy=remedy)
        return names[0]

    def run(self, feed: dict[str, Array]) -> list[Array]:
        """All outputs. Raises InputError with the server's word."""
        pieces = [np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes() for array in feed.values()]
        request = {
            "inputs": [
                {
                    "name": name,
                    "shape": array.shape,
                    "datatype": DATATYPES[array.dtype],
                    "parameters": {"binary_data_size": len(piece)},
                }
                for (name, array), piece in zip(feed.items(), pieces, strict=True)
            ],
            "parameters": {"binary_data_output": True},
        }
        json = msgspec.json.encode(request)
        response = self._sent("POST", f"{self._url}/infer", b"".join([json, *pieces]), {HEADER_LENGTH: str(len(json))})
        try:
            return _outputs(response, [spec.name for spec in self.outputs])
        except (KeyError, ValueError, TypeError, msgspec.DecodeError) as error:
            raise InputError(f"the answer is not of the protocol: {error}", where=self._url) from error

    def _sent(self, method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        try:
            response = self._pool.urlopen(method, url, body=body, headers={**self._headers, **(headers or {})})
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            reason = str(getattr(error, "reason", "") or error).rsplit(": ", 1)[-1][:200]
            raise InputError(f"nothing answers: {reason}", where=url, remedy="Does `fedpipe serve` run?") from error
        if response.status != 200:
            raise InputError(_told(response), where=url)
        return response


def _told(response: Any) -> str:
    try:
        return f"the server says: {msgspec.json.decode(response.data)['error']} (HTTP {response.status})"
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"the server says: HTTP {response.status}"


def _spec(tensor: _Tensor) -> TensorSpec:
    shape = tuple(None if size < 0 else size for size in tensor.shape)
    return TensorSpec(tensor.name, DTYPES[tensor.datatype], shape)


def _outputs(response: Any, names: list[str]) -> list[Array]:
    data, length = memoryview(response.data), response.headers.get(HEADER_LENGTH)
    length = len(data) if length is None else int(length)
    found, rest = {}, data[length:]
    for output in msgspec.json.decode(data[:length], type=_Answer).outputs:
        dtype, size = DTYPES[output.datatype], output.parameters.binary_data_size if output.parameters else None
        if size is None:
            array = np.array(output.data, dtype)
        else:
            array, rest = np.frombuffer(rest[:size], dtype.newbyteorder("<")).astype(dtype), rest[size:]
        found[output.name] = array.reshape(output.shape)
    return [found[name] for name in names]
