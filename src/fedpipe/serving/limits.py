"""Defines the limits of requests."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Limits requests.

    Args:
        body: bytes of a body.
        json: bytes of its JSON, of which each takes up to 24 bytes of memory while it is parsed.
        memory: bytes that all requests hold together: bodies, arrays and answers. One of full size always fits.
        seconds: time limit of a request.
        requests: most concurrent requests.
    """

    body: int = 64 * 2**20
    json: int = 4 * 2**20
    memory: int = 128 * 2**20
    seconds: float = 30.0
    requests: int = 1024

    @property
    def strings(self) -> int:
        """Returns the most strings of a request."""
        return max(1024, self.json // 8)

    def json_flaw(self, size: int) -> str:
        """Returns why a request with so many bytes of JSON is refused; 0: unknown."""
        found = f"{size} bytes, but" if size else "more bytes than allowed:"
        most = min(self.json, self.body)
        return f"the JSON has {found} at most {most} are read; send the values as binary data, or fewer at a time"
