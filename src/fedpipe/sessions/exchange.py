"""The conversation of the parties of a split network: they send and await parcels, at the store.

A party that waits looks often at first and less often later. It ends when the one it waits for has left, when the
coordinator has ended the attempt, or after the round's deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import numpy as np

from fedpipe.errors import CorruptError, DroppedError
from fedpipe.federation.split import ExchangeType
from fedpipe.identity.enrolment import Enrolled
from fedpipe.identity.sealing import Seal
from fedpipe.rounds.parcels import (
    Kind,
    Meeting,
    exchange_of,
    leave,
    like,
    packed,
    reason_of,
    send,
    send_key,
    take,
    take_seal,
    unpacked,
)
from fedpipe.sessions.board import poll_board
from fedpipe.weights import Array

T = TypeVar("T")
_FIRST, _LAST, _SHARE = 0.001, 0.1, 1 / 8
"""Seconds between looks: the fewest, the most, and the share of the time waited already."""
_PATIENCE = 0.9
"""The share of the time left that a party waits, so that its reason comes before the coordinator's deadline."""
_LOOK = 0.5
"""Seconds of waiting between looks at whether it makes sense to wait on."""


class Conversation:
    """One party in one attempt at a round.

    Args:
        meeting: the attempt.
        party: its name.
        exchange: the type of the numbers.
        enrolled: who must sign.
        seconds: left until the deadline.
        phase: the board's phase during the attempt.
        clock: seconds of this process.
    """

    def __init__(
        self, meeting: Meeting, party: str, exchange: ExchangeType, enrolled: Enrolled, *, seconds: float,
        phase: str = "exchange", clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._meeting, self._party, self._exchange = meeting, party, exchange
        self._enrolled, self._phase, self._clock = enrolled, phase, clock
        self._end = clock() + _PATIENCE * seconds
        self._exchange_key = exchange_of(meeting, party)
        self._seals: dict[str, Seal | None] = {}
        self.sent, self.waited = 0, 0.0

    def meet(self, others: Sequence[str]) -> Generator[float, None, None]:
        """Agree on a secret with each other party, if all of them are enrolled.

        Raises:
            DroppedError: a party with a signing key would have to send in the clear, or another does not come.
        """
        if self._exchange_key is None:
            return
        for name in others:
            if name not in self._enrolled.learners:
                raise DroppedError(
                    f"{self._party} has a signing key, but {name} is not enrolled, so its parcels would not be sealed",
                    remedy="Enroll all parties, or none.",
                    lasting=True,
                )
        send_key(self._meeting, self._party, self._exchange_key)
        for name in others:
            key, about = self._exchange_key, self._meeting
            look = partial(take_seal, about, name, key, self._enrolled)
            self._seals[name] = yield from self._await(look, name, "key of the exchange")

    def send(self, kind: Kind, number: int, to: str, values: Array) -> None:
        """Send activations or gradients. Raises DroppedError when they are not finite."""
        self.send_as_is(kind, number, to, packed(values, self._exchange))

    def send_as_is(self, kind: Kind, number: int, to: str, arrays: Mapping[str, Array]) -> None:
        """Send named arrays."""
        self.sent += send(self._meeting, kind, number, self._party, to, arrays, self._seals.get(to))

    def receive(
        self, kind: Kind, number: int, sender: str, rows: int, row: tuple[int, ...]
    ) -> Generator[float, None, Array]:
        """Await activations or gradients.

        Args:
            kind: which of them.
            number: of the batch.
            sender: the other party.
            rows: of the batch.
            row: the shape of one row.

        Raises:
            DroppedError: they cannot be used, or do not come.
        """
        found = yield from self.receive_as_is(kind, number, sender, like(rows, row, self._exchange))
        return unpacked(found, f"{kind} of batch {number} from {sender}")

    def receive_as_is(
        self, kind: Kind, number: int, sender: str, form: Mapping[str, Array]
    ) -> Generator[float, None, dict[str, Array]]:
        """Await arrays of these names, dtypes and shapes. Raises DroppedError as `receive`."""
        seal = self._seals.get(sender)
        look = partial(take, self._meeting, kind, number, sender, self._party, form, self._enrolled, seal)
        return (yield from self._await(look, sender, f"{kind} of batch {number}"))

    def _await(self, look: Callable[[], T | None], sender: str, what: str) -> Generator[float, None, T]:
        """Look again and again, until there is something. Raises DroppedError as `receive`."""
        begun = looked = self._clock()
        while True:
            found = look()
            now = self._clock()
            if found is not None:
                self.waited += now - begun
                return found
            if now - looked >= _LOOK:
                self._check_awaited(sender, what)
                looked = now
            yield min(_LAST, max(_FIRST, (now - begun) * _SHARE))

    def _check_awaited(self, sender: str, what: str) -> None:
        """Check that waiting makes sense. Raises DroppedError."""
        if why := reason_of(self._meeting, sender, self._enrolled):
            raise DroppedError(f"{sender} has left the round: {why}")
        meeting = self._meeting
        with suppress(CorruptError):
            polled = poll_board(meeting.store, meeting.run)
            board = polled[0] if polled else None
            if board is None or (board.session, board.round, board.attempt, board.phase) != (
                meeting.session, meeting.round, meeting.attempt, self._phase,
            ):  # fmt: skip
                raise DroppedError("the coordinator has ended this attempt at the round")
        if self._clock() >= self._end:
            raise DroppedError(f"the {what} of {sender} did not come in time")

    def leave(self, why: str) -> None:
        """Let others know that this party cannot continue."""
        leave(self._meeting, self._party, why)


def numbers(*values: int) -> Array:
    """Return whole numbers as an array that can be sent."""
    return np.array(values, np.int64)
