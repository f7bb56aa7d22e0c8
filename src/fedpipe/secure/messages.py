"""The statements and lists of a secure round.

    Offer       a learner's public key for this round
    Bundle      the coordinator's list of offers
    Masked      a learner's masked vector, named by its digest
    Members     the coordinator's list of the vectors that are in the sum
    Agreement   a learner's signature on that list
    Reveal      the secrets of one learner that open the sum, and only that

Learners sign what they write. The coordinator signs nothing, because nobody trusts it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

from msgspec import Meta, Struct

from fedpipe.errors import DroppedError
from fedpipe.federation.algorithms import LEAST_BOUND
from fedpipe.federation.algorithms import MOST_SUMMED as MOST
from fedpipe.federation.names import LARGE, Name
from fedpipe.identity.enrolment import Enrolled, Enrolment
from fedpipe.identity.signing import Signature
from fedpipe.identity.statements import check_signed
from fedpipe.store.objects import Digest

MOST_METRICS = 98
"""Metrics of a vector at most: the record of the round has two more."""
TEST = "test_"
"""Begins the names of metrics of the base on test parts."""

_Text = Annotated[str, Meta(max_length=100)]
_Session = Annotated[str, Meta(max_length=200)]
_Key = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Share = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Seed = Annotated[str, Meta(pattern=r"^[0-9a-f]{62}\Z")]
_Bound = Annotated[float, Meta(ge=LEAST_BOUND, le=LARGE)]
_Round = Annotated[int, Meta(ge=1)]
_Names = Annotated[tuple[Annotated[str, Meta(max_length=200)], ...], Meta(max_length=200)]
_Reasons = Annotated[dict[Name, Annotated[str, Meta(max_length=500)]], Meta(max_length=MOST)]


class Occasion(NamedTuple):
    """One round of one session, to which every statement and every key belongs.

    Learners that were given other plans or other weights to begin with have no masks in common, so their sum stays
    closed. Otherwise a coordinator could make all but one contribute nothing.

    Args:
        federation: its name.
        run: its name.
        session: and the try of the round, from the second on.
        round: its number.
        plan: digest of the run's definition.
        base: digest of the weights that the round begins with; empty before they are known.

    Source: of the attack, Pasquini et al. 2022, "Eluding Secure Aggregation in Federated Learning via Model
    Inconsistency".
    """

    federation: str
    run: str
    session: str
    round: int
    plan: str
    base: str = ""

    @property
    def expected(self) -> Occasion:
        """The same round, before the weights that it begins with are known: keys are offered for it."""
        return self._replace(base="")


class _Expecting(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: int = 1
    federation: Name
    run: Name
    session: _Session
    round: _Round
    plan: Digest

    @property
    def occasion(self) -> Occasion:
        """The round that it belongs to."""
        return Occasion(self.federation, self.run, self.session, self.round, self.plan)


class _Statement(_Expecting, frozen=True, kw_only=True):
    base: Digest

    @property
    def occasion(self) -> Occasion:
        """The round that it belongs to."""
        return Occasion(self.federation, self.run, self.session, self.round, self.plan, self.base)


class Offer(_Expecting, frozen=True, kw_only=True):
    """A learner's public key of X25519 for one round, and the metrics that its owner lets leave; None: all.

    It is offered while the round before ends, so it has no base. All that is derived from the key is bound to one.
    """

    learner: Name
    key: _Key
    metrics: _Names | None = None
    signature: Signature | None = None


class Bundle(_Statement, frozen=True, kw_only=True):
    """The offers of all that may send a vector, sorted by name; `missing` has the others, with the reason.

    Changes are clipped to `bound`. All keys are derived from the list, so learners that were shown different lists have
    no masks in common.
    """

    bound: _Bound
    offers: Annotated[tuple[Offer, ...], Meta(max_length=MOST)]
    missing: _Reasons = {}


class Masked(_Statement, frozen=True, kw_only=True):
    """A learner's masked vector: the digest and size of its object, and the names of the metrics in it.

    `bundle` is the digest of the bundle whose keys mask it. After a private training, `ledger` is the head of the
    learner's privacy ledger, and `trainings` the number of its entries.
    """

    learner: Name
    bundle: Digest
    vector: Digest
    size: Annotated[int, Meta(ge=0, le=2**53)]
    metrics: Annotated[tuple[_Text, ...], Meta(max_length=MOST_METRICS)] = ()
    trainings: Annotated[int, Meta(ge=0, le=2**53)] = 0
    ledger: Digest | None = None
    signature: Signature | None = None


class Members(_Statement, frozen=True, kw_only=True):
    """The vectors that are in the sum, by learner.

    `boxes` are the digests of what each member needs to read: its boxes from all others. `missing` are learners that
    offered a key, and are not in the sum.
    """

    bundle: Digest
    vectors: Annotated[dict[Name, Digest], Meta(max_length=MOST)]
    boxes: Annotated[dict[Name, Digest], Meta(max_length=MOST)]
    metrics: Annotated[tuple[_Text, ...], Meta(max_length=MOST_METRICS)] = ()
    missing: _Reasons = {}


class Agreement(_Statement, frozen=True, kw_only=True):
    """A learner's signature on one list of members, by its digest: it signs no other in this round."""

    learner: Name
    members: Digest
    signature: Signature | None = None


