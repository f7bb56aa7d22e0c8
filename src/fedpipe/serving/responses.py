"""Builds the server's responses: status, bytes and headers."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from starlette.types import Scope, Send

from fedpipe.registry.card import PUBLIC
from fedpipe.serving.follower import Served
from fedpipe.serving.protocol import describe_tensor
from fedpipe.serving.runtime import Loaded
from fedpipe.serving.tensors import RequestError

JSON = (b"content-type", b"application/json")


class Response(NamedTuple):
    """Holds a response, and the model and version that the log and the metrics record with it."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)
    model: str = ""
    version: str = ""


def metadata_of(loaded: Loaded, served: Served) -> dict[str, Any]:
    """Returns a model's metadata; `parameters` extends the protocol, and other clients ignore it."""
    card = loaded.model.card
    versions = [str(one.entry.version) for one in served.loaded]
    return {
        "name": loaded.entry.name,
        "versions": sorted(versions, key=int),
        "platform": "onnxruntime_onnx",
        "inputs": [describe_tensor(spec) for spec in loaded.model.inputs],
        "outputs": [describe_tensor(spec) for spec in loaded.model.outputs],
        "parameters": {name: msgspec.to_builtins(getattr(card, name)) for name in PUBLIC},
    }


def json_response(value: Any, status: int = 200) -> Response:
    """Encodes a value as a JSON response."""
    return Response(status, msgspec.json.encode(value))


def refusal(error: RequestError, scope: Scope, model: str = "", version: str = "") -> Response:
    """Turns an error into a response."""
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)
    if error.status == 401:
        headers += ((b"www-authenticate", b"Bearer"),)
    if error.status == 503:
        headers += ((b"retry-after", b"1"),)
    if error.status in (408, 413):  # the server does not read the rest of the body
        headers += ((b"connection", b"close"),)
    return Response(error.status, msgspec.json.encode({"error": str(error)}), headers, model, version)


async def send_response(response: Response, send: Send) -> None:
    """Sends a response over ASGI."""
    length = (b"content-length", str(len(response.body)).encode())
    await send({"type": "http.response.start", "status": response.status, "headers": [*response.headers, length]})
    await send({"type": "http.response.body", "body": response.body})
