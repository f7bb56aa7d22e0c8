"""Single objects of a store, for somebody without its keys: by presigned URLs, which expire.

The owner of a store lends a URL (`MinioStore.lend`). Its signature covers the method, the object and the time, so it
opens nothing else. A store that is a folder or memory needs no URLs.
"""

from __future__ import annotations

import itertools
import random
import re
import time
from typing import Any
from urllib.parse import urlsplit

import urllib3

from fedpipe.errors import StoreError, StoreUnavailableError
from fedpipe.store.network import Pool, RouteError, reason_of, remedy_of, via

LIMIT = 2**16
"""Most bytes of an object that is read."""
_DEADLINE = 30.0
_PASSING = (408, 429)


class Lent:
    """Writes and reads objects by presigned URLs.

    Args:
        deadline: seconds after which a request fails where nothing answers.
    """

    def __init__(self, deadline: float = _DEADLINE) -> None:
        self._deadline = deadline
        self._pool = Pool(timeout=urllib3.Timeout(connect=5, read=30), retries=False, most=LIMIT)

    def create(self, url: str, data: bytes) -> bool:
        """Write the object unless it exists. Returns whether this call created it. Raises StoreError."""
        response = self._sent("PUT", url, (200, 412), body=data, headers={"If-None-Match": "*"})
        return bool(response.status == 200)

    def find(self, url: str) -> bytes | None:
        """Read the object; None where it does not exist. Raises StoreError."""
        response = self._sent("GET", url, (200, 404))
        if response.status == 404 and b"NoSuchKey" not in response.data:
            raise _refused(url, response)
        return bytes(response.data) if response.status == 200 else None

    def _sent(self, method: str, url: str, expected: tuple[int, ...], **more: Any) -> Any:
        """Send a request, again after faults that may pass."""
        end = time.monotonic() + self._deadline
        for attempt in itertools.count():
            try:
                response = self._pool.urlopen(method, url, **more)
                if response.status in expected:
                    return response
                if response.status < 500 and response.status not in _PASSING:
                    raise _refused(url, response)
                why, remedy = f"it answers with HTTP {response.status}", ""
            except (urllib3.exceptions.HTTPError, OSError) as error:
                if isinstance(error, RouteError) and error.lasting:
                    raise StoreError(str(error), where=_host(url), remedy=error.remedy) from error
                why, remedy = reason_of(error), remedy_of(error, "")
            wait = min(5.0, 0.2 * 2**attempt) * random.uniform(0.5, 1.0)  # noqa: S311
            if time.monotonic() + wait > end:
                raise StoreUnavailableError(
                    f"the store cannot be reached: {why}",
                    where=f"{_host(url)}{via(url)}",
                    remedy=remedy or "Check that this machine can reach it, and HTTPS_PROXY.",
                )
            time.sleep(wait)
        raise AssertionError("unreachable")


def _host(url: str) -> str:
    """Return the place of a URL without its signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _refused(url: str, response: Any) -> StoreError:
    found = re.search(rb"<Code>([A-Za-z]{1,60})</Code>", response.data[:4096])
    if found is None:
        kind = str(response.headers.get("Content-Type", "no type")).partition(";")[0]
        what = f"the server is not an S3 store: it answers with HTTP {response.status} and {kind}"
        return StoreError(what, where=f"{_host(url)}{via(url)}", remedy="Check the endpoint, and HTTPS_PROXY.")
    code = found[1].decode()
    return StoreError(
        f"the store refuses the request ({code})",
        where=f"{_host(url)}{via(url)}",
        remedy="Ask for a new invitation: this one may have expired, or the keys that it was made with.",
    )