class Agreements(_Statement, frozen=True, kw_only=True):
    """The signatures on a list, as the coordinator shows them to its members."""

    signed: Annotated[tuple[Agreement, ...], Meta(max_length=MOST)]


class Reveal(_Statement, frozen=True, kw_only=True):
    """A learner's secrets that open the sum of a list of members.

    `shares` are of the members' self-masks. `seeds` are those of its pair masks with learners that are missing from the
    list. `pairs` are shares of other members' seeds: by the member, then by the missing learner. `spoilt` are members
    whose boxes could not be opened, with the reason.
    """

    learner: Name
    members: Digest
    shares: Annotated[dict[Name, _Share], Meta(max_length=MOST)]
    seeds: Annotated[dict[Name, _Seed], Meta(max_length=MOST)] = {}
    pairs: Annotated[dict[Name, Annotated[dict[Name, _Share], Meta(max_length=MOST)]], Meta(max_length=MOST)] = {}
    spoilt: Annotated[dict[Name, _Text], Meta(max_length=MOST)] = {}
    signature: Signature | None = None


class Reveals(_Statement, frozen=True, kw_only=True):
    """All reveals of a round, as its record names them."""

    members: Digest
    reveals: Annotated[tuple[Reveal, ...], Meta(max_length=MOST)]


S = TypeVar("S", Offer, Masked, Agreement, Reveal)


def check_statement(statement: S, occasion: Occasion, learner: str, roster: Mapping[str, str]) -> S:
    """Check that a statement is a learner's own, signed, and of this round.

    Args:
        statement: as it was read.
        occasion: the round.
        learner: who must have made it.
        roster: the public keys of all learners.

    Raises:
        DroppedError: it is not, with the reason.
    """
    name = type(statement).__name__.lower()
    expected = occasion.expected if isinstance(statement, Offer) else occasion
    for field in ("learner", *Occasion._fields):
        wanted = learner if field == "learner" else getattr(expected, field)
        if (found := getattr(statement, field, "")) != wanted:
            raise DroppedError(f"the {name}'s {field} is {str(found)[:100]}, the round's is {wanted}")
    if learner not in roster:
        raise DroppedError(f"{learner} is not in the roster")
    check_signed(statement, Enrolled(learners={learner: Enrolment(key=roster[learner], since=0.0)}))
    return statement


def check_occasion(listed: Any, occasion: Occasion) -> None:
    """Check that a list of the coordinator is of this round. Raises DroppedError."""
    if listed.occasion != occasion:
        raise DroppedError(f"the {type(listed).__name__.lower()} is of another round or session")
