"""The process of a site that trains: it runs the user's code and sees the data, and has neither keys nor network.

The agent starts it for a session. Both speak JSON over a pipe, each message of a fixed type, because the code of others
may send anything. The store is at the agent, which decides about each request (`fedpipe.store.keyholder`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Literal

import msgspec
from msgspec import Struct

from fedpipe.codec import from_json
from fedpipe.errors import Failure, FedpipeError, one_line
from fedpipe.learners.masking import MaskedFile
from fedpipe.rounds.manifests import Dropped
from fedpipe.secure.party import Orders
from fedpipe.sessions.board import Board
from fedpipe.sites.isolation import Isolation
from fedpipe.steps.contract import start_log
from fedpipe.steps.learn import Inputs, act, mask

log = logging.getLogger("fedpipe")

LARGEST = 2**24
"""Bytes of the largest message: orders of a secure sum of 64 learners."""


class Call(Struct, frozen=True):
    """A phase to answer, or to answer by a masked vector."""

    what: Literal["act", "mask"]
    inputs: Inputs
    board: Board
    orders: Orders | None = None


class Answer(Struct, frozen=True):
    """Whether the site took part; or its masked vector, the reason why there is none, an error, or a crash."""

    took_part: bool = False
    masked: MaskedFile | None = None
    dropped: Dropped | None = None
    failure: Failure | None = None
    crash: str = ""


def main(handle: int, isolation: Isolation) -> None:
    """Answer calls until the agent's end of the pipe is closed.

    Args:
        handle: descriptor of the pipe.
        isolation: what is in force.
    """
    connection = Connection(handle)
    threading.Thread(target=_end_with, args=(handle,), daemon=True).start()
    start_log()
    connection.send_bytes(msgspec.json.encode(isolation))
    with contextlib.suppress(EOFError, OSError):
        while True:
            call = from_json(connection.recv_bytes(LARGEST), Call)
            connection.send_bytes(msgspec.json.encode(_answered(call)))


def _end_with(handle: int) -> None:
    """End this process when the other side of its pipe is closed, whatever it computes at that moment."""
    hung_up = select.poll()
    hung_up.register(handle, 0)
    hung_up.poll()
    os._exit(1)


def _answered(call: Call) -> Answer:
    try:
        if call.orders is None:
            return Answer(took_part=act(call.inputs, call.board))
        done = mask(call.inputs, call.board, call.orders)
        return Answer(dropped=done) if isinstance(done, Dropped) else Answer(masked=done)
    except FedpipeError as error:
        return Answer(failure=Failure.of(error))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return Answer(crash=f"{type(error).__name__}: {one_line(error, 500)}")
