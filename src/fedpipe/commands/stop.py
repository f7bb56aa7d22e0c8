"""Asks a session to end after its current round."""

from __future__ import annotations

from fedpipe.commands.opened import StoreGiven, check_runs, open_federation
from fedpipe.errors import InputError
from fedpipe.federation.sources import Source
from fedpipe.sessions.board import ask_to_stop, poll_board
from fedpipe.store import keys


def stop(source: Source, run: str, *, store: StoreGiven = None) -> str:
    """Asks a session to end after its current round; returns a sentence about the effect.

    Raises:
        NotFoundError: there is no such run.
        InputError: the run has ended.

    >>> import fedpipe
    >>> result = fedpipe.run("demo/federation.yaml", name="run-1", training={"rounds": 2})
    >>> fedpipe.stop("demo/federation.yaml", "run-1")
    Traceback (most recent call last):
        ...
    fedpipe.errors.InputError: ...: run 'run-1' has ended already
    """
    opened, _ = open_federation(source, store)
    (run,) = check_runs(opened, [run])
    found = poll_board(opened, run)
    board = found[0] if found else None
    if opened.size(keys.summary(run)) is not None or (board and board.phase == "ended"):
        raise InputError(f"run {run!r} has ended already", where=opened.uri)
    asked = "" if ask_to_stop(opened, run) else "was already asked to stop: it "
    found = poll_board(opened, run) or found  # a round may have begun before it was asked
    if found is None:
        return f"run {run} {asked}ends as soon as its session begins; runs of single steps cannot be stopped"
    return f"run {run} {asked}ends after round {found[0].round}; the model is evaluated and exported as usual"
