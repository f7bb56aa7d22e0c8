"""Close the phases of a secure sum: the lists that learners see, the sum, and the record.

Each list is of one try of a session, and written once. So every closing may be repeated after a crash.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from fedpipe.aggregation import Source as Aggregated
from fedpipe.aggregation import combine, make_rule, make_server_step
from fedpipe.errors import DroppedError, RoundError, WeightsError
from fedpipe.federation.algorithms import Averaging, QuantileBound
from fedpipe.federation.rules import Mean
from fedpipe.identity.roster import Roster
from fedpipe.rounds.closing import rate_factor
from fedpipe.rounds.history import commit, read_record
from fedpipe.rounds.manifests import Dropped, Record, SecureRound
from fedpipe.rounds.masked import (
    Sum,
    add_vectors,
    bound_after,
    digest_of_file,
    largest_examples,
    parcels,
    vector_of,
    write_mean,
)
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.received import check_printable, cleaned, receive
from fedpipe.rounds.roll import Roll, check_quorum, gather
from fedpipe.rounds.secure_lists import ANSWERS, LIST, LISTS, answer_source, find_list, show_list, tries_of
from fedpipe.secure.masks import Masks
from fedpipe.secure.messages import (
    Agreement,
    Agreements,
    Bundle,
    Masked,
    Members,
    Occasion,
    Offer,
    Reveal,
    Reveals,
    check_statement,
)
from fedpipe.secure.numbers import Words
from fedpipe.secure.party import Form
from fedpipe.secure.unmasking import flaw_of_reveal, form_of, terms_of
from fedpipe.secure.vector import COUNT, Counts, Vector
from fedpipe.store import Store, keys
from fedpipe.store.objects import canonical, digest_of, fetch_file, find, put_bytes, put_file
from fedpipe.store.requests import each
from fedpipe.weights import Layout

log = logging.getLogger("fedpipe")

S = TypeVar("S", Offer, Masked, Agreement, Reveal)
CLIPPED = "clipped"
"""The metric of a secure round: the share of its values that was clipped."""
BOUND = "bound"
"""The metric of a secure round whose bound follows earlier ones."""


class SecureClosing:
    """Closes the phases of one round.

    Args:
        store: the federation's store.
        plan: the run's plan.
        previous: the record of the round before.
        layout: of the weights.
        session: of the coordinator.
    """

    def __init__(self, store: Store, plan: Plan, previous: Record, layout: Layout, session: str) -> None:
        self._store, self._plan, self._previous = store, plan, previous
        self._layout, self._session = layout, session
        self.number, self.threshold = previous.round + 1, plan.federation.min_updates
        self.bound = bound_after(plan, previous)
        self._added: tuple[str, Sum] | None = None
        self._roster: dict[str, str] | None = None

    def occasion(self, attempt: int) -> Occasion:
        """Return a try of the round, from 1."""
        session = self._session if attempt == 1 else f"{self._session}#{attempt}"
        plan, base = self._previous.plan, self._previous.weights
        return Occasion(self._plan.federation.name, self._plan.run, session, self.number, plan, base)

    def roster(self) -> dict[str, str]:
        """Return the keys of the learners, read once; the coordinator, whom nobody trusts, does not check who signed.

        Raises:
            RoundError: there is no roster.
        """
        if self._roster is not None:
            return self._roster
        found = find(self._store, keys.ROSTER, Roster)
        if found is None:
            raise RoundError(
                "there is no roster of the learners' keys",
                where=f"{self._store.uri}/{keys.ROSTER}",
                remedy="Sign one as the administrator: fedpipe roster.",
            )
        self._roster = dict(found.learners)
        return self._roster

    def without_key(self, occasion: Occasion, names: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of some learners that have offered no key of a try of the round."""
        read = self.reading(Offer, occasion)

        def lacks(name: str) -> bool:
            try:
                return read(name) is None
            except DroppedError:  # one of an earlier try, or junk
                return True

        return tuple(name for name, lacking in zip(names, each(self._store, lacks, names), strict=True) if lacking)

    def reading(self, kind: type[S], occasion: Occasion) -> Callable[[str], S | None]:
        """Return a function that reads a learner's statement, checked; it raises DroppedError."""
        roster = self.roster()

        def read(learner: str) -> S | None:
            found = receive(answer_source(self._store, occasion, learner, kind), kind)
            return None if found is None else check_statement(found, occasion, learner, roster)

        return read

    def _gathered(
        self, kind: type[S], occasion: Occasion, roll: Roll, check: Callable[[S], str] = lambda _: ""
    ) -> tuple[list[S], dict[str, str]]:
        """Return the sound statements, and the reasons why the others have none."""
        read = self.reading(kind, occasion)

        def sound(learner: str) -> S | None:
            found = read(learner)
            if found is not None and (flaw := check(found)):
                raise DroppedError(flaw)
            return found

        what = ANSWERS[kind][1]
        given, missing = gather(
            self._store, occasion.run, occasion.round, roll, sound, name="dropped", otherwise=f"no {what}"
        )
        return given, {item.learner: item.why[:500] for item in missing}

    def close_keys(self, attempt: int, roll: Roll) -> Bundle:
        """Return the keys of all that offered one: of this try, or of a later one that began before a crash.

        Raises:
            QuorumError: they are too few.
        """
        key = keys.listed(self._plan.run, self.number, LISTS[Bundle])
        found = find(self._store, key, Bundle, limit=LIST)
        if found is not None and tries_of(found.occasion, self._session) >= attempt:
            return found
        occasion = self.occasion(attempt)
        everybody = tuple(learner.name for learner in self._plan.federation.learners)
        offers, missing = self._gathered(Offer, occasion, roll._replace(asked=everybody))
        check_quorum(self.number, len(offers), _dropped(missing), self.threshold)
        bundle = Bundle(**occasion._asdict(), bound=self.bound, offers=tuple(offers), missing=missing)
        return show_list(self._store, bundle)

    def close_masked(self, bundle: Bundle, roll: Roll) -> Members | None:
        """Return the list of the vectors in the sum, each downloaded and verified; None if they are too few."""
        if found := find_list(self._store, bundle.occasion, Members):
            return found
        digest, form = digest_of(canonical(bundle)), form_of(bundle)

        def check(masked: Masked) -> str:
            if masked.bundle != digest:
                return "its vector is masked by other keys"
            names = masked.metrics
            check_printable("vector", names)
            size = form.size + self._vector(names).bytes
            if names != tuple(sorted(set(names))) or masked.size != size:
                return f"its vector has {masked.size} bytes where the model has {size}"
            return ""

        given, missing = self._gathered(Masked, bundle.occasion, roll, check)
        counted = Counter(masked.metrics for masked in given)
        names = max(counted, key=lambda item: (counted[item], item), default=())
        for masked in given:
            if masked.metrics != names:
                missing[masked.learner] = "it measures other metrics than most"
        given = [masked for masked in given if masked.metrics == names]
        sound, refused = self._add(form, names, {masked.learner: masked.vector for masked in given})
        missing |= refused
        if len(sound.preambles) < self.threshold:
            log.warning("round %d: %d masked vectors are too few: %s", self.number, len(sound.preambles), missing)
            return None
        vectors = {masked.learner: masked.vector for masked in given if masked.learner in sound.preambles}
        boxes = {name: put_bytes(self._store, parcels(form, sound.preambles, name)) for name in vectors}
        members = show_list(
            self._store,
            Members(
                **bundle.occasion._asdict(), bundle=digest, vectors=vectors, boxes=boxes, metrics=names,
                missing=missing,
            ),
        )  # fmt: skip
        if members.vectors == vectors:
            self._added = (digest_of(canonical(members)), sound)
        return members

    def close_agree(self, members: Members, roll: Roll) -> Agreements | None:
        """Return the signatures on the list of members; None if they are too few."""
        if found := find_list(self._store, members.occasion, Agreements):
            return found
        digest = digest_of(canonical(members))

        def check(agreement: Agreement) -> str:
            return "" if agreement.members == digest else "it signed another list"

        given, missing = self._gathered(Agreement, members.occasion, roll, check)
        if len(given) < self.threshold:
            log.warning("round %d: %d signatures are too few: %s", self.number, len(given), missing)
            return None
        return show_list(self._store, Agreements(**members.occasion._asdict(), signed=tuple(given)))

    def close_reveal(self, bundle: Bundle, members: Members, roll: Roll) -> Record:
        """Remove the masks from the sum, and commit the round.

        Raises:
            QuorumError: too few members revealed their secrets.
            RoundError: too many values were clipped, or a learner's shares fit no secret.
        """
        if committed := read_record(self._store, self._plan.run, self.number):
            return commit(self._store, committed)
        digest, form = digest_of(canonical(members)), form_of(bundle)
        added = self._sum(members, form, digest)
        reveals = find_list(self._store, members.occasion, Reveals)
        if reveals is None:

            def check(reveal: Reveal) -> str:
                if reveal.members != digest:
                    return "it reveals secrets of another list"
                flaw = flaw_of_reveal(reveal, form, members, added.preambles)
                return f"it {flaw}" if flaw else ""

            given, missing = self._gathered(Reveal, members.occasion, roll, check)
            for reveal in given:
                for name, why in sorted(reveal.spoilt.items()):
                    log.warning("round %d: %s says of %s: %s", self.number, reveal.learner, name, cleaned(why))
            check_quorum(self.number, len(given), _dropped(missing), self.threshold)
            reveals = Reveals(**members.occasion._asdict(), members=digest, reveals=tuple(given))
        record = self.summed(bundle, members, reveals)
        for listed in (bundle, members, show_list(self._store, reveals)):
            put_bytes(self._store, canonical(listed))  # by their digests, so that they stay as long as the record
        for drop in record.dropped:
            log.warning("round %d: %s is dropped: %s", self.number, drop.learner, drop.why)
        return commit(self._store, record)

    def summed(self, bundle: Bundle, members: Members, reveals: Reveals) -> Record:
        """Return the record of a round from its lists and the members' vectors. Raises RoundError as `close_reveal`."""
        if bundle.bound != self.bound:
            raise RoundError(f"round {self.number}: the keys are for a bound of {bundle.bound:g}, not {self.bound:g}")
        added = self._sum(members, form_of(bundle), digest_of(canonical(members)))
        vector, total, parties = self._vector(members.metrics), added.total, len(members.vectors)
        try:
            terms = terms_of(reveals.reveals, form_of(bundle), members, added.preambles, self.threshold)
        except DroppedError as error:
            raise RoundError(
                f"round {self.number}: {error.what}", remedy="Revoke the learner that is named."
            ) from error
        self._added = None  # the masks are removed in place, because a copy is as large as the model
        Masks(terms, vector.grid.width, vector.grid.dtype).remove(total)
        counts = vector.counts(total, parties)
        if max(counts.examples, counts.tested, *counts.magnitudes) > 2**COUNT:
            raise RoundError(
                f"round {self.number}: the sum of the numbers of examples is impossible, so a learner sent nonsense",
                remedy="HEAD stays at the last good round. The sum hides which one it is: revoke one after the other.",
            )
        metrics = {**counts.metrics, CLIPPED: self._check_clipped(counts, vector.values * parties)}
        with tempfile.TemporaryDirectory() as folder:
            weights, state = self._moved(vector, total, parties, counts, Path(folder))
        return Record(
            format=self._plan.format, federation=self._plan.federation.name, run=self._plan.run, round=self.number,
            previous=self._previous.parent, plan=self._previous.plan, base=self._previous.weights, weights=weights,
            layout=self._previous.layout, state=state, rule="secure mean",
            dropped=tuple(_dropped({**bundle.missing, **members.missing})),
            metrics=metrics | ({BOUND: self.bound} if vector.follows else {}),
            secure=SecureRound(
                session=members.session, learners=tuple(sorted(members.vectors)), examples=counts.examples,
                metrics=members.metrics, keys=members.bundle, members=reveals.members,
                reveals=digest_of(canonical(reveals)),
                bound=self.bound if vector.follows else 0.0, magnitudes=counts.magnitudes,
            ),
        )  # fmt: skip

    def _check_clipped(self, counts: Counts, values: int) -> float:
        secure = self._plan.federation.secure
        assert secure is not None
        clipped = counts.clipped / values if values else 0.0
        follows = isinstance(secure.bound, QuantileBound)
        part = (".margin" if self.number > 1 else ".initial") if follows else ""
        if clipped > secure.most_clipped:
            raise RoundError(
                f"round {self.number}: {clipped:.2%} of the values were clipped to {self.bound:g}, more than "
                f"algorithm.secure.most_clipped allows, {secure.most_clipped:.2%}",
                remedy=f"Raise algorithm.secure.bound{part}, or lower the learning rate. "
                "HEAD stays at the last good round.",
            )
        return clipped

    def _moved(
        self, vector: Vector, total: Words, parties: int, counts: Counts, folder: Path
    ) -> tuple[str, dict[str, str]]:
        """Write the next weights and the state of the server optimizer, and return their digests."""
        algorithm, largest = self._plan.federation.algorithm, largest_examples(self._plan)
        assert isinstance(algorithm, Averaging)
        if largest and not counts.examples:
            raise RoundError(f"round {self.number}: the learners have no examples")
        factor = largest / counts.examples if largest else 1 / parties
        base, mean = folder / "base", folder / "mean"
        fetch_file(self._store, self._previous.weights, base)
        try:
            write_mean(vector, total, parties, factor, base, mean)
        except WeightsError as error:
            raise RoundError(f"round {self.number}: {error}", remedy="HEAD stays at the last good round.") from error
        digest = digest_of_file(mean)
        put_file(self._store, mean, digest)
        server = make_server_step(algorithm.server_optimizer, rate_factor(self._plan, self.number))
        if server.replaces:
            return digest, {}
        inner = folder / "server"
        inner.mkdir()
        whole = Aggregated("", digest, self._layout.size, 1.0, 0)
        done = combine(
            self._store, [whole], layout=self._layout, base=self._previous.weights,
            state=self._previous.state, rule=make_rule(Mean()), server=server, folder=inner,
        )  # fmt: skip
        put_file(self._store, *done.weights)
        for path, name in done.state.values():
            put_file(self._store, path, name, kind="coordinator")
        return done.weights[1], {slot: name for slot, (_, name) in done.state.items()}

    def _add(
        self, form: Form, metrics: tuple[str, ...], vectors: Mapping[str, str]
    ) -> tuple[Sum, dict[str, str]]:  # fmt: skip
        return add_vectors(self._store, self._plan.run, form, self._vector(metrics), vectors)

    def _vector(self, metrics: tuple[str, ...]) -> Vector:
        return vector_of(self._plan, self._layout, metrics, self.bound)

    def _sum(self, members: Members, form: Form, digest: str) -> Sum:
        """Return the sum of the members' vectors, which may have been added by a process that was killed."""
        if self._added is None or self._added[0] != digest:
            found, refused = self._add(form, members.metrics, members.vectors)
            if refused:
                name, why = min(refused.items())
                raise RoundError(f"round {self.number}: the vector of {name} was lost: {why}")
            self._added = (digest, found)
        return self._added[1]


def _dropped(reasons: Mapping[str, str]) -> list[Dropped]:
    return [Dropped(learner=name, why=why) for name, why in sorted(reasons.items())]
