"""Parcels: what the parties of a split network send each other, one object a batch and direction.

A parcel is one line of JSON, which its sender signs, and arrays as safetensors, of which the line has the digest. Its
name is a digest of what it is, so both parties know it and nobody lists a folder. It is written once. A reader knows
the size, names, dtypes and shapes that it must have, so it reads no others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Literal, NamedTuple

import numpy as np
from msgspec import Meta

from fedpipe import weights
from fedpipe.errors import DroppedError, NotFoundError, TooLargeError, WeightsError
from fedpipe.federation.names import Name
from fedpipe.federation.split import ExchangeType
from fedpipe.identity.enrolment import Enrolled
from fedpipe.identity.sealing import TAG, Exchange, Seal, find_exchange
from fedpipe.identity.signing import Signature
from fedpipe.identity.statements import check_signed, signed_by
from fedpipe.rounds.floors import read_floors
from fedpipe.rounds.manifests import Count, Manifest
from fedpipe.rounds.received import Source, cleaned, parse, receive_blob
from fedpipe.rounds.releases import reason_that_leaves
from fedpipe.store import Blob, Store, keys
from fedpipe.store.objects import Digest, canonical, digest_of, encode
from fedpipe.store.requests import each
from fedpipe.weights import Array

Kind = Literal[
    "key", "rows", "activations", "gradients", "test", "end", "ids", "blinded", "evaluated", "table", "common", "marks"
]
"""`key`: of the exchange; `rows`: their number and order; `test`: those of held-out rows; `end`: a party has left. The
others belong to the intersection of ids (`fedpipe.secure.intersection`): their number, and its messages in order."""
_REMOVED = 8
"""Parcels that are removed at a time, so that a gap of an interrupted removal is at the end, and small."""
_SENT: tuple[Kind, ...] = (
    "rows", "test", "activations", "gradients", "ids", "blinded", "evaluated", "table", "common", "marks"
)  # fmt: skip
_LINE = 4096
"""Most bytes of the line of JSON."""
_LEAST = np.finfo(np.float32).tiny
"""The smallest number with all bits of float32."""


class Parcel(Manifest, frozen=True, kw_only=True):
    """The line of JSON: what the arrays are, and their digest. For an `end`, `why` has the reason."""

    format: int = 1
    federation: Name
    run: Name
    session: str
    round: Count
    attempt: Count
    base: Digest
    plan: Digest
    kind: Kind
    number: Count
    learner: Name
    to: str
    digest: Digest
    why: Annotated[str, Meta(max_length=500)] = ""
    signature: Signature | None = None


class Meeting(NamedTuple):
    """One attempt at a round, whose parties send parcels.

    Args:
        store: the federation's store.
        federation: its name.
        run: the run's name.
        session: of the run.
        round: its number.
        attempt: how often it was opened.
        base: digest of the weights that it began with.
        plan: digest of the definition of the run.
    """

    store: Store
    federation: str
    run: str
    session: str
    round: int
    attempt: int
    base: str
    plan: str

    @property
    def place(self) -> str:
        """The attempt as a text."""
        parts = (self.federation, self.run, self.session, self.round, self.attempt, self.base, self.plan)
        return "/".join(map(str, parts))

    def parcel(self, kind: Kind, number: int, learner: str, to: str, digest: str, why: str = "") -> Parcel:
        """Return the line of a parcel."""
        return Parcel(
            federation=self.federation, run=self.run, session=self.session, round=self.round, attempt=self.attempt,
            base=self.base, plan=self.plan, kind=kind, number=number, learner=learner, to=to, digest=digest, why=why,
        )  # fmt: skip

    def key(self, kind: Kind, number: int, learner: str, to: str) -> str:
        """Return the key of a parcel."""
        about = canonical([self.run, self.session, self.round, self.attempt, self.base, self.plan, kind, number, to])
        return keys.parcel(learner, hashlib.sha256(about).hexdigest())


def send(
    meeting: Meeting, kind: Kind, number: int, learner: str, to: str, arrays: Mapping[str, Array],
    seal: Seal | None = None,
) -> int:  # fmt: skip
    """Write a parcel once, and return its bytes; a repeated party finds the one that it wrote before.

    Args:
        meeting: the attempt at the round.
        kind: what it is.
        number: of the batch.
        learner: the sender.
        to: the party that reads it.
        arrays: its content.
        seal: between the two, if both are enrolled.

    Raises:
        DroppedError: the content is not finite, or differs from what was sent before.
    """
    try:
        weights.check_finite(arrays)
    except WeightsError as error:
        raise DroppedError(
            f"the {kind} of batch {number} are not finite", remedy="Lower the learning rate.", lasting=True
        ) from error
    data, key = weights.dumps(arrays), meeting.key(kind, number, learner, to)
    if seal is not None:
        data = seal.close(key, data)
    line = encode(signed_by(meeting.parcel(kind, number, learner, to, digest_of(data)), learner))
    store = meeting.store
    if not store.create(key, line + b"\n" + data) and _sent_before(store, key, len(data)) != data:
        raise DroppedError(f"the {kind} of batch {number} differ from those that were sent before it was interrupted")
    return len(line) + 1 + len(data)


def _sent_before(store: Store, key: str, size: int) -> bytes:
    """Return the arrays of a parcel that this party sent before; empty if it is longer."""
    try:
        return store.read(key, limit=_LINE + size).data.partition(b"\n")[2]
    except (NotFoundError, TooLargeError):
        return b""


def take(
    meeting: Meeting, kind: Kind, number: int, learner: str, to: str, like: Mapping[str, Array], enrolled: Enrolled,
    seal: Seal | None = None,
) -> dict[str, Array] | None:  # fmt: skip
    """Read a parcel; None while there is none.

    Args:
        meeting: the attempt at the round.
        kind: what it is.
        number: of the batch.
        learner: the sender.
        to: the reader.
        like: arrays of the names, dtypes and shapes that it must have.
        enrolled: who must sign.
        seal: between the two, if both are enrolled.

    Raises:
        DroppedError: the parcel cannot be used; with its sender.
    """
    layout = weights.layout_of(like)
    key, what = meeting.key(kind, number, learner, to), f"parcel of {kind} {number} from {learner}"
    source = Source(meeting.store, meeting.run, key, what, _LINE + layout.size + (TAG if seal else 0))
    try:
        blob = receive_blob(source)
    except DroppedError as error:
        raise DroppedError(f"the {what} cannot be used: {error.what}") from error
    if blob is None:
        return None
    line, _, data = blob.data.partition(b"\n")
    found = parse(Blob(line, ""), Parcel, what)
    expected = meeting.parcel(kind, number, learner, to, digest_of(data))
    for name in Parcel.__struct_fields__:
        if name not in ("signature", "why") and (given := getattr(found, name)) != getattr(expected, name):
            raise DroppedError(f"the {what} has the {name} {cleaned(str(given))[:80]}")
    check_signed(found, enrolled)
    try:
        data = data if seal is None else seal.open(key, data)
    except DroppedError as error:
        raise DroppedError(f"the {what} cannot be used: {error.what}") from error
    try:
        view = memoryview(data)
        if difference := layout.difference(
            weights.read_layout(lambda start, length: bytes(view[start : start + length]), len(data), layout)
        ):
            raise DroppedError(f"the {what} does not fit: {difference}")
        arrays = weights.loads(data)
        weights.check_finite(arrays)
    except WeightsError as error:
        raise DroppedError(f"the {what} cannot be used: {error.what}") from error
    return arrays


def exchange_of(meeting: Meeting, learner: str) -> Exchange | None:
    """Return a party's key of the exchange in a run; None without a signing key."""
    return find_exchange(learner, f"{meeting.federation}/{meeting.run}")


