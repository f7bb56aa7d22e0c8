"""Plays secure rounds without a store: parties around a table, and a coordinator that may lie."""

from __future__ import annotations

import functools
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedpipe.identity.signing import public_key
from fedpipe.identity.statements import signed
from fedpipe.secure.masks import Masks
from fedpipe.secure.messages import Agreement, Agreements, Bundle, Masked, Members, Occasion, Reveal
from fedpipe.secure.numbers import GROUP, Grid, Words, padded, unpack
from fedpipe.secure.party import Form, Group, Orders, Party, Sign
from fedpipe.secure.unmasking import flaw_of_reveal, form_of, terms_of
from fedpipe.store.objects import canonical, digest_of

NAMES = tuple("abcdefghijklmnopqrstuvwxyz") + tuple(f"z{k:02d}" for k in range(38))
DIGEST = "sha256:" + "d" * 64


def occasion(
    federation: str = "tiny", run: str = "r1", session: str = "s", round: int = 1, base: str = DIGEST
) -> Occasion:
    return Occasion(federation, run, session, round, DIGEST, base)


OCCASION = occasion()
GRID = Grid(16, 1.0, 64)


@functools.cache
def private_of(name: str) -> str:
    return digest_of(name.encode()).removeprefix("sha256:")


@functools.cache
def public_of(name: str) -> str:
    return public_key(private_of(name))


def roster_of(names: Collection[str]) -> dict[str, str]:
    return {name: public_of(name) for name in names}


def signing(name: str) -> Sign[Any]:
    return lambda statement: signed(statement, private_of(name), lambda: 0.0)


def written(masks: Masks, chunks: Iterable[Words]) -> bytes:
    """The bytes of chunks under masks."""
    file = io.BytesIO()
    masks.write(chunks, file.write)
    return file.getvalue()


class Seat:
    """A party with its vector.

    Args:
        name: of the party.
        words: its vector.
        group: all parties.
        occasion: the round.
        grid: of the words.
    """

    def __init__(
        self, name: str, words: Words, group: Group, occasion: Occasion = OCCASION, grid: Grid = GRID
    ) -> None:  # fmt: skip
        self.name, self.words, self.grid = name, words, grid
        self.party = Party(occasion, group, name, signing(name))
        self.data = b""

    def mask(self, bundle: Bundle) -> Masked:
        orders: Orders = self.party.join(bundle)
        masks = Masks(orders.terms, self.grid.width, self.grid.dtype)
        self.data = orders.preamble + written(masks, [self.words])
        return self.party.masked(digest_of(self.data), len(self.data))


class Table:
    """A round with all its seats.

    Args:
        count: of parties.
        threshold: of the group; 0 for the least.
        occasion: the round.
        grid: of the vectors.
        length: words in a vector.
        seed: of the vectors.
    """

    def __init__(
        self, count: int, *, threshold: int = 0, occasion: Occasion = OCCASION, grid: Grid = GRID, length: int = 24,
        seed: int = 0,
    ) -> None:  # fmt: skip
        names, random = NAMES[:count], np.random.default_rng(seed)
        self.names, self.occasion, self.grid = sorted(names), occasion, grid
        self.group = Group.of(roster_of(names), threshold)
        self.seats = {
            name: Seat(
                name, random.integers(0, 2**grid.bits, padded(length), grid.dtype), self.group, occasion, grid
            )
            for name in self.names
        }  # fmt: skip

    def bundle(self, names: Collection[str] | None = None) -> Bundle:
        chosen = sorted(self.names if names is None else names)
        return Bundle(
            **self.occasion._asdict(), bound=self.grid.bound, offers=tuple(self.seats[n].party.offer() for n in chosen)
        )

    def members(self, bundle: Bundle, names: Collection[str]) -> Members:
        vectors = {name: digest_of(self.seats[name].data) for name in sorted(names)}
        digest = digest_of(canonical(bundle))
        return Members(**self.occasion._asdict(), bundle=digest, vectors=vectors, boxes=dict.fromkeys(vectors, digest))

    def agreements(self, signed: Sequence[Agreement]) -> Agreements:
        return Agreements(**self.occasion._asdict(), signed=tuple(signed))

    def parcels(self, form: Form, members: Members, name: str) -> dict[str, bytes]:
        return {
            other: form.parcel(self.seats[other].data[: form.size], name) for other in members.vectors if other != name
        }

    def preambles(self, form: Form, members: Members) -> dict[str, bytes]:
        return {name: self.seats[name].data[: form.size] for name in members.vectors}

    def opened(self, bundle: Bundle, members: Members, reveals: Sequence[Reveal]) -> Words:
        """The sum of the members' vectors, without masks."""
        form = form_of(bundle)
        preambles = self.preambles(form, members)
        sound = [r for r in reveals if not flaw_of_reveal(r, form, members, preambles)]
        terms = terms_of(sound, form, members, preambles, self.group.threshold)
        total = self.added(form, members)
        Masks(terms, self.grid.width, self.grid.dtype).remove(total)
        return total

    def added(self, form: Form, members: Members) -> Words:
        """The sum of the members' masked vectors."""
        vectors = [
            unpack(self.seats[n].data[form.size :], self.grid.width, self.grid.dtype) for n in members.vectors
        ]  # fmt: skip
        total: Words = functools.reduce(np.add, vectors, self.grid.dtype.type(0))
        total &= self.grid.dtype.type(2**self.grid.width - 1)
        return total

    def plain(self, names: Collection[str]) -> Words:
        """The sum as it must be."""
        total: Words = functools.reduce(np.add, (self.seats[name].words for name in names), self.grid.dtype.type(0))
        total &= self.grid.dtype.type(2**self.grid.width - 1)
        return total

    def play(
        self, offering: Collection[str] | None = None, sending: Collection[str] | None = None,
        signing: Collection[str] | None = None, revealing: Collection[str] | None = None,
    ) -> Words:  # fmt: skip
        """A whole round, in which each phase has only the named parties; the sum."""
        bundle = self.bundle(offering)
        offering = [offer.learner for offer in bundle.offers]
        sending = offering if sending is None else sending
        for name in offering:
            if name in sending:
                self.seats[name].mask(bundle)
        members = self.members(bundle, sending)
        signing = sending if signing is None else signing
        agreements = self.agreements([self.seats[name].party.agree(members) for name in sorted(signing)])
        form = form_of(bundle)
        reveals = [
            self.seats[name].party.reveal(agreements, self.parcels(form, members, name))
            for name in sorted(signing if revealing is None else revealing)
        ]
        return self.opened(bundle, members, reveals)


def secrets_of(seat: Seat) -> Mapping[str, bytes]:
    """The seeds of a party's masks: by the peer, and its own by its name."""
    return {**seat.party._seeds, seat.name: seat.party._self}


__all__ = ["GROUP", "OCCASION", "Seat", "Table", "secrets_of", "written"]
