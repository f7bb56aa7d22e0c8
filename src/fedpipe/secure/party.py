"""A learner in one secure round: it masks one vector, signs one list, and reveals once.

All secrets are made for the round and stay in memory. A learner that restarts has lost them, so it is missing from the
round. It checks each list of the coordinator before it uses the next secret.

Source: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", Figure 4, with
keys of one round. So no secret of a learner is shared: only its self-mask, and its seeds of pair masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from fedpipe.errors import DroppedError
from fedpipe.federation.algorithms import FEWEST_SUMMED, MOST_SUMMED, least_threshold
from fedpipe.secure.masks import MARK, TAG, KeyPair, Term, derived, fresh_seed, mark_of, seal, unseal
from fedpipe.secure.messages import (
    TEST,
    Agreement,
    Agreements,
    Bundle,
    Masked,
    Members,
    Occasion,
    Offer,
    Reveal,
    check_occasion,
    check_statement,
)
from fedpipe.secure.shares import SEED, SHARE, split
from fedpipe.store.objects import canonical, digest_of

T = TypeVar("T")
Sign = Callable[[T], T]
"""Signs a statement with the learner's enrolled key."""


class Group(NamedTuple):
    """The learners that trust each other's keys.

    Args:
        roster: the public key of each, as the administrator signed it.
        threshold: the fewest members of a sum, and the shares that open a secret.
    """

    roster: Mapping[str, str]
    threshold: int

    @classmethod
    def of(cls, roster: Mapping[str, str], threshold: int = 0) -> Group:
        """Return a group whose threshold resists a third of its learners.

        Args:
            roster: the public key of each learner.
            threshold: 0 for the least.

        Raises:
            DroppedError: they are too few or too many, or the threshold is too low or too high.
        """
        count = len(roster)
        if not FEWEST_SUMMED <= count <= MOST_SUMMED:
            raise DroppedError(
                f"a secure sum needs {FEWEST_SUMMED} to {MOST_SUMMED} learners, the roster has {count}", lasting=True
            )
        if threshold and not least_threshold(count) <= threshold <= count:
            raise DroppedError(
                f"the threshold is {threshold}, but {count} learners need {least_threshold(count)} to {count}",
                lasting=True,
            )
        return cls(roster, threshold or least_threshold(count))


class Orders(NamedTuple):
    """The orders for one vector.

    Args:
        terms: of its mask.
        preamble: bytes that precede the vector in its object.
        bound: of the changes.
        metrics: names of metrics that all learners let leave; None: all.
    """

    terms: tuple[Term, ...]
    preamble: bytes
    bound: float
    metrics: tuple[str, ...] | None = None


class Form(NamedTuple):
    """The form of a preamble: boxes for the others, their marks, and the marks of the owner's seeds.

    Args:
        names: of all in the bundle, sorted.
    """

    names: tuple[str, ...]

    @property
    def box(self) -> int:
        """The bytes of a box: shares of the self-mask and of each seed."""
        return len(self.names) * SHARE + TAG

    @property
    def marks(self) -> int:
        """The bytes of the marks of one box's shares."""
        return len(self.names) * MARK

    @property
    def size(self) -> int:
        """The bytes of a preamble."""
        return len(self.names) * (self.box + self.marks) + self.marks

    def of(self, name: str) -> int:
        """Return the position of a name."""
        return self.names.index(name)

    def parcel(self, preamble: bytes, recipient: str) -> bytes:
        """Return the box for a recipient and the marks of its shares."""
        each = self.box + self.marks
        return preamble[self.of(recipient) * each : (self.of(recipient) + 1) * each]

    def mark_of_share(self, preamble: bytes, recipient: str, about: str) -> bytes:
        """Return the mark of a share: of the seed with `about`, or of the self-mask if that is the owner."""
        start = self.of(recipient) * (self.box + self.marks) + self.box + self.of(about) * MARK
        return preamble[start : start + MARK]

    def mark_of_seed(self, preamble: bytes, about: str) -> bytes:
        """Return the mark of a seed with another party, or of the self-mask if `about` is the owner."""
        start = len(self.names) * (self.box + self.marks) + self.of(about) * MARK
        return preamble[start : start + MARK]


