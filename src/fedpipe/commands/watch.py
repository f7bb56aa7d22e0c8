"""Follows a run from its store, whatever machine it runs on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fedpipe.commands.opened import StoreGiven, full_name, is_known, known_runs, no_run, settle
from fedpipe.errors import CorruptError
from fedpipe.federation.federation import Federation
from fedpipe.federation.sources import Source
from fedpipe.rounds.history import read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan, read_plan
from fedpipe.rounds.selection import took_part
from fedpipe.rounds.timings import find_timing
from fedpipe.sessions.board import Board, Keeper, poll_board
from fedpipe.sessions.presence import read_presence, waiting_sites
from fedpipe.sites.decisions import shown_decision
from fedpipe.store import Store, keys, open_store
from fedpipe.store.objects import find
from fedpipe.tracking.tracker import Tracker

LOOK_AGAIN = 1.0
"""Seconds between two looks at a run in progress."""
_PODS_AGAIN = 5.0
"""Seconds between two looks at its pods."""


class Seen(NamedTuple):
    """Describes what happened in a run, or its current state.

    Args:
        line: a line about an event; empty without one.
        state: the current state; empty after an event.
        record: the record of a round that ended.
    """

    line: str
    state: str = ""
    record: Record | None = None


def watch(
    source: Source, run: str, *, store: StoreGiven = None, again: float = LOOK_AGAIN,
    pods: Callable[[], list[str]] | None = None, wait: bool = False,
) -> Iterator[Seen]:  # fmt: skip
    """Follows a run from its store until it has ended, whatever machine it runs on.

    Args:
        source: the federation file, or its content.
        run: the run's name.
        store: a store to use instead of the federation's.
        again: seconds between two looks at the store.
        pods: returns a line for each pod that waits; called every few seconds.
        wait: waits for a run that the store does not have yet; then `run` is its whole name.

    Returns:
        A generator of events, and after each look at the store of the current state.

    Raises:
        NotFoundError: there is no such run.
        StepError: the run has failed; raised by `pods`.

    >>> import fedpipe
    >>> result = fedpipe.run("demo/federation.yaml", name="run-1", training={"rounds": 2})
    >>> events = list(fedpipe.watch("demo/federation.yaml", "run-1"))
    >>> [seen.record.round for seen in events if seen.record]
    [0, 1, 2]
    """
    federation, uri = settle(source, store)
    opened = open_store(uri).below(federation.name)
    run = run if wait else full_name(opened, run)
    if not (wait or is_known(opened, run)):
        raise no_run(opened, run)
    return _tracked(opened, run, Tracker(opened, run, federation.tracking, uri=uri), _follow(opened, run, again, pods))


def _tracked(store: Store, run: str, tracker: Tracker, followed: Iterator[Seen]) -> Iterator[Seen]:
    """Sends the followed rounds to the tracking server, if there is one, and everything else of a run that has ended.

    The pods of the run may do the same: no point is sent twice.
    """
    ended = False
    tracker.start()
    try:
        for seen in followed:
            tracker.wake()
            yield seen
        ended = store.size(keys.summary(run)) is not None
    finally:
        tracker.close("FINISHED" if ended else None)
    if tracker.outcome:
        yield Seen(tracker.outcome)


def _follow(store: Store, run: str, again: float, pods: Callable[[], list[str]] | None) -> Iterator[Seen]:
    if store.size(keys.record(run, 0)) is None:
        yield Seen("", f"waiting for run {run} to begin. {known_runs(store)}")
    keeper, number = Keeper(store, run, ""), 0
    waiting = _Waiting(lambda: [*(pods() if pods else ()), *_sites(store, run)])
    federation: Federation | None = None
    while True:
        ended = store.size(keys.summary(run)) is not None
        try:
            found = poll_board(store, run)
            board = found[0] if found else None
            while record := read_record(store, run, number):
                federation = federation or read_plan(store, record.plan).federation
                yield Seen(round_line(store, federation, record), record=record)
                number += 1
        except CorruptError as error:
            yield Seen(f"the run cannot be followed any further: {error.where}: {error.what}; see `fedpipe repair`")
            return
        if ended or (board and board.phase == "ended"):
            yield Seen(f"the session ended: {board.why}" if board and board.phase == "ended" else "the run has ended")
            return
        state = _state(keeper, board, store.age(keys.board(run)) or 0.0) if board else ""
        yield from map(Seen, waiting.look())
        yield Seen("", "; ".join(filter(None, [state, *waiting.lines])))
        time.sleep(again)


def _sites(store: Store, run: str) -> list[str]:
    """Describes the sites of a run that keep it waiting."""
    try:
        plan = find(store, keys.plan(run), Plan)
        return [line for site in (plan.federation.sites if plan else ()) for line in _lines_of(store, site)]
    except CorruptError:
        return []


def _lines_of(store: Store, site: str) -> list[str]:
    """Describes why a site keeps a run waiting: by the decision that it signed, or by the presence of its agent."""
    presence = read_presence(store, site)
    if presence is not None and presence.state in ("waits", "refuses"):
        decided = shown_decision(store, site)
        if decided is not None and decided.verdict != "approved":
            return [f"{site}: {decided.shown}"]
    return waiting_sites(store, [site])


class _Waiting:
    """Reports pods and sites that wait: once as a line, and in the state for as long as they wait."""

    def __init__(self, pods: Callable[[], list[str]]) -> None:
        self._pods = pods
        self.lines: list[str] = []
        self._reported: set[str] = set()
        self._next = 0.0

    def look(self) -> Iterator[str]:
        """Updates the current lines, and yields those that are new."""
        if time.monotonic() >= self._next:
            self.lines, self._next = self._pods(), time.monotonic() + _PODS_AGAIN
            for line in self.lines:
                if (who := line.partition(" is ")[0]) not in self._reported:
                    self._reported.add(who)
                    yield line


def round_line(store: Store, federation: Federation, record: Record) -> str:
    """Describes a round: metrics, participants, the vote, and the seconds of each phase."""
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in record.metrics.items())
    phases = ("await-train", "aggregate", "await-propose", "await-vote", "tally")
    timings = [(step, find_timing(store, record.run, record.round, step)) for step in phases]
    seconds = ", ".join(f"{step.removeprefix('await-')} {t.seconds:.1f} s" for step, t in timings if t)
    parts = [f"round {record.round}", numbers]
    if record.proposer:
        parts.append(f"proposed by {record.proposer}")
    elif record.round:
        parts.append(f"{len(took_part(federation, record))} learners")
    if record.outcome:
        word = "accepted" if record.accepted else "rejected"
        parts.append(f"{word}: {record.outcome.approvals} of {record.outcome.voters} approve")
    parts += [f"without {item.learner} ({item.why})" for item in (*record.dropped, *record.absent)]
    if record.aligned:
        dropped = ", ".join(f"{one.dropped} of {one.learner}" for one in record.aligned)
        parts.append(f"{record.aligned[0].common} common rows (dropped: {dropped})")
    if record.not_chosen:
        parts.append(f"not chosen by the rule: {', '.join(record.not_chosen)}")
    return "  ".join(filter(None, [*parts, seconds]))


def _state(keeper: Keeper, board: Board, seconds: float) -> str:
    """Describes the phase of a session and the learners that it awaits."""
    awaited = []
    for name in board.asked:
        sign = keeper.sign(name)
        if not sign or not sign.answers(board):
            awaited.append(name)
    who = f"awaiting {', '.join(awaited)}" if awaited else "all have answered"
    away = f"; away: {', '.join(board.away)}" if board.away else ""
    return f"round {board.round} {board.phase}: {who} for {seconds:.0f} s{away}"
