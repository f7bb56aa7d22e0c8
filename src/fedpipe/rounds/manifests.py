"""Small JSON objects that document a round: updates with their base, ballots, and the committed record.

All bytes are canonical and contain no times and no random numbers, so that a replay of a round writes the same bytes.
Only a signature has a time; an update is written once, so the record has it as it was first signed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from fedpipe.federation.names import Name
from fedpipe.identity.signing import Signature
from fedpipe.store.objects import Digest, canonical, digest_of

MOST_METRICS = 100
LARGEST = 3.4e38
"""The largest magnitude of a metric: about that of float32, so that sums over learners are finite."""
_LONGEST = 2.0**42
"""Seconds since 1970, or of a duration, which no clock exceeds."""

Count = Annotated[int, Meta(ge=0, le=2**53)]
ExampleCount = Annotated[int, Meta(ge=1, le=2**53)]
Metric = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Metrics = Annotated[dict[Annotated[str, Meta(max_length=100)], Metric], Meta(max_length=MOST_METRICS)]
Epsilon = Annotated[float, Meta(ge=0, le=LARGEST)]
Moment = Annotated[float, Meta(ge=0, le=_LONGEST)]


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """A small JSON object in the store."""


def bounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that a manifest can hold: finite ones of at most LARGEST."""
    return {name: float(value) for name, value in metrics.items() if abs(value) <= LARGEST}


class Tested(Manifest, frozen=True, kw_only=True):
    """Means of a model over `examples` of a learner's test or vote part."""

    examples: ExampleCount
    metrics: Metrics


class Scores(Manifest, frozen=True, kw_only=True):
    """A model's results on a learner's vote part and test part; None for a part that is empty or was not used."""

    vote: Tested | None = None
    test: Tested | None = None


class Spent(Manifest, frozen=True, kw_only=True):
    """The budget that a learner's private trainings have spent so far, over all runs, at its delta.

    `epsilon_poisson` assumes batches drawn by Poisson sampling; `epsilon_unamplified` only assumes that an example is
    seen once an epoch. None: no finite bound.
    """

    events: Count
    epsilon_poisson: Epsilon | None
    epsilon_unamplified: Epsilon | None
    delta: Epsilon
    target_epsilon: Epsilon
    sampling: Literal["poisson", "none"]

    @property
    def epsilon(self) -> float:
        """Epsilon under the assumption that the federation file names."""
        value = self.epsilon_poisson if self.sampling == "poisson" else self.epsilon_unamplified
        return math.inf if value is None else value


class Update(Manifest, frozen=True, kw_only=True):
    """A learner's contribution to a round.

    `plan` is the definition of the run that it was trained for. `personal` are weights that only the learner reads.
    `ledger` is the head of the learner's privacy ledger
    after this training, whose entry has the number `spent.events`.
    """

    SPOKEN: ClassVar = True
    format: int = 1
    federation: Name
    run: Name
    round: Annotated[int, Meta(ge=1)]
    learner: Name
    base: Digest
    weights: Digest
    size: Count
    examples: ExampleCount
    metrics: Metrics
    plan: Digest | None = None
    tested: Tested | None = None
    optimizer: Digest | None = None
    personal: Digest | None = None
    spent: Spent | None = None
    ledger: Digest | None = None
    signature: Signature | None = None


class Dropped(Manifest, frozen=True, kw_only=True):
    """A learner that did not take part in a round, and the reason: for a spent privacy budget, also its numbers.

    `lasting`: another attempt at the round would end in the same way.
    """

    learner: str
    why: str
    lasting: bool = False
    code: Literal["", "DP_BUDGET_EXCEEDED"] = ""
    spent: Spent | None = None


class Ballot(Manifest, frozen=True, kw_only=True):
    """A learner's vote on a candidate: a yes only when the candidate is strictly better than the base.

    In round 0 the candidate is the base: its scores are recorded before anybody trains. A candidate that cannot be
    measured is a no, with the reason in `why`.
    """

    SPOKEN: ClassVar = True
    format: int = 1
    federation: Name
    run: Name
    round: Count
    learner: Name
    base: Digest
    candidate: Digest
    approve: bool
    current: Scores
    proposed: Scores
    plan: Digest | None = None
    why: Annotated[str, Meta(max_length=500)] = ""
    signature: Signature | None = None


class Outcome(Manifest, frozen=True, kw_only=True):
    """The outcome of a vote: approvals among the voters that count."""

    approvals: Count
    voters: Count
    accepted: bool


