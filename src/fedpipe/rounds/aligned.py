"""The rows that the parties of a cut network have in common: each party's statement about them, and its check."""

from __future__ import annotations

from collections.abc import Mapping

from fedpipe.errors import DroppedError, QuorumError
from fedpipe.identity.enrolment import Enrolled, read_enrolled
from fedpipe.identity.statements import check_signed
from fedpipe.rounds.manifests import Aligned
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.received import Source, receive
from fedpipe.rounds.roll import Roll, check_quorum, gather, is_of_try
from fedpipe.store import Store, keys

FIRST = 0
"""The round to which the statements belong: parties align their rows before the first one."""
NO_COMMON = "Check that all parties name the same ids in algorithm.ids, and that they mean the same people or things."


def find_aligned(store: Store, plan: Plan, base: str, party: str) -> Aligned | None:
    """Return a party's statement about its common rows, unchecked; None without one of this try of the run.

    Raises:
        DroppedError: it cannot be read.
    """
    source = Source(store, plan.run, keys.answer(party, plan.run, FIRST, keys.ALIGNED), "alignment")
    found = receive(source, Aligned, learner=party, run=plan.run)
    return found if found is not None and is_of_try(found, plan.definition.digest, base) else None


def read_aligned(
    store: Store, plan: Plan, base: str, enrolled: Enrolled, party: str, session: str | None = None
) -> Aligned | None:  # fmt: skip
    """Return a party's statement about its common rows, checked; None without one of this session.

    Args:
        store: the federation's store.
        plan: the run's plan.
        base: digest of the weights that the run begins with.
        enrolled: who must sign.
        party: its name.
        session: of the coordinator; None for any of this try of the run.

    Raises:
        DroppedError: it cannot be used.
    """
    found = find_aligned(store, plan, base, party)
    if found is None or session not in (None, found.session):
        return None
    if found.federation != plan.federation.name:
        raise DroppedError(f"its alignment belongs to the federation {found.federation}")
    check_signed(found, enrolled)
    if found.common > found.rows:
        raise DroppedError(f"its alignment has {found.common} common rows of {found.rows}")
    return found


def all_aligned(store: Store, plan: Plan, base: str) -> tuple[Aligned, ...]:
    """Return the statements of all parties, in their order; empty if one is missing, or if they contradict others."""
    enrolled, names = read_enrolled(store), [learner.name for learner in plan.federation.learners]
    try:
        found = tuple(filter(None, (read_aligned(store, plan, base, enrolled, name) for name in names)))
    except DroppedError:
        return ()
    return found if len(found) == len(names) and not contradiction({one.learner: one for one in found}) else ()


def contradiction(found: Mapping[str, Aligned]) -> str:
    """Return in what the statements of parties contradict each other; empty if in nothing."""
    rows = {name: one.rows for name, one in found.items()}
    for name, one in found.items():
        for other, count in one.others.items():
            if other in rows and rows[other] != count:
                return f"{other} states {rows[other]} rows, and {count} to {name}"
    if len({(one.session, one.attempt) for one in found.values()}) > 1:
        return "they found them in different attempts"
    counts = {name: one.common for name, one in found.items()}
    if len(set(counts.values())) > 1:
        return "their numbers of common rows differ: " + ", ".join(f"{name} {n}" for name, n in counts.items())
    return ""


def close_aligned(store: Store, plan: Plan, base: str, roll: Roll, session: str) -> tuple[Aligned, ...]:
    """Check that all parties have found the same number of common rows, and enough of them.

    Args:
        store: the federation's store.
        plan: the run's plan.
        base: digest of the weights that the run begins with.
        roll: the parties that were asked.
        session: in which they were asked; statements of an earlier one do not count.

    Raises:
        QuorumError: a party has left no statement, they contradict each other, or too few rows are common.
    """
    enrolled = read_enrolled(store)
    found, dropped = gather(
        store, plan.run, FIRST, roll, lambda name: read_aligned(store, plan, base, enrolled, name, session),
        name="dropped", otherwise="no alignment",
    )  # fmt: skip
    check_quorum(FIRST, len(found), dropped, plan.federation.min_learners, all_needed=True)
    if what := contradiction({one.learner: one for one in found}):
        raise QuorumError(f"the parties do not agree on their common rows: {what}")
    common = found[0].common
    told = ", ".join(f"{one.learner} has {one.rows}" for one in found)
    if not common:
        raise QuorumError(f"no id is common to all parties ({told})", remedy=NO_COMMON, lasting=True)
    train = round(common * plan.federation.data.parts.train)
    if train < plan.federation.training.batch_size:
        raise QuorumError(
            f"{common} rows are common to all parties ({told}), so {train} are train rows, fewer than a batch of "
            f"{plan.federation.training.batch_size}",
            remedy=f"Lower the batch size. {NO_COMMON}", lasting=True,
        )  # fmt: skip
    return tuple(found)
