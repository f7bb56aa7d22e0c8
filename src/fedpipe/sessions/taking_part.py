"""Take part in a round of split learning: meet the other parties, publish the part that was trained."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path

from fedpipe import weights
from fedpipe.errors import CorruptError, StoreError
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.sealing import find_secret
from fedpipe.identity.statements import signed_by
from fedpipe.learners.aligned import in_common_order, keep_rows
from fedpipe.learners.contribute import last_optimizer
from fedpipe.learners.downloads import fetched
from fedpipe.learners.dropping import left_out
from fedpipe.learners.framework import Arrays
from fedpipe.learners.party import Held, Parts
from fedpipe.rounds.cut import read_digests
from fedpipe.rounds.floors import released_here
from fedpipe.rounds.manifests import Aligned, Dropped, Update
from fedpipe.rounds.parcels import Meeting, remove
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.roll import Roll
from fedpipe.rounds.timings import PARCELS, Timing, note
from fedpipe.rounds.updates import publish_update
from fedpipe.sessions.alignment import ALIGN, ALIGN_SECONDS, Alignment
from fedpipe.sessions.board import Board
from fedpipe.sessions.exchange import Conversation
from fedpipe.sessions.parties import Play, Round
from fedpipe.store import Store, keys
from fedpipe.store.objects import LOST, encode, put_file
from fedpipe.weights import Array

log = logging.getLogger("fedpipe")

Make = Callable[[], tuple[Held, Parts]]
"""Makes a party: its rows, and its parts of the network."""


def meeting_of(store: Store, plan: Plan, board: Board) -> Meeting:
    """Return the attempt at a round that the board opens."""
    return Meeting(
        store, plan.federation.name, plan.run, board.session, board.round, board.attempt, board.base,
        plan.definition.digest,
    )  # fmt: skip


def take_part(
    store: Store, plan: Plan, party: str, board: Board, make: Make, initial: Callable[[], Arrays], *,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[float, None, Update | Dropped]:  # fmt: skip
    """Take part in an attempt at a round; a party that cannot leaves the reason, for the others too.

    A repeated attempt is played from its start, so that others find all parcels of it.

    Args:
        store: the federation's store.
        plan: the run's plan.
        party: its name.
        board: the request.
        make: makes the party.
        initial: makes the first weights of its parts.
        clock: seconds of this process.
    """
    seconds = plan.federation.quorum.deadline - (store.age(keys.board(plan.run)) or 0.0)
    cut, started = plan.federation.split, time.time()
    assert cut is not None
    talk = Conversation(
        meeting_of(store, plan, board), party, cut.exchange, read_enrolled(store), seconds=seconds, clock=clock
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            held, parts = make()
            start = _start(store, board.base, party, initial, Path(folder))
            optimizer = last_optimizer(store, plan, party, board.round, Path(folder) / "optimizer")
            play = Play(talk, Round(plan.federation, board.round, start, optimizer), party, held, parts)
            result = yield from play.run()
            weights.check_finite(result.weights)
            kept = None
            digest = weights.save(result.weights, Path(folder) / "weights")
            put_file(store, Path(folder) / "weights", digest, party)
            if plan.federation.training.optimizer == "keep":
                kept = weights.save(result.optimizer, Path(folder) / "optimizer")
                put_file(store, Path(folder) / "optimizer", kept, party)
            update = Update(
                format=plan.format,
                federation=plan.federation.name, run=plan.run, round=board.round, learner=party, base=board.base,
                weights=digest, size=(Path(folder) / "weights").stat().st_size, examples=result.examples,
                metrics=result.metrics, plan=plan.definition.digest, tested=result.tested, optimizer=kept,
            )  # fmt: skip
        log.info(
            "round %d: %s sent %d bytes, and waited %.1f s", board.round, party, talk.sent, talk.waited
        )  # fmt: skip
        _note_parcels(store, plan, party, board, talk, started)
        return _published(store, signed_by(released_here(update), party))
    except (Exception, SystemExit) as error:
        dropped = left_out(store, plan, party, board.round, error, Roll((), attempt=board.attempt).note("dropped"))
        talk.leave(dropped.why)
        return dropped


def find_common(
    store: Store, plan: Plan, party: str, board: Board, ids: Callable[[], Array], *,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[float, None, Aligned | Dropped]:  # fmt: skip
    """Find a party's common rows with the others, and publish how many there are.

    Args:
        store: the federation's store.
        plan: the run's plan.
        party: its name.
        board: the request.
        ids: reads the ids of its rows.
        clock: seconds of this process.
    """
    cut, started = plan.federation.split, time.time()
    assert cut is not None
    meeting = meeting_of(store, plan, board)
    seconds = max(plan.federation.quorum.deadline, ALIGN_SECONDS) - (store.age(keys.board(plan.run)) or 0.0)
    talk = Conversation(
        meeting, party, cut.exchange, read_enrolled(store), seconds=seconds, phase=ALIGN, clock=clock
    )  # fmt: skip
    try:
        texts, about = ids(), meeting.place
        parties = [learner.name for learner in plan.federation.learners]
        finder = Alignment(
            talk, party, parties, cut.label_party, [str(text).encode() for text in texts], find_secret(party, about),
            about,
        )  # fmt: skip
        found = yield from finder.run()
        kept = keep_rows(store, party, in_common_order(found.places, texts))
        aligned = Aligned(
            format=plan.format, federation=plan.federation.name, run=plan.run, learner=party, base=board.base,
            plan=plan.definition.digest, session=board.session, attempt=board.attempt, rows=len(texts),
            common=len(found.places), others=found.others, personal=kept,
        )  # fmt: skip
        log.info(
            "%s has %d rows; %d are common to all, %d are dropped", party, aligned.rows, aligned.common, aligned.dropped
        )  # fmt: skip
        _note_parcels(store, plan, party, board, talk, started)
        signed = signed_by(aligned, party)
        store.replace(keys.answer(party, plan.run, board.round, keys.ALIGNED), encode(signed))
        return signed
    except (Exception, SystemExit) as error:
        dropped = left_out(store, plan, party, board.round, error, Roll((), attempt=board.attempt).note("dropped"))
        talk.leave(dropped.why)
        return dropped


def _note_parcels(store: Store, plan: Plan, party: str, board: Board, talk: Conversation, started: float) -> None:
    """Note what a party has sent in an attempt that began at a time, and how long it has waited."""
    timing = Timing(
        step=PARCELS, learner=party, round=board.round, started=started, seconds=talk.waited, sent=talk.sent
    )  # fmt: skip
    note(store, plan.run, timing)


def _published(store: Store, update: Update) -> Update:
    """Write the manifest, also in the place of that of an earlier attempt with other weights."""
    found = publish_update(store, update)
    if found.weights != update.weights:
        store.replace(keys.update(update.learner, update.run, update.round), encode(update))
    return update


def _start(store: Store, base: str, party: str, initial: Callable[[], Arrays], folder: Path) -> Arrays:
    """Return the weights with which a party begins: those that the global weights name, or the first ones."""
    digest = read_digests(store, base).get(party)
    if digest is None:
        raise CorruptError(f"the global weights have no part of {party}", remedy=LOST)
    if store.size(keys.content(digest, party)) is not None:
        return fetched(store, digest, folder / "start", party)
    first = initial()
    if weights.digest_of(first) != digest:
        raise CorruptError(f"the part of {party} is missing from the store", remedy=LOST)
    return first


def clear(store: Store, plan: Plan, party: str, board: Board) -> int:
    """Remove the parcels that a party sent in a round which is over, and return their number."""
    names = [learner.name for learner in plan.federation.learners if learner.name != party]
    meeting, count = meeting_of(store, plan, board), 0
    with suppress(StoreError):  # an S3 policy of an earlier enrolment does not let learners delete
        for attempt in range(1, board.attempt + 1):
            count += remove(meeting._replace(attempt=attempt), party, tuple(names))
    return count