class SecureRound(Manifest, frozen=True, kw_only=True):
    """A round whose updates were summed under masks: its members, and what the sum discloses about them together.

    `keys`, `members` and `reveals` are digests of the round's lists; with the masked vectors, they give the sum again.
    Where the bound follows the changes, `bound` is that of this round. `magnitudes` counts the changes by the classes
    of `fedpipe.secure.numbers.Grid.magnitudes`, and the next bound follows from them.
    """

    session: str
    learners: tuple[Name, ...]
    examples: Count
    metrics: tuple[str, ...]
    keys: Digest
    members: Digest
    reveals: Digest
    bound: Annotated[float, Meta(ge=0)] = 0.0
    magnitudes: tuple[Count, ...] = ()


class Aligned(Manifest, frozen=True, kw_only=True):
    """A party's statement about its rows before the first round: how many it has, and how many are common to all.

    `others` are the rows of the other parties, as they stated them to it. `personal` names the places of its common
    rows, an object that only the party reads. `session` and `attempt` are those in which the parties found them.
    """

    SPOKEN: ClassVar = True
    format: int = 1
    federation: Name
    run: Name
    learner: Name
    base: Digest
    plan: Digest | None
    session: str = ""
    attempt: Count = 0
    rows: ExampleCount
    common: Count
    others: dict[Name, ExampleCount] = {}
    personal: Digest
    signature: Signature | None = None

    @property
    def dropped(self) -> int:
        """The rows that are not common to all."""
        return self.rows - self.common


class Ref(Manifest, frozen=True, kw_only=True):
    """A reference to a committed record: its round, and the digest of its bytes."""

    run: Name
    round: Count
    record: Digest


class Record(Manifest, frozen=True, kw_only=True):
    """A committed round: a link of the chain.

    For a round that was voted down, `accepted` is false and the weights are its base. HEAD stays, and the next record's
    `previous` is that of this one. `candidate` is the weights that were voted on; None when nobody proposed.
    `layout` is the digest of the weights' header, which pins names, dtypes and shapes for the whole run; `state` is
    the server optimizer's. `control` is the control variate that learners read. `not_chosen` are the learners whose
    updates are valid, but which a rule such as Krum did not use.
    `schema` is the digest of the table's schema, in round 0 of a run with a table. A round with `secure` has no
    updates. `aligned` are the parties' statements about their common rows, in the first round of a cut network.
    """

    SPOKEN: ClassVar = True
    format: int = 1
    federation: Name
    run: Name
    round: Count
    previous: Ref | None
    plan: Digest
    base: Digest | None
    weights: Digest
    layout: Digest
    state: dict[str, Digest] = {}
    rule: str = ""
    updates: tuple[Update, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    metrics: dict[str, float] = {}
    accepted: bool = True
    proposer: str = ""
    candidate: Digest | None = None
    ballots: tuple[Ballot, ...] = ()
    absent: tuple[Dropped, ...] = ()
    outcome: Outcome | None = None
    schema: Digest | UnsetType = UNSET
    control: Digest | UnsetType = UNSET
    secure: SecureRound | UnsetType = UNSET
    not_chosen: tuple[Name, ...] | UnsetType = UNSET
    aligned: tuple[Aligned, ...] | UnsetType = UNSET

    @property
    def contributors(self) -> tuple[str, ...]:
        """The learners whose updates are valid; see `not_chosen`."""
        return self.secure.learners if self.secure else tuple(update.learner for update in self.updates)

    @property
    def examples(self) -> int:
        """The train examples of all updates together."""
        return self.secure.examples if self.secure else sum(update.examples for update in self.updates)

    def spent_by(self, learner: str) -> Spent | None:
        """Return the budget that a learner had spent by this round; None when the round does not record it."""
        offered = [update.spent for update in self.updates if update.learner == learner]
        refused = [dropped.spent for dropped in self.dropped if dropped.learner == learner]
        return next((spent for spent in (*offered, *refused) if spent), None)

    @property
    def parent(self) -> Ref | None:
        """The reference for the next record's `previous`: the last accepted round, where HEAD is."""
        return self.ref if self.accepted else self.previous

    @property
    def ref(self) -> Ref:
        """The reference to this record."""
        return Ref(run=self.run, round=self.round, record=digest_of(canonical(self)))


class Head(Manifest, frozen=True, kw_only=True):
    """The last committed round and its weights."""

    run: Name
    round: Count
    record: Digest
    weights: Digest

    @property
    def ref(self) -> Ref:
        """The record that HEAD names."""
        return Ref(run=self.run, round=self.round, record=self.record)