class Party:
    """One learner in one round.

    Args:
        occasion: the round; its base may follow later (`begin`).
        group: all learners and the threshold.
        name: of the learner.
        sign: signs its statements.
        leaving: names of the metrics that may leave the learner; None: all.
    """

    def __init__(
        self, occasion: Occasion, group: Group, name: str, sign: Sign[Any], leaving: tuple[str, ...] | None = None
    ) -> None:  # fmt: skip
        if name not in group.roster:
            raise DroppedError(f"{name} is not in the roster", lasting=True)
        self._occasion, self._group, self._name, self._sign = occasion, group, name, sign
        self._keys, self._self, self._leaving = KeyPair(), fresh_seed(), leaving
        self._offer: Offer | None = None
        self._bundle = ""
        self._form = Form(())
        self._orders: Orders | None = None
        self._seeds: dict[str, bytes] = {}
        self._pairs: dict[str, bytes] = {}
        self._own: dict[str, bytes] = {}
        self._sent: Masked | None = None
        self._agreed: tuple[str, Members] | None = None
        self._revealed: Reveal | None = None

    @property
    def occasion(self) -> Occasion:
        """The round."""
        return self._occasion

    @property
    def sent(self) -> Masked | None:
        """The vector that was masked; None before."""
        return self._sent

    def offer(self) -> Offer:
        """Return this learner's key of the round, always the same."""
        if self._offer is None:
            where = self._occasion.expected._asdict()
            del where["base"]
            self._offer = self._signed(Offer(**where, learner=self._name, key=self._keys.public, metrics=self._leaving))
        return self._offer

    def begin(self, base: str) -> None:
        """Begin the round from weights, once and for all. Raises DroppedError if it began from others."""
        if self._occasion.base not in ("", base):
            raise DroppedError("the coordinator shows other weights to begin the round with")
        self._occasion = self._occasion._replace(base=base)

    def join(self, bundle: Bundle) -> Orders:
        """Check the keys of all, and return what masks the vector. It is made once, for one bundle.

        Raises:
            DroppedError: the bundle is not one that this learner takes part in.
        """
        digest = digest_of(canonical(bundle))
        if self._orders is not None:
            if digest != self._bundle:
                raise DroppedError("the coordinator shows a second list of keys")
            return self._orders
        if not self._occasion.base:
            raise DroppedError("the round has no weights yet to begin with")
        self._check_bundle(bundle)
        names = tuple(offer.learner for offer in bundle.offers)
        self._bundle, self._form = digest, Form(names)
        for peer, offer in zip(names, bundle.offers, strict=True):
            if peer != self._name:
                self._pairs[peer] = self._keys.shared(offer.key)
                first, second = sorted((self._name, peer))
                self._seeds[peer] = self._derived(peer, SEED, "seed", first, second)
        terms = [Term(seed, minus=self._name > peer) for peer, seed in self._seeds.items()]
        lists = [set(offer.metrics) for offer in bundle.offers if offer.metrics is not None]
        metrics = tuple(sorted(set.intersection(*lists))) if lists else None
        self._orders = Orders((Term(self._self), *terms), self._preamble(), bundle.bound, metrics)
        return self._orders

    def _check_bundle(self, bundle: Bundle) -> None:
        check_occasion(bundle, self._occasion)
        names = [offer.learner for offer in bundle.offers]
        if names != sorted(set(names)):
            raise DroppedError("the list of keys is not sorted, or names a learner twice")
        if len(names) < self._group.threshold:
            raise DroppedError(f"the list has {len(names)} keys, the threshold is {self._group.threshold}")
        for offer in bundle.offers:
            check_statement(offer, self._occasion, offer.learner, self._group.roster)
        if len({offer.key for offer in bundle.offers}) < len(names):
            raise DroppedError("two learners offer one key")
        if self.offer() not in bundle.offers:
            raise DroppedError("the list does not have this learner's own key; it may have restarted")

    def _preamble(self) -> bytes:
        """Return boxes with shares of all own secrets, for each other, and the marks of shares and secrets."""
        names, threshold = self._form.names, self._group.threshold
        secret = {name: self._seeds.get(name, self._self) for name in names}
        shares = {name: split(secret[name], threshold, len(names)) for name in names}
        made = []
        for place, recipient in enumerate(names):
            content = b"".join(shares[about][place] for about in names)
            if recipient == self._name:
                self._own = dict(zip(names, _cut(content, SHARE), strict=True))
                box = bytes(self._form.box)
            else:
                box = seal(self._derived(recipient, 32, "box", self._name, recipient), content)
            made.append(box + b"".join(mark_of(share) for share in _cut(content, SHARE)))
        return b"".join(made) + b"".join(mark_of(secret[name]) for name in names)

    def _derived(self, peer: str, size: int, purpose: str, first: str, second: str) -> bytes:
        """Return what two parties derive from their secret, bound to the round, both names, and the list of keys."""
        where = (*map(str, self._occasion), first, second, self._bundle)
        return derived(self._pairs[peer], size, purpose, *where)

    def masked(
        self, vector: str, size: int, metrics: tuple[str, ...] = (), *, trainings: int = 0, ledger: str | None = None
    ) -> Masked:  # fmt: skip
        """Sign the one vector that was masked by the orders.

        Args:
            vector: the digest of its object.
            size: bytes of the object.
            metrics: names of the metrics in the vector.
            trainings: the private trainings of the learner so far; 0 for one that is not private.
            ledger: the head of its privacy ledger.

        Raises:
            DroppedError: another vector was masked before, or a metric may not leave.
        """
        if self._orders is None:
            raise DroppedError("there are no keys yet that could mask a vector")
        allowed = self._orders.metrics
        for name in metrics:
            if allowed is not None and not {name, name.removeprefix(TEST)} & set(allowed):
                raise DroppedError("the vector has a metric that may not leave")  # its name may carry data
        made = Masked(
            **self._occasion._asdict(), learner=self._name, bundle=self._bundle, vector=vector, size=size,
            metrics=metrics, trainings=trainings, ledger=ledger,
        )  # fmt: skip
        if self._sent is None:
            self._sent = self._signed(made)
        elif self._sent.vector != vector:
            raise DroppedError("a second vector would be masked like the first")
        return self._sent

    def agree(self, members: Members) -> Agreement:
        """Sign the list of members, once.

        Raises:
            DroppedError: the list is of another round, lacks this learner or its vector, or is too short; or another
                list was signed before.
        """
        digest = digest_of(canonical(members))
        if self._agreed is not None and self._agreed[0] != digest:
            raise DroppedError("the coordinator shows a second list of members")
        check_occasion(members, self._occasion)
        if members.bundle != self._bundle or self._sent is None:
            raise DroppedError("the members were not masked by the keys that this learner knows")
        if members.vectors.get(self._name) != self._sent.vector:
            raise DroppedError("the list of members does not have this learner's vector")
        if unknown := members.vectors.keys() - set(self._form.names):
            raise DroppedError(f"{min(unknown)} is a member, but offered no key")
        if both := members.vectors.keys() & members.missing.keys():
            raise DroppedError(f"{min(both)} is a member, and missing too")
        if len(members.vectors) < self._group.threshold:
            raise DroppedError(f"the list has {len(members.vectors)} members, the threshold is {self._group.threshold}")
        self._agreed = (digest, members)
        return self._signed(Agreement(**self._occasion._asdict(), learner=self._name, members=digest))

    def reveal(self, agreements: Agreements, parcels: Mapping[str, bytes]) -> Reveal:
        """Reveal what opens the sum, once enough members have signed the list that this learner signed.

        Args:
            agreements: the signatures.
            parcels: from each other member, the box for this learner and its marks.

        Raises:
            DroppedError: too few signed this list.
        """
        if self._agreed is None:
            raise DroppedError("no list of members was signed")
        if self._revealed is not None:
            return self._revealed
        digest, members = self._agreed
        check_occasion(agreements, self._occasion)
        signers = set()
        for item in agreements.signed:
            check_statement(item, self._occasion, item.learner, self._group.roster)
            if item.members == digest and item.learner in members.vectors:
                signers.add(item.learner)
        if len(signers) < self._group.threshold:
            raise DroppedError(f"{len(signers)} members signed this list, the threshold is {self._group.threshold}")
        self._revealed = self._signed(self._opened(digest, members, parcels))
        return self._revealed

    def _opened(self, digest: str, members: Members, parcels: Mapping[str, bytes]) -> Reveal:
        gone = [name for name in self._form.names if name not in members.vectors]
        shares, pairs, spoilt = {self._name: self._own[self._name].hex()}, dict[str, dict[str, str]](), dict[str, str]()
        for name in sorted(members.vectors.keys() - {self._name}):
            found = self._unboxed(name, parcels.get(name, b""))
            if found is None:
                spoilt[name] = "its box for this learner was changed, or does not fit its marks"
                continue
            shares[name] = found[name].hex()
            if gone:
                pairs[name] = {other: found[other].hex() for other in gone}
        if gone:
            pairs[self._name] = {other: self._own[other].hex() for other in gone}
        return Reveal(
            **self._occasion._asdict(), learner=self._name, members=digest, shares=shares, pairs=pairs, spoilt=spoilt,
            seeds={name: self._seeds[name].hex() for name in gone},
        )  # fmt: skip

    def _unboxed(self, sender: str, parcel: bytes) -> dict[str, bytes] | None:
        """Return the shares in a box; None if it cannot be opened, or the shares are not those of its marks."""
        box, marks = parcel[: self._form.box], parcel[self._form.box :]
        content = unseal(self._derived(sender, 32, "box", sender, self._name), box)
        if content is None:
            return None
        shares = _cut(content, SHARE)
        if [mark_of(share) for share in shares] != _cut(marks, MARK) or len(shares) != len(self._form.names):
            return None
        return dict(zip(self._form.names, shares, strict=True))

    def _signed(self, statement: T) -> T:
        signed: T = self._sign(statement)
        if getattr(signed, "signature", None) is None:
            raise DroppedError(f"{self._name} has no private key to sign with", lasting=True)
        return signed


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]
