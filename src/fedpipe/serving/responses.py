"""Builds the server's responses: status, bytes and headers."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from starlette.types import Scope, Send

from fedpipe.registry.card import PUBLIC
from fedpipe.serving.follower import Served
from fedpipe.serving.memory import Share
from fedpipe.serving.protocol import describe_tensor
from fedpipe.serving.runtime import Loaded
from fedpipe.serving.tensors import RequestError
from fedpipe.serving.waiting import within

_PIECE = 2**18
JSON = (b"content-type", b"application/json")


class Response(NamedTuple):
    """Holds a response, and the model and version that the log and the metrics record with it."""

    status: int
    body: bytes | tuple[bytes | memoryview, ...]
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)
    model: str = ""
    version: str = ""
    share: Share | None = None
    """The memory that is held until the response is sent."""

    @property
    def pieces(self) -> tuple[bytes | memoryview, ...]:
        """Returns the body in pieces."""
        return self.body if isinstance(self.body, tuple) else (self.body,)

    @property
    def size(self) -> int:
        """Returns the number of bytes of the body."""
        return sum(map(len, self.pieces))


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


async def send_response(response: Response, send: Send, seconds: float) -> None:
    """Sends a response over ASGI, piece by piece: the memory of a slow client's answer is held until it is sent.

    Args:
        response: the response.
        send: of ASGI.
        seconds: time in which a client must take a piece. Otherwise the server hangs up.
    """
    left = response.size
    length = (b"content-length", str(left).encode())
    await send({"type": "http.response.start", "status": response.status, "headers": [*response.headers, length]})
    for part in response.pieces:
        for start in range(0, max(1, len(part)), _PIECE):
            piece = bytes(part[start : start + _PIECE])
            left -= len(piece)
            try:
                await within(seconds, send({"type": "http.response.body", "body": piece, "more_body": left > 0}))
            except TimeoutError:
                return  # uvicorn hangs up on an unfinished answer
            if not left:
                return
