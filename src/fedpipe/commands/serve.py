"""Serves accepted models from this process, until it is stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fedpipe.federation.sources import Source, read_source
from fedpipe.serving.catalogue import locate
from fedpipe.serving.limits import Limits
from fedpipe.serving.runner import Batching
from fedpipe.serving.server import Options, Server

_MIB = 2**20


def serve(
    source: Source | None = None, *, store: str | None = None, models: str | Path | None = None,
    host: str = "127.0.0.1", port: int = 0, cache: str | Path | None = None, token: str | None = None,
    poll: float = 5.0, sessions: int = 0, threads: int = 0, batch: int = 1, batch_delay: float = 2.0,
    body_limit: float = 64.0, json_limit: float = 4.0, memory_limit: float = 128.0, timeout: float = 30.0,
    access_log: bool = False, wait: float = 60.0, **changes: Any,
) -> Server:  # fmt: skip
    """Serves the accepted models over HTTP from a thread of this process, until it is stopped.

    Args:
        source: a federation: a file, or its content; for its store.
        store: URI of a store, or of one federation in it; or `model-registry://HOST:PORT/NAME[/VERSION]`.
        models: a folder of `NAME/VERSION/model.onnx` instead.
        host: the address to listen on.
        port: the port; 0 for a free one.
        cache: folder for copies, so that a restart works without the store.
        token: the bearer token that clients must send; FEDPIPE_TOKEN by default, and none without it.
        poll: seconds between looks for new versions.
        sessions: parallel runs; 0 for one per four cores.
        threads: threads of a run; 0 for cores divided by sessions.
        batch: the largest batch of examples from several requests; 1 for none.
        batch_delay: milliseconds that a request waits for others.
        body_limit: the largest request, in MiB.
        json_limit: the most JSON of a request, in MiB; the rest is binary data.
        memory_limit: MiB that all requests hold together; one of full size always fits.
        timeout: seconds that a request may take.
        access_log: writes each request as a line of JSON to standard output.
        wait: seconds to wait until the models are loaded; a server without any is returned then.
        changes: keys of the federation file with new values.

    Returns:
        The server, with its address in `url`. `stop`, or the end of a `with` statement, ends it.

    Raises:
        InputError: the models' place is not given or wrong, or the address is not available.
        StoreError: the URI is wrong, or there are no credentials.

    >>> import fedpipe
    >>> result = fedpipe.run("demo/federation.yaml")
    >>> with fedpipe.serve("demo/federation.yaml") as server:
    ...     answers = fedpipe.predict_file(server.url, "demo/digits.npz")
    >>> answers.accuracy > 0.9
    True
    """
    body, json, memory = (int(size * _MIB) for size in (body_limit, json_limit, memory_limit))
    token = os.environ.get("FEDPIPE_TOKEN", "") if token is None else token
    options = Options(
        host=host, port=port, cache=Path(cache) if cache else None, token=token, poll=poll, sessions=sessions,
        threads=threads, batching=Batching(batch, batch_delay / 1000),
        limits=Limits(body=body, json=json, memory=memory, seconds=timeout), access_log=access_log,
    )  # fmt: skip
    federation = read_source(source, changes) if source is not None else None
    place = locate(source=federation, store=store, folder=Path(models) if models else None)
    server = Server(place, options)
    server.start(wait)
    return server
