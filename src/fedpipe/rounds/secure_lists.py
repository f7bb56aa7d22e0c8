"""Read and write the statements and lists of a secure sum.

runs/<run>/<round>/keys         the keys of all that may send a vector
runs/<run>/<round>/members      the vectors in the sum; written once, so that no second list is signed
runs/<run>/<round>/agreements   the members' signatures on it
runs/<run>/<round>/reveals      the secrets that open the sum
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from fedpipe.rounds.received import MANIFEST, Source, usable
from fedpipe.secure.messages import Agreement, Agreements, Bundle, Masked, Members, Occasion, Offer, Reveal, Reveals
from fedpipe.store import Store, keys
from fedpipe.store.objects import encode, find

L = TypeVar("L", Bundle, Members, Agreements, Reveals)
LIST = 2**22
"""Largest list of a secure round, in bytes."""
ANSWERS: Mapping[type[Any], tuple[str, str]] = {
    Offer: ("keys", "key"), Masked: ("masked", "masked vector"), Agreement: ("agreed", "agreement"),
    Reveal: ("revealed", "reveal"),
}  # fmt: skip
"""Of each statement of a learner, the last segment of its key, and its name in messages."""
LISTS: Mapping[type[Any], str] = {Bundle: "keys", Members: "members", Agreements: "agreements", Reveals: "reveals"}
"""Of each list, the last segment of its key."""


def tries_of(occasion: Occasion, session: str) -> int:
    """Return which try of a session's round this is, from 1; 0 for another session.

    >>> [tries_of(Occasion("f", "r", name, 1, "", ""), "s") for name in ("s", "s#2", "t", "s#x")]
    [1, 2, 0, 0]
    """
    name, hash, number = occasion.session.partition("#")
    if name != session or (hash and not number.isdecimal()):
        return 0
    return int(number) if hash else 1


def answer_source(store: Store, occasion: Occasion, learner: str, kind: type[Any]) -> Source:
    """Return the place of a learner's statement."""
    part, what = ANSWERS[kind]
    limit = LIST if kind is Reveal else MANIFEST
    return Source(store, occasion.run, keys.answer(learner, occasion.run, occasion.round, part), what, limit, limit)


def own_masked(store: Store, learner: str, run: str, number: int) -> Masked | None:
    """Return the statement about a learner's own masked vector of a round; None also if it cannot be used."""
    source = Source(
        store, run, keys.answer(learner, run, number, ANSWERS[Masked][0]), "masked vector", MANIFEST, MANIFEST
    )
    return usable(source, Masked, learner=learner, run=run, round=number)


def put_statement(store: Store, statement: Offer | Masked | Agreement | Reveal) -> None:
    """Write a learner's own statement, over one of an earlier try."""
    source = answer_source(store, statement.occasion, statement.learner, type(statement))
    store.replace(source.key, encode(statement))


def find_list(store: Store, occasion: Occasion, kind: type[L]) -> L | None:
    """Return a list of this try of a round; None if there is none. Raises CorruptError."""
    found = find(store, keys.listed(occasion.run, occasion.round, LISTS[kind]), kind, limit=LIST)
    return found if found is not None and found.occasion == occasion else None


def show_list(store: Store, listed: L) -> L:
    """Write a list once for its try, and return the stored one, the first."""
    key, data = keys.listed(listed.run, listed.round, LISTS[type(listed)]), encode(listed)
    while not store.create(key, data):
        blob = store.read(key, limit=LIST)
        found = find_list(store, listed.occasion, type(listed))
        if found is not None:
            return found
        if store.swap(key, data, blob.version):
            break
    return listed
