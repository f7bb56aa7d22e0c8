"""The requests to the store that the process with the user's code may make, through the agent that holds the keys.

That process is hostile here. So each statement is read before it is signed and before it is sent. It must be of this
site and this session, and hold nothing that the policy of the site withholds.
"""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from msgspec.structs import replace

from fedpipe.data.disclosure import released_report
from fedpipe.data.statistics import Report
from fedpipe.errors import CorruptError, InputError, StoreError
from fedpipe.rounds.evaluation import Score
from fedpipe.rounds.ledger import Entry
from fedpipe.rounds.manifests import Aligned, Ballot, Dropped, Update
from fedpipe.rounds.parcels import Parcel
from fedpipe.rounds.releases import reason_that_leaves, released
from fedpipe.rounds.timings import Timing
from fedpipe.sessions.current import Opened
from fedpipe.sites.account import CONTENT, note_read
from fedpipe.sites.agent import Note, keep_nothing
from fedpipe.sites.site import Site
from fedpipe.store import keys
from fedpipe.store.held import Request
from fedpipe.store.objects import decode, digest_of

_READS = frozenset({"uri", "read", "poll", "read_range", "age", "size", "open", "piece", "close"})
_WRITES = frozenset({"create", "swap", "replace", "upload"})

_MODELS, _SLACK, _OBJECTS = 8, 16 * 2**20, 256
"""Most content of an answer, that of a few models and some for trees that grow; and most objects: names carry data.

An honest answer has up to 6 of a model's size: weights, a personal model, what rounding took away, and three states of
an optimizer.
"""
_SECRETS = (b"fedpipe exchange", b"fedpipe secret")
"""Texts from whose signatures the secrets of a party of a cut network follow, by which it seals its messages."""


class _Kind(NamedTuple):
    """A statement: the last part of its key, its name when it is signed, and its type."""

    name: str
    signed: str
    type: type[Any]


_KINDS = (
    _Kind("update", "update", Update),
    _Kind("ballot", "ballot", Ballot),
    _Kind("statistics", "statistics", Report),
    _Kind("aligned", "alignment", Aligned),
    _Kind("score(?:-earlier)?", "score", Score),
    _Kind(r"ledger/\d{8}", "ledger", Entry),
    _Kind(r"(?:dropped|absent)(?:-\d{1,9})?", "", Dropped),
    _Kind(r"[a-z0-9_\-]{1,100}\.time", "", Timing),
    _Kind("", "parcel", Parcel),
)
"""Statements that the process of a learner makes; those of secure sums are the agent's."""


