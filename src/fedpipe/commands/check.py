"""Checks a federation file, its data, its model and its store."""

from __future__ import annotations

from pathlib import Path

from fedpipe.engine import preflight
from fedpipe.engine.workers import Workers
from fedpipe.federation.file import read_federation
from fedpipe.store import check_folder, open_store


def check(source: str | Path, *, store: bool = True) -> list[preflight.Checked]:
    """Checks a federation file, its data, its model and, unless `store` is false, its store; changes nothing.

    Raises:
        FedpipeError: the first mistake, with its remedy.
    """
    from fedpipe.compiled.compiler import read_code

    federation = read_federation(Path(source))
    findings = [preflight.Checked("federation", f"{federation.name}: {len(federation.learners)} learners")]
    uri = federation.store_uri if store else ""
    checked = [_checked_store(uri)] if store else []
    with Workers(preload=federation.needs_tensorflow) as processes:
        code, data = read_code(federation), federation.data.uri
        findings += preflight.check(federation, code, data, uri, processes.call, own=True)
    return findings + checked


def _checked_store(uri: str) -> preflight.Checked:
    if uri.startswith("file://"):  # the first run creates a folder
        check_folder(uri)
        return preflight.Checked("store", uri)
    open_store(uri).probe()
    return preflight.Checked("store", f"{uri} honours conditional writes")