def send_key(meeting: Meeting, learner: str, exchange: Exchange) -> None:
    """Publish a party's key of the exchange in a run; after a rotation of its signing key there is another one."""
    public = {"key": np.frombuffer(exchange.public, np.uint8)}
    try:
        send(_introduction(meeting), "key", 0, learner, "", public)
    except DroppedError:
        meeting.store.delete(_introduction(meeting).key("key", 0, learner, ""))
        send(_introduction(meeting), "key", 0, learner, "", public)


def take_seal(meeting: Meeting, learner: str, exchange: Exchange, enrolled: Enrolled) -> Seal | None:
    """Return the seal with another party; None while it has not published its key. Raises DroppedError."""
    form = {"key": np.zeros(32, np.uint8)}
    found = take(_introduction(meeting), "key", 0, learner, "", form, enrolled)
    return None if found is None else Seal(exchange.agree(found["key"].tobytes()))


def _introduction(meeting: Meeting) -> Meeting:
    return meeting._replace(session="", round=0, attempt=0, base=meeting.plan)


def leave(meeting: Meeting, learner: str, why: str) -> None:
    """Leave the reason why a party cannot continue, so that others do not wait for it."""
    leaves = read_floors().leaves
    why = cleaned(why if leaves is None else reason_that_leaves(leaves, why))
    line = signed_by(meeting.parcel("end", 0, learner, "", digest_of(b""), why), learner)
    meeting.store.create(meeting.key("end", 0, learner, ""), encode(line))


