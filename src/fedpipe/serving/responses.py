"""The server's answers as bytes and headers."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from starlette.types import Scope, Send

from fedpipe.serving.follower import Served
from fedpipe.serving.protocol import RefusedError, described
from fedpipe.serving.runtime import Loaded

JSON = (b"content-type", b"application/json")


class Response(NamedTuple):
    """An answer, and what the log and the metrics tell of it."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)
    model: str = ""
    version: str = ""


def metadata_of(loaded: Loaded, served: Served) -> dict[str, Any]:
    """A model's metadata; `parameters` is not of the protocol, clients that do not know it pass over it."""
    signature = loaded.model.signature
    versions = [str(one.entry.version) for one in served.loaded]
    return {
        "name": loaded.entry.name,
        "versions": sorted(versions, key=int),
        "platform": "onnxruntime_onnx",
        "inputs": [described(spec) for spec in loaded.model.inputs],
        "outputs": [described(spec) for spec in loaded.model.outputs],
        "parameters": {
            "classes": signature.classes,
            "spread": msgspec.to_builtins(signature.spread),
            "finite": signature.finite,
        },
    }


def json_response(value: Any, status: int = 200) -> Response:
    """Encode a value as an answer."""
    return Response(status, msgspec.json.encode(value))


def refusal(error: RefusedError, scope: Scope, model: str = "", version: str = "") -> Response:
    """Turn an error into the answer that tells it."""
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)
    if error.status == 401:
        headers += ((b"www-authenticate", b"Bearer"),)
    if error.status == 503:
        headers += ((b"retry-after", b"1"),)
    if error.status in (408, 413):  # the rest of the body is not awaited
        headers += ((b"connection", b"close"),)
    return Response(error.status, msgspec.json.encode({"error": str(error)}), headers, model, version)


async def send_response(response: Response, send: Send) -> None:
    length = (b"content-length", str(len(response.body)).encode())
    await send({"type": "http.response.start", "status": response.status, "headers": [*response.headers, length]})
    await send({"type": "http.response.body", "body": response.body})
