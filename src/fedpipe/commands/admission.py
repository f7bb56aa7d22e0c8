"""Admission: who asks to join, or for new keys, and the administrator's answers.

A request that fits an open invitation may be accepted, by a person or by a registrar, which looks again and again. Its
token shows that it comes from the site that was invited. All that an acceptance writes follows from the request and the
administrator's key. So two who accept a request at once do the same.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from fedpipe.commands.identities import ledger_mark, new_user, user_of
from fedpipe.commands.members import Member, StoredFederation, find_member, open_place
from fedpipe.commands.opened import StoreGiven
from fedpipe.commands.roster import find_administrator_key, renew_roster
from fedpipe.errors import (
    CorruptError,
    DroppedError,
    FedpipeError,
    InputError,
    NotFoundError,
    TooLargeError,
)
from fedpipe.federation.sources import Source
from fedpipe.identity.enrolment import Enrolment, format_time, read_enrolled
from fedpipe.identity.sealing import derived
from fedpipe.identity.signing import public_key, sign, signer_of
from fedpipe.sites.invitation import Invitation, is_signed, token_of
from fedpipe.sites.joining import LIMIT, Request, fingerprint, make_answer, read_request, read_rotation, secret_of
from fedpipe.sites.journal import Journal
from fedpipe.store import keys as spelled
from fedpipe.store.base import Credentials
from fedpipe.store.objects import digest_of, find
from fedpipe.suggestion import suggestion

Note = Callable[..., object]
"""Records an event and its fields, such as `Journal.append`."""


class Asked(NamedTuple):
    """An open request, or an invitation without one.

    Args:
        learner: the site's name.
        kind: it joins, asks for new keys, or is only invited.
        key: the fingerprint of its public key, which `fedpipe site join` shows too.
        since: when the store got it, or when the invitation expires, in seconds since 1970.
        why: the reason why it cannot be accepted; empty if it can.
        lasting: whether that reason stays.
        number: of the invitation.
        data: bytes of the request.
    """

    learner: str
    kind: Literal["join", "rotation", "invited"]
    key: str = ""
    since: float = 0.0
    why: str = ""
    lasting: bool = False
    number: str = ""
    data: bytes = b""


class Decision(NamedTuple):
    """An answer that was given: accepted, refused with a reason, or neither yet because of an error."""

    learner: str
    kind: str
    outcome: Literal["accepted", "refused", "waits"]
    why: str = ""
    key: str = ""


def requests(source: Source, *, store: StoreGiven = None, keys: str | Path | None = None) -> list[Asked]:
    """Lists open requests of sites, and invitations without one.

    Args:
        source: the federation file, or its content.
        store: a store to use instead of the federation's.
        keys: folder of the administrator's key; `keys` next to the federation file by default.

    Raises:
        InputError: the administrator's key is not there.
        StoreError: the store cannot be used.
    """
    return _Desk.at(source, store, keys).asked()


def accept(
    source: Source, learner: str, *, store: StoreGiven = None, keys: str | Path | None = None,
    given: Credentials | None = None, examples: int = 0, note: Note | None = None,
) -> Decision:  # fmt: skip
    """Accepts the request of a site that fits its invitation: enrols its key, and seals its keys of the store.

    Args:
        source: the federation file, or its content.
        learner: the site's name.
        store: a store to use instead of the federation's.
        keys: folder of the administrator's key.
        given: credentials of an existing user of the store.
        examples: the most that the site may claim to have; 0: no limit.
        note: records the decision; by default in the journal next to the administrator's key.

    Raises:
        InputError: it has not asked, or its request does not fit an open invitation.
        StoreError: the store cannot be used, or cannot create users.
    """
    desk = _Desk.at(source, store, keys, note)
    asked = desk.named(learner)
    if asked.why:
        desk.record(Decision(learner, asked.kind, "waits", asked.why, asked.key))
        raise InputError(f"{learner!r} cannot be accepted: {asked.why}", remedy=f"Run `fedpipe invite {learner}`.")
    return desk.accepted(asked, given, examples)


def refuse(
    source: Source, learner: str, *, why: str = "", store: StoreGiven = None, keys: str | Path | None = None,
    note: Note | None = None,
) -> Decision:  # fmt: skip
    """Refuses the request of a site, whose invitation then no longer works.

    Args:
        source: the federation file, or its content.
        learner: the site's name.
        why: the reason, which the site sees.
        store: a store to use instead of the federation's.
        keys: folder of the administrator's key.
        note: records the decision.

    Raises:
        InputError: it has not asked.
        StoreError: the store cannot be used.
    """
    desk = _Desk.at(source, store, keys, note)
    return desk.refused(desk.named(learner), why or "no reason was given")


def attend(
    source: Source, *, store: StoreGiven = None, keys: str | Path | None = None, note: Note | None = None,
    examples: int = 0,
) -> Iterator[list[Decision]]:  # fmt: skip
    """Answers open requests at each step: accepts those that fit an open invitation, refuses those that never will.

    A fault of the store is a decision that waits, for the learner of an empty name. The caller waits between steps. A
    federation file is read again each time, so a learner that is added to it may join.

    Args:
        source: the federation file, or its content.
        store: a store to use instead of the federation's.
        keys: folder of the administrator's key.
        note: records each decision.
        examples: the most that a site may claim to have; 0: no limit.

    Raises:
        InputError: the administrator's key is not there.
    """
    desk, said = _Desk.at(source, store, keys, note), set[Decision]()
    while True:
        try:
            desk = _Desk.at(source, store, keys, note)  # the file may have changed: it names who may join
            made = [desk.decided(asked, examples) for asked in desk.asked() if asked.kind != "invited"]
        except FedpipeError as error:
            made = [Decision("", "", "waits", str(error))]
        fresh = [one for one in made if one.outcome != "waits" or one not in said]
        said = {one for one in made if one.outcome == "waits"}
        for one in fresh:
            if one.outcome == "waits":
                desk.record(one)
        yield fresh


def _journal_note(folder: Path, private: str) -> Note | None:
    """Returns how decisions are recorded: in `journal/` next to the key; None in a folder that cannot be written.

    Such a folder is a mounted secret. The registrar prints each decision too, so its log has them.
    """
    if not os.access(folder, os.W_OK):
        return None
    return Journal(folder / "journal", signer_of(private)).note


class _Desk(NamedTuple):
    """The administrator's place of work."""

    place: StoredFederation
    folder: Path
    private: str
    note: Note | None

    @classmethod
    def at(cls, source: Source, store: StoreGiven, keys: str | Path | None, note: Note | None = None) -> _Desk:
        place = open_place(source, store)
        folder = place.key_folder(keys)
        return cls(place, folder, find_administrator_key(folder), note)

    @property
    def federation(self) -> str:
        return self.place.federation.name

    def record(self, decision: Decision) -> Decision:
        note = self.note or _journal_note(self.folder, self.private)
        if note is not None:
            fields = {"learner": decision.learner, "kind": decision.kind, "key": decision.key, "why": decision.why}
            note(decision.outcome, **{name: value for name, value in fields.items() if value})
        return decision

    def asked(self) -> list[Asked]:
        written = {entry.key: entry.written for entry in self.place.store.entries(f"{spelled.JOINING}/")}
        found = []
        for key, since in written.items():
            parsed = spelled.parse_joining(key)
            if parsed and spelled.joining(*parsed, "answer") not in written:
                found.append(self._joining(*parsed, since))
        waiting = {one.learner for one in found if not one.lasting}
        found += [*self._rotations(), *self._invited(waiting, written)]
        return sorted(found, key=lambda one: (one.learner, one.since))

    def named(self, learner: str) -> Asked:
        """Returns the request of a learner: one that fits, if there is one. Raises InputError."""
        everyone = [one for one in self.asked() if one.kind != "invited"]
        found = sorted((one for one in everyone if one.learner == learner), key=lambda one: bool(one.why))
        if not found:
            known = sorted({one.learner for one in everyone})
            remedy = suggestion(learner, known, listed="Open requests") if known else "There are no open requests."
            raise InputError(f"{learner!r} has not asked to join", remedy=remedy)
        return found[0]

    def decided(self, asked: Asked, examples: int) -> Decision:
        """Accepts or refuses a request; it waits where that may change, or an error prevents it."""
        if asked.why and asked.lasting:
            return self.refused(asked, asked.why)
        if asked.why:
            return Decision(asked.learner, asked.kind, "waits", asked.why, asked.key)
        try:
            return self.accepted(asked, None, examples)
        except FedpipeError as error:
            return Decision(asked.learner, asked.kind, "waits", str(error), asked.key)

    def accepted(self, asked: Asked, given: Credentials | None, examples: int) -> Decision:
        member = find_member(self.place, asked.learner)
        if asked.kind == "rotation":
            self._rotate(member, asked.data)
        else:
            self._admit(member, asked, given, examples)
        return self.record(Decision(asked.learner, asked.kind, "accepted", key=asked.key))

    def refused(self, asked: Asked, why: str) -> Decision:
        if asked.kind == "rotation":
            self.place.store.delete(spelled.rotation(asked.learner))
        else:
            self._answer(asked, make_answer(
                self.private, None, asked.data, self.federation, asked.learner, time.time(), why=why
            ))  # fmt: skip
        return self.record(Decision(asked.learner, asked.kind, "refused", why, asked.key))

    def _answer(self, asked: Asked, data: bytes) -> None:
        self.place.store.create(spelled.joining(asked.learner, asked.number, "answer"), data)

    def _admit(self, member: Member, asked: Asked, given: Credentials | None, examples: int) -> None:
        """Creates user, enrolment and answer, in this order; the answer is what ends the request."""
        terms = self._terms(asked.learner)
        assert terms is not None
        request = read_request(asked.data, terms, self._token(asked.learner, asked.number))
        known = member.enrolment(read_enrolled(self.place.store))
        with contextlib.ExitStack() as undo:
            credentials = given
            if self.place.on_s3 and given is None:
                credentials = undo.enter_context(new_user(self.place, member, self._secret(asked.data)))
            user = credentials.access_key if credentials else ""
            if known is None or known.revoked is not None or known.key != request.key:
                made = Enrolment(key=request.key, user=user, since=time.time(), examples=examples)
                member.enroll(self.place, made)
        self._renew_roster()
        mark = " ".join(ledger_mark(self.place, member))
        self._answer(asked, make_answer(
            self.private, request, asked.data, self.federation, asked.learner, time.time(), mark=mark,
            credentials=credentials,
        ))  # fmt: skip

    def _rotate(self, member: Member, data: bytes) -> None:
        """Gives the user the secret that the site chose, enrols the new key, and removes the request at the end."""
        known = member.enrolment(read_enrolled(self.place.store))
        assert known is not None
        rotation = read_rotation(data, self.federation, member.name, known.key)
        secret = secret_of(rotation, self.private)
        with contextlib.ExitStack() as undo:
            if self.place.on_s3 and secret and known.user == user_of(self.place, member):
                undo.enter_context(new_user(self.place, member, secret))
            if known.key != rotation.key:
                made = Enrolment(key=rotation.key, user=known.user, since=time.time(), examples=known.examples)
                member.enroll(self.place, made)
        self._renew_roster()
        self.place.store.delete(spelled.rotation(member.name))

    def _renew_roster(self) -> None:
        if self.place.federation.secure:
            renew_roster(self.place, self.folder)

    def _secret(self, data: bytes) -> str:
        """Returns the secret of the store's user that follows from a request: the same for all who accept it."""
        signed = sign(self.private, f"fedpipe secret of the store\n{digest_of(data)}".encode())
        return derived(bytes.fromhex(signed), "fedpipe secret of the store").hex()[:40]

    def _token(self, learner: str, number: str) -> str:
        return token_of(self.private, self.federation, learner, number)

    def _terms(self, learner: str) -> Invitation | None:
        """Returns the terms of a site's invitation; None without one that the administrator signed."""
        try:
            terms = find(self.place.store, spelled.invitation(learner), Invitation, limit=2 * LIMIT)
        except CorruptError:
            return None
        if terms is None or (terms.learner, terms.federation) != (learner, self.federation):
            return None
        return terms if is_signed(terms, public_key(self.private)) else None

    def _joining(self, learner: str, number: str, since: float) -> Asked:
        try:
            data = self.place.store.read(spelled.joining(learner, number, "request"), limit=LIMIT).data
        except TooLargeError as error:
            return Asked(learner, "join", "", since, f"the request is malformed: {error.what}", True, number)
        except NotFoundError:
            return Asked(learner, "join", "", since, "the request has disappeared", False, number)
        try:
            request = self._fitting(learner, number, data)
        except CorruptError as error:
            return Asked(learner, "join", "", since, error.what, True, number, data)
        why, lasting = self._obstacle(learner, request)
        return Asked(learner, "join", fingerprint(request.key), since, why, lasting, number, data)

    def _fitting(self, learner: str, number: str, data: bytes) -> Request:
        """Returns a request that fits the open invitation of a learner. Raises CorruptError with the reason."""
        terms = self._terms(learner)
        if terms is None:
            raise CorruptError("it has no open invitation")
        if terms.number != number:
            raise CorruptError("another invitation has taken the place of its own")
        if time.time() >= terms.expires:
            raise CorruptError(f"its invitation expired on {format_time(terms.expires)}")
        request = read_request(data, terms, self._token(learner, number))
        known = read_enrolled(self.place.store).learners.get(learner)
        if known and known.revoked is not None and known.revoked >= terms.created:
            raise CorruptError(f"it was revoked on {format_time(known.revoked)}, after it was invited")
        return request

    def _obstacle(self, learner: str, request: Request) -> tuple[str, bool]:
        """Returns the reason why a request that fits cannot be accepted now, and whether it lasts."""
        if learner not in [one.name for one in self.place.federation.learners]:
            return "the federation file has no learner of this name", False
        known = read_enrolled(self.place.store).learners.get(learner)
        if known and known.revoked is None and known.key != request.key:
            return f"it has been enrolled since {format_time(known.since)} with another key", True
        return "", False

    def _rotations(self) -> Iterator[Asked]:
        enrolled = read_enrolled(self.place.store).learners
        for learner in (one.name for one in self.place.federation.learners):
            known, key = enrolled.get(learner), spelled.rotation(learner)
            try:
                blob = self.place.store.poll(key, limit=LIMIT) if known and known.revoked is None else None
                if blob is None or known is None:
                    continue
                rotation = read_rotation(blob.data, self.federation, learner, known.key)
                secret_of(rotation, self.private)
            except (CorruptError, DroppedError, TooLargeError) as error:
                yield Asked(learner, "rotation", "", time.time(), error.what, True)
                continue
            age = self.place.store.age(key) or 0.0
            yield Asked(learner, "rotation", fingerprint(rotation.key), time.time() - age, data=blob.data)

    def _invited(self, waiting: set[str], written: dict[str, float]) -> Iterator[Asked]:
        enrolled = read_enrolled(self.place.store).learners
        for learner in (one.name for one in self.place.federation.learners):
            if learner in waiting or spelled.invitation(learner) not in written:
                continue
            known, terms = enrolled.get(learner), self._terms(learner)
            if terms is None or (known and known.revoked is None):
                continue
            if spelled.joining(learner, terms.number, "answer") in written:
                continue
            why = "it has expired" if time.time() >= terms.expires else ""
            yield Asked(learner, "invited", "", float(terms.expires), why, bool(why), terms.number)
