"""Checks a federation file, its data, its model and its store."""

from __future__ import annotations

from typing import Any

from fedpipe.commands.opened import StoreGiven, file_of, settle
from fedpipe.commands.shown import Findings
from fedpipe.engine import preflight
from fedpipe.engine.workers import Workers
from fedpipe.federation.federation import Federation
from fedpipe.federation.sources import Source
from fedpipe.identity.roster import check_roster
from fedpipe.identity.signing import keys_at_hand
from fedpipe.store import check_folder, open_store


def check(source: Source, *, store: bool | StoreGiven = True, **changes: Any) -> Findings:
    """Checks a federation file, its data, its model and its store; changes nothing.

    Args:
        source: a federation file, or its content.
        store: whether to check the store; or another store.
        changes: keys of the federation file with new values.

    Raises:
        FedpipeError: the first mistake, with its remedy.

    >>> import fedpipe
    >>> findings = fedpipe.check("demo/federation.yaml")
    >>> findings[0]
    Checked(subject='federation', what='digits: 5 learners')
    >>> fedpipe.check("demo/federation.yaml", training={"rounds": 0})
    Traceback (most recent call last):
        ...
    fedpipe.errors.FederationError: ...training.rounds: ...
    """
    from fedpipe.compiled.compiler import read_code

    given = None if isinstance(store, bool) else store
    federation, found = settle(source, given, changes)
    uri = "" if store is False else found
    findings = Findings([preflight.Checked("federation", f"{federation.name}: {len(federation.learners)} learners")])
    preflight.check_reached(federation, uri)
    checked = [_checked_store(uri)] if uri else []
    if uri and federation.secure:
        with keys_at_hand(file_of(source)):
            checked.append(_checked_roster(federation, uri))
    with Workers(preload=federation.needs_tensorflow) as processes:
        code, data = read_code(federation), federation.data.uri
        findings += preflight.check(federation, code, data, uri, processes.call, own=True)
    findings += checked
    return findings


def _checked_store(uri: str) -> preflight.Checked:
    if uri.startswith("file://"):  # the first run creates a folder
        check_folder(uri)
        return preflight.Checked("store", uri)
    open_store(uri).probe()
    return preflight.Checked("store", f"{uri} honours conditional writes")


def _checked_roster(federation: Federation, uri: str) -> preflight.Checked:
    roster = check_roster(open_store(uri).below(federation.name), federation)
    return preflight.Checked("roster", f"{len(roster)} learners, of which a sum has {federation.threshold} at least")