def reason_of(meeting: Meeting, learner: str, enrolled: Enrolled) -> str:
    """Return why a party cannot continue; empty while it does not say so."""
    source = Source(meeting.store, meeting.run, meeting.key("end", 0, learner, ""), "parcel", _LINE)
    try:
        blob = receive_blob(source)
        if blob is None:
            return ""
        found = parse(blob, Parcel, source.what, learner=learner, run=meeting.run, round=meeting.round)
        check_signed(found, enrolled)
    except DroppedError:
        return ""
    return cleaned(found.why) or "no reason given"


def remove(meeting: Meeting, learner: str, others: tuple[str, ...]) -> int:
    """Remove the parcels that a party sent in an attempt, from the last to the first, and return their number."""
    store, found = meeting.store, list[str]()
    for to in others:
        for kind in _SENT:
            sent = partial(_is_sent, meeting, kind, learner, to)
            found += [meeting.key(kind, number, learner, to) for number in reversed(range(_count(sent)))]
    end = meeting.key("end", 0, learner, "")
    found += [end] if store.size(end) is not None else []
    for start in range(0, len(found), _REMOVED):
        each(store, store.delete, found[start : start + _REMOVED])
    return len(found)


def _is_sent(meeting: Meeting, kind: Kind, learner: str, to: str, number: int) -> bool:
    return meeting.store.size(meeting.key(kind, number, learner, to)) is not None


def _count(is_there: Callable[[int], bool]) -> int:
    """Return how many numbers are there, from 0 on and without a gap, by looking at few of them.

    >>> _count(lambda number: number < 1437)
    1437
    """
    high = 1
    while is_there(high - 1):
        high *= 2
    there, missing = high // 2 - 1, high - 1
    while missing - there > 1:
        middle = (there + missing) // 2
        there, missing = (middle, missing) if is_there(middle) else (there, middle)
    return missing


def packed(values: Array, kind: ExchangeType) -> dict[str, Array]:
    """Return numbers as they are sent: as they are, or as smaller ones and the scale of each row.

    >>> {name: array.dtype.name for name, array in packed(np.ones((2, 3), np.float32), "int8").items()}
    {'values': 'int8', 'scale': 'float32'}
    """
    if kind == "float32" or not np.isfinite(values).all():  # NaN would become a number; `send` refuses it
        return {"values": np.ascontiguousarray(values, np.float32)}
    largest = np.max(np.abs(values.reshape(len(values), -1)), axis=1, initial=0.0).astype(np.float32)
    scale = largest / np.float32(127 if kind == "int8" else 1)
    scale = np.where(scale >= _LEAST, scale, np.float32(1))  # smaller ones have too few bits to divide by
    shown = values / scale.reshape(-1, *[1] * (values.ndim - 1))
    return {"values": (np.rint(shown) if kind == "int8" else shown).astype(kind), "scale": scale}


def unpacked(arrays: Mapping[str, Array], what: str = "numbers") -> Array:
    """Return the numbers that `packed` made smaller, as float32. Raises DroppedError for a scale that is too large."""
    values = arrays["values"].astype(np.float32)
    if "scale" not in arrays:
        return values
    with np.errstate(over="ignore"):
        found = values * arrays["scale"].reshape(-1, *[1] * (values.ndim - 1))
    if not np.isfinite(found).all():
        raise DroppedError(f"the {what} are too large for float32")
    return found


def like(rows: int, row: tuple[int, ...], kind: ExchangeType) -> dict[str, Array]:
    """Return arrays in the form of a parcel, without memory of their size."""
    values = np.broadcast_to(np.zeros((), kind), (rows, *row))
    return {"values": values} if kind == "float32" else {"values": values, "scale": np.zeros(rows, np.float32)}