class Guard:
    """Allows what a learner writes in one session, and nothing else; the journal gets every object before it is sent.

    Args:
        site: its name is part of all keys, and its policy limits what leaves.
        opened: the session.
        note: the journal.
    """

    def __init__(self, site: Site, opened: Opened, note: Note = keep_nothing) -> None:
        self._site, self._opened, self._note = site, opened, note
        own = re.escape(keys.learner_folder(site.name))
        run = re.escape(keys.run_folder(opened.run, site.name))
        self._content = re.compile(rf"{own}(?:{'|'.join(CONTENT)})/[0-9a-f]{{64}}", re.ASCII)
        self._events = re.compile(rf"{run}\d{{1,9}}/tensorboard/[\w.\-]{{1,200}}", re.ASCII)
        self._statement = re.compile(rf"(?:{own}(?=ledger/)|{run}(?:\d{{1,9}}/)?)(?P<name>[a-z0-9_./\-]+)", re.ASCII)
        self.allow(0)
        self._removable = re.compile(rf"{own}parcels/[0-9a-f]{{64}}", re.ASCII)

    def allow(self, base: int | None) -> None:
        """Allow what one answer sends. Messages to other parties have no limit, as each batch has one.

        Args:
            base: bytes of the model that the answer begins with; None where the site cannot know them. The limits are
                then the number of objects, and the policy's bytes of a day.
        """
        self._bytes = math.inf if base is None else float(_MODELS * base + _SLACK)
        self._objects = _OBJECTS

    def check(self, request: Request, size: int, payload: bytes) -> None:
        """Check a request before it is made.

        Args:
            request: as the process sent it.
            size: bytes that it would send.
            payload: these bytes, unless they are a file.

        Raises:
            StoreError: the process may not make it.
            InputError: the journal cannot be written.
        """
        if request.op in _READS:
            return
        place = request.place
        here = place is not None and place.uri == self._site.store and place.prefix == self._site.federation
        if here and request.op == "delete" and self._removable.fullmatch(request.key):
            return
        if not here or request.op not in _WRITES:
            raise self._refused(f"to {request.op[:20]} {request.key[:200]!r}")
        fields = self._fields_of(request, payload)
        if not self._removable.fullmatch(request.key):
            self._bytes, self._objects = self._bytes - size, self._objects - 1
            if self._bytes < 0 or self._objects < 0:
                raise self._refused(f"to send {request.key[:200]!r}, beyond what a model of this size needs")
        self._note("sent", object=request.key, bytes=size, **fields)

    def read(self, request: Request, size: int) -> None:
        """Keep the account of an object that was read. Raises InputError if the journal cannot be written."""
        note_read(self._note, request.key, size)

    def _fields_of(self, request: Request, payload: bytes) -> dict[str, Any]:
        """Return what the journal has of an object besides its key and size. Raises StoreError if it may not leave."""
        if self._removable.fullmatch(request.key) and not self._site.policy.leaves.activations:
            raise self._refused(f"to {request.op[:20]} {request.key[:200]!r}, a message to another party")
        if self._content.fullmatch(request.key):
            return {}  # its key is its digest
        digest = {"digest": digest_of(payload)}
        if self._events.fullmatch(request.key) and self._site.policy.leaves.tensorboard:
            return digest
        found = self._statement.fullmatch(request.key)
        kind = next((k for k in _KINDS if found and k.name and re.fullmatch(k.name, found["name"], re.ASCII)), None)
        if kind is None or request.op == "upload":
            raise self._refused(f"to {request.op[:20]} {request.key[:200]!r}")
        statement = self._read(kind.type, payload, request.key)
        if isinstance(statement, Update):
            spent = statement.spent.epsilon if statement.spent else None
            return digest | {
                "round": statement.round, "examples": statement.examples, "metrics": statement.metrics,
                "weights": statement.weights, "epsilon": spent,
            }  # fmt: skip
        return digest

    def check_statement(self, data: bytes) -> None:
        """Check bytes before they are signed. Raises InputError for anything but a statement of this site's work."""
        head, _, content = data.partition(b"\n")
        words = head.decode(errors="replace").split(" ")
        kind = next((k for k in _KINDS if k.signed and words[:2] == ["fedpipe", k.signed]), None)
        place = f"{self._site.federation}/{self._opened.run}"
        if (
            head in _SECRETS
            and self._site.policy.leaves.activations
            and f"{content.decode(errors='replace')}/".startswith(f"{place}/")
        ):
            return
        if kind is None:
            raise InputError(f"the site does not sign {head[:60]!r} for its code")
        if words[2:] not in ([], [place]):
            raise InputError(f"the site does not sign a {kind.signed} of another run for its code")
        try:
            self._read(kind.type, content, kind.signed)
        except StoreError as error:
            raise InputError(error.what) from error

    def _read(self, kind: type[Any], data: bytes, where: str) -> Any:
        """Return a statement. Raises StoreError unless it is of this site and session, and may leave as it is."""
        try:
            statement = decode(data, kind, where=where)
        except CorruptError as error:
            raise self._refused(f"to send {where[:200]!r}, which {error.what[:200]}") from error
        wanted = {"learner": self._site.name, "run": self._opened.run, "federation": self._site.federation}
        for name, value in wanted.items():
            if getattr(statement, name, value) != value:
                raise self._refused(f"to send {where[:200]!r} for the {name} {getattr(statement, name)[:60]!r}")
        leaves = self._site.policy.leaves
        if isinstance(statement, Report):
            allowed: Any = released_report(leaves, statement)
        elif isinstance(statement, Parcel):
            allowed = replace(statement, why=reason_that_leaves(leaves, statement.why))
        else:
            allowed = released(leaves, statement).statement
        if allowed != statement:
            raise self._refused(f"to send {where[:200]!r} with more than its policy lets leave")
        return statement

    def _refused(self, what: str) -> StoreError:
        self._note("refused", why=f"the code of the model wanted {what}", run=self._opened.run)
        return StoreError(
            f"the site does not allow its code {what}",
            remedy="Code of a model trains and measures; fedpipe itself writes the results.",
        )
