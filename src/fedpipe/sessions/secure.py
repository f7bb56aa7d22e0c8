"""Federated averaging by secure sums: the script of the coordinator, and the answers of a learner.

    keys      each learner offers a key of this round; the coordinator lists them
    masked    each trains, and uploads its update under masks that cancel in the sum
    agree     each signs the list of the vectors that arrived
    reveal    each that has seen enough signatures reveals what opens this sum, and offers a key of the next round

So only learners that have offered no key are asked for one: all in the first round of a session, later those that come
back. Below the threshold, nothing is revealed. Then the round begins again with new keys, as often as
`quorum.retries` says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

from fedpipe.errors import CorruptError, DroppedError, FedpipeError, InputError, QuorumError, StoreUnavailableError
from fedpipe.federation.algorithms import QuantileBound
from fedpipe.identity.roster import check_members, read_roster
from fedpipe.identity.signing import find_administrator
from fedpipe.identity.statements import signed_by
from fedpipe.learners.dropping import dropped_by
from fedpipe.learners.masking import MaskedFile
from fedpipe.rounds.manifests import Dropped, Record
from fedpipe.rounds.masked import cut_parcels
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.releases import Leaving, names_that_leave
from fedpipe.rounds.roll import Roll, drop
from fedpipe.rounds.secure_lists import find_list, put_statement, tries_of
from fedpipe.rounds.secure_sums import SecureClosing
from fedpipe.rounds.selection import select
from fedpipe.secure.messages import Agreement, Agreements, Bundle, Masked, Members, Occasion, Offer, Reveal
from fedpipe.secure.party import Group, Orders, Party
from fedpipe.secure.unmasking import form_of
from fedpipe.sessions.board import Board
from fedpipe.sessions.phases import Phase, Script
from fedpipe.store import Store
from fedpipe.store.objects import get_bytes
from fedpipe.weights import Layout

log = logging.getLogger("fedpipe")

PHASES = ("keys", "masked", "agree", "reveal")


def secure_averaging(round: SecureRound) -> Script:
    """Play federated averaging by secure sums; see the module."""
    attempt = 1
    while True:
        bundle: Bundle = yield round.keys(attempt)
        attempt = round.attempt_of(bundle)
        members: Members | None = yield round.masked(bundle)
        if members is not None and (yield round.agree(members)) is not None:
            record: Record = yield round.reveal(bundle, members)
            return record
        round.check_left(attempt)
        attempt += 1


class SecureRound:
    """The phases of one secure round.

    Args:
        store: the federation's store.
        plan: the run's plan.
        previous: the record of the round before.
        layout: of the weights.
        session: of the coordinator.
    """

    def __init__(self, store: Store, plan: Plan, previous: Record, layout: Layout, session: str) -> None:
        self._plan, self._session, self._previous = plan, session, previous
        self._closing = SecureClosing(store, plan, previous, layout, session)

    def attempt_of(self, bundle: Bundle) -> int:
        """Return the try to which a list of keys belongs."""
        return tries_of(bundle.occasion, self._session)

    def check_left(self, attempt: int) -> None:
        """Raise QuorumError when no further try is left."""
        if attempt > self._plan.federation.quorum.retries:
            raise QuorumError(
                f"round {self._closing.number}: too few learners stayed for a secure sum, which needs "
                f"{self._closing.threshold}, in {attempt} tries",
                remedy="HEAD stays at the last good round. Repair the learners, then run the same command again.",
            )

    def keys(self, attempt: int) -> Phase:
        """Ask those for a key that have offered none while the last round ended; close with the list."""
        occasion = self._closing.occasion(attempt)

        def asks(count: int, away: Collection[str]) -> tuple[str, ...]:
            names = select(self._plan.federation, self._closing.number, count, away)
            return self._closing.without_key(occasion, names)

        return self._phase(
            "keys", "keys", Offer, occasion, asks, lambda roll: self._closing.close_keys(attempt, roll),
            retries=self._plan.federation.quorum.retries,
        )  # fmt: skip

    def masked(self, bundle: Bundle) -> Phase:
        """Ask those with a key for masked vectors; close with the list of members, or None."""
        names = tuple(offer.learner for offer in bundle.offers)
        return self._phase(
            "masked", "masked", Masked, bundle.occasion, lambda *_: names,
            lambda roll: self._closing.close_masked(bundle, roll), closing="add",
        )  # fmt: skip

    def agree(self, members: Members) -> Phase:
        """Ask the members to sign the list; close with the signatures, or None."""
        return self._phase(
            "agree", "agreed", Agreement, members.occasion, lambda *_: tuple(sorted(members.vectors)),
            lambda roll: self._closing.close_agree(members, roll),
        )  # fmt: skip

    def reveal(self, bundle: Bundle, members: Members) -> Phase:
        """Ask the members for the secrets of this sum; close with the record."""
        return self._phase(
            "reveal", "revealed", Reveal, members.occasion, lambda *_: tuple(sorted(members.vectors)),
            lambda roll: self._closing.close_reveal(bundle, members, roll), closing="aggregate",
            retries=self._plan.federation.quorum.retries,
        )  # fmt: skip

    def _phase(
        self, name: str, answer: str, kind: type[Any], occasion: Occasion,
        asks: Callable[[int, Collection[str]], tuple[str, ...]], close: Callable[[Roll], Any], *, closing: str = "",
        retries: int = 0,
    ) -> Phase:  # fmt: skip
        def answered(learner: str) -> bool:
            try:
                return self._closing.reading(kind, occasion)(learner) is not None
            except DroppedError as error:
                log.warning("round %d: what %s left for %s does not count: %s", occasion.round, learner, name, error)
                return False

        return Phase(
            name=name, round=self._closing.number, base=self._previous.weights, answer=answer, asks=asks,
            close=lambda roll, _early: close(roll), closing=closing, retries=retries, candidate=occasion.session,
            answered=answered,
        )  # fmt: skip


Train = Callable[[Board, Orders], MaskedFile | Dropped]
"""Trains for the round on the board, and masks the update by the orders."""


class Participant:
    """Answers the phases of secure sums as one learner. Its keys are in the memory of this process, and nowhere else.

    Args:
        store: the federation's store.
        plan: the run's plan.
        learner: its name.
        session: of this learner; what belongs to another is refused.
        train: makes the masked vector.
        leaves: metrics that may leave the learner; None: all.
    """

    def __init__(
        self, store: Store, plan: Plan, learner: str, session: str, train: Train, leaves: Leaving | None = None
    ) -> None:  # fmt: skip
        self._store, self._plan, self._learner, self._session = store, plan, learner, session
        self._train, self._leaving = train, names_that_leave(leaves)
        self._group: Group | None = None
        self._party: Party | None = None
        self._next: Party | None = None
        self._bundle: Bundle | None = None
        self._members: Members | None = None
        self._opened: set[int | str] = set()

    def answers(self) -> dict[str, Callable[[Board], bool]]:
        """Return the answer to each phase: whether the learner took part."""
        steps = {"keys": self._offer, "masked": self._mask, "agree": self._agree, "reveal": self._reveal}
        return {name: self._guarded(step) for name, step in steps.items()}

    def _guarded(self, step: Callable[[Board], bool]) -> Callable[[Board], bool]:
        """Leave the reason when a step is refused; the learner is missing from the round and stays in the session."""

        def answer(board: Board) -> bool:
            try:
                return step(board)
            except StoreUnavailableError:
                raise
            except FedpipeError as error:
                dropped = dropped_by(self._plan, self._learner, error) or Dropped(learner=self._learner, why=error.what)
                note = Roll((), attempt=board.attempt).note("dropped")
                drop(self._store, self._plan.run, board.round, dropped, name=note)
                log.warning("round %d: %s is dropped: %s", board.round, self._learner, dropped.why)
                return False

        return answer

    def _occasion(self, board: Board) -> Occasion:
        """Return the try of the round on the board, which must be of this session."""
        occasion = self._first_try(board.round)._replace(session=board.candidate, base=board.base)
        if not tries_of(occasion, self._session):
            raise DroppedError("the coordinator asks for keys of another session")
        return occasion

    def _first_try(self, number: int) -> Occasion:
        """Return the first try of a round, before its base is known."""
        name, run, plan = self._plan.federation.name, self._plan.run, self._plan.definition.digest
        return Occasion(name, run, self._session, number, plan)

    def _offer(self, board: Board) -> bool:
        occasion = self._occasion(board)
        party = self._begun(occasion)
        if party is None:
            party = self._begin(self._made(occasion), occasion)
        put_statement(self._store, party.offer())
        return True

    def _begun(self, occasion: Occasion) -> Party | None:
        """Return the party of a try of a round; None without a key of it."""
        if self._next is not None and self._next.occasion == occasion.expected:
            party, self._next = self._next, None
            return self._begin(party, occasion)
        return self._party if self._party is not None and self._party.occasion == occasion else None

    def _begin(self, party: Party, occasion: Occasion) -> Party:
        if self._opened & {occasion.round, occasion.base}:
            raise DroppedError("it has opened a sum of this round or these weights, and opens no second one")
        party.begin(occasion.base)
        self._party, self._bundle, self._members = party, None, None
        return party

    def _made(self, occasion: Occasion) -> Party:
        if self._group is None:
            administrator = find_administrator()
            if administrator is None:
                raise InputError(
                    "there is no public key of the administrator, who signs the roster",
                    where="FEDPIPE_KEYS",
                    remedy="Add `administrator` to the learner's secret, or `_administrator.pub` to the keys.",
                )
            roster = read_roster(self._store, self._plan.federation.name, administrator)
            check_members(roster, tuple(learner.name for learner in self._plan.federation.learners))
            self._group = Group.of(roster, self._plan.federation.threshold)
        return Party(occasion, self._group, self._learner, lambda made: signed_by(made, self._learner), self._leaving)

    def _current(self, board: Board) -> Party:
        party = self._begun(self._occasion(board))
        if party is None:
            raise DroppedError("this process has no key of the round: it began later, or its last one ended")
        return party

    def _mask(self, board: Board) -> bool:
        party = self._current(board)
        if party.sent is None:
            bundle = find_list(self._store, party.occasion, Bundle)
            if bundle is None:
                raise CorruptError("the coordinator shows no keys")
            self._check_bound(bundle.bound)
            orders = party.join(bundle)
            self._party = None  # unless the vector is made: nothing else may be masked by these orders
            made = self._train(board, orders)
            if isinstance(made, Dropped):
                return False
            party.masked(made.digest, made.size, made.metrics, trainings=made.trainings, ledger=made.ledger)
            self._party, self._bundle = party, bundle
        assert party.sent is not None
        put_statement(self._store, party.sent)
        return True

    def _check_bound(self, bound: float) -> None:
        """Check a bound against the plan, as far as a learner knows it. Raises DroppedError."""
        secure = self._plan.federation.secure
        assert secure is not None
        if not isinstance(secure.bound, QuantileBound) and bound != secure.bound:
            raise DroppedError(f"the coordinator shows a bound of {bound:g}, the plan's is {secure.bound:g}")

    def _agree(self, board: Board) -> bool:
        party = self._current(board)
        members = find_list(self._store, party.occasion, Members)
        if members is None:
            raise CorruptError("the coordinator shows no list of members")
        agreement = party.agree(members)
        self._members = members
        put_statement(self._store, agreement)
        return True

    def _reveal(self, board: Board) -> bool:
        party = self._current(board)
        agreements = find_list(self._store, party.occasion, Agreements)
        if agreements is None or self._members is None or self._bundle is None:
            raise CorruptError("the coordinator shows no signatures on a list that this learner signed")
        boxes = self._members.boxes.get(self._learner, "")
        data = get_bytes(self._store, boxes)
        parcels = cut_parcels(form_of(self._bundle), self._members.vectors, self._learner, data)
        reveal = party.reveal(agreements, parcels)
        self._opened |= {board.round, board.base}
        put_statement(self._store, reveal)
        self._offer_next(board.round + 1)
        return True

    def _offer_next(self, number: int) -> None:
        """Offer a key of the next round, so that nobody has to ask for it."""
        if number > self._plan.federation.training.rounds:
            return
        if self._next is None or self._next.occasion.round != number:
            self._next = self._made(self._first_try(number))
        put_statement(self._store, self._next.offer())
