"""Predicts with a model behind any server that speaks the Open Inference Protocol."""

from __future__ import annotations

import math
import os
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import urllib3

from fedpipe.codec import converted, from_json, read_json
from fedpipe.errors import InputError
from fedpipe.registry.card import PUBLIC, Card
from fedpipe.registry.prediction import TensorSpec
from fedpipe.serving.protocol import HEADER_LENGTH
from fedpipe.serving.tensors import DATATYPES, DTYPES, RequestError, strings_from, to_bytes
from fedpipe.store.network import Pool, reason_of, remedy_of
from fedpipe.store.userinfo import check_no_credentials

Array = npt.NDArray[Any]


_MOST_ANSWER = 2**28
"""Bytes of an answer."""
_MOST_JSON = 2**25
"""Bytes of its JSON, of which each takes up to 24 bytes of memory."""


class _Parameters(msgspec.Struct):
    binary_data_size: int | None = None


class _Tensor(msgspec.Struct):
    """Represents a tensor of the protocol: its description, or with its data."""

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


class _InferenceResponse(msgspec.Struct):
    outputs: list[_Tensor]


class _ListedModel(msgspec.Struct):
    """Represents a model in the list of fedpipe's server; one that failed to load has no inputs."""

    name: str
    inputs: list[_Tensor] = []


class _ModelList(msgspec.Struct):
    models: list[_ListedModel]


class RemoteModel:
    """Predicts with a served model.

    Args:
        url: `http(s)://host[:port]` of a server with a single model, or with `/v2/models/NAME[/versions/VERSION]`.
        token: the bearer token; FEDPIPE_TOKEN by default.

    Raises:
        InputError: no server answers, or it has no such model.
    """

    def __init__(self, url: str, *, token: str | None = None) -> None:
        check_no_credentials(url, "URL of the server")
        token = os.environ.get("FEDPIPE_TOKEN", "") if token is None else token
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._pool = Pool(timeout=urllib3.Timeout(connect=5, read=60), retries=False, most=_MOST_ANSWER)
        base, found, path = url.rstrip("/").partition("/v2")
        self._url = url.rstrip("/") if found and path else f"{base}/v2/models/{self._only_model(base)}"
        response = self._request("GET", self._url)
        try:
            metadata = from_json(response.data, _Metadata)
            self.name = metadata.name
            self.inputs = [_spec(tensor) for tensor in metadata.inputs]
            self.outputs = [_spec(tensor) for tensor in metadata.outputs]
            parameters = metadata.parameters or {}
            of_card = {name: parameters[name] for name in PUBLIC if name in parameters}
            self.card = converted(of_card, Card)
        except (KeyError, msgspec.DecodeError) as error:
            raise InputError(
                "the server does not describe a model as the Open Inference Protocol does",
                where=self._url,
                remedy="Check the URL.",
            ) from error

    def _only_model(self, base: str) -> str:
        remedy = f"Use {base}/v2/models/NAME."
        response = self._request("GET", f"{base}/models")
        try:
            names = [model.name for model in from_json(response.data, _ModelList).models if model.inputs]
        except msgspec.DecodeError as error:
            raise InputError("the server does not list its models", where=base, remedy=remedy) from error
        if len(names) != 1:
            what = f"the server has {len(names)} models: {', '.join(names) or 'none'}"
            raise InputError(what, where=base, remedy=remedy)
        return names[0]

    def run(self, feed: dict[str, Array]) -> list[Array]:
        """Returns all outputs. Raises InputError with the server's message."""
        pieces = [to_bytes(array) for array in feed.values()]
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
        body, headers = b"".join([json, *pieces]), {HEADER_LENGTH: str(len(json))}
        response = self._request("POST", f"{self._url}/infer", body, headers)
        try:
            return _outputs(response, [spec.name for spec in self.outputs])
        except (KeyError, ValueError, TypeError, RequestError, msgspec.DecodeError) as error:
            raise InputError(f"the response violates the protocol: {error}", where=self._url) from error

    def _request(self, method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        try:
            response = self._pool.urlopen(method, url, body=body, headers={**self._headers, **(headers or {})})
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            remedy = remedy_of(error, "Check the URL, and whether `fedpipe serve` is running.")
            raise InputError(f"the server does not answer: {reason_of(error)}", where=url, remedy=remedy) from error
        if response.status != 200:
            raise InputError(_error_message(response), where=url)
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            what = f"the server answers with the content encoding {encoding[:40]!r}, which is not decoded"
            raise InputError(what, where=url, remedy="Turn compression off for this client.")
        text = response.headers.get(HEADER_LENGTH, "")
        json = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else len(response.data)
        if json > _MOST_JSON:
            what = f"the server answers with {json} bytes of JSON, but at most {_MOST_JSON} are read"
            raise InputError(what, where=url, remedy="Predict fewer examples at a time.")
        return response


def _error_message(response: Any) -> str:
    try:
        return f"the server answers: {read_json(response.data)['error']} (HTTP {response.status})"
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"the server answers with HTTP {response.status}"


def _spec(tensor: _Tensor) -> TensorSpec:
    shape = tuple(None if size < 0 else size for size in tensor.shape)
    return TensorSpec(tensor.name, DTYPES[tensor.datatype], shape)


def _outputs(response: Any, names: list[str]) -> list[Array]:
    data, length = memoryview(response.data), response.headers.get(HEADER_LENGTH)
    length = len(data) if length is None else int(length)
    found, rest = {}, data[length:]
    for output in from_json(data[:length], _InferenceResponse).outputs:
        dtype, size = DTYPES[output.datatype], output.parameters.binary_data_size if output.parameters else None
        if size is None:
            array = np.array(output.data, dtype)
        elif dtype.kind == "O":
            array, rest = strings_from(rest[:size], math.prod(output.shape), output.name), rest[size:]
        else:
            array, rest = np.frombuffer(rest[:size], dtype.newbyteorder("<")).astype(dtype), rest[size:]
        found[output.name] = array.reshape(output.shape)
    return [found[name] for name in names]
