"""Decide whether an error drops a learner, and state the reason."""

from __future__ import annotations

import errno
import logging

from fedpipe.errors import BudgetError, CorruptError, DroppedError, FedpipeError, InputError, NotFoundError
from fedpipe.learners.user_code import described
from fedpipe.rounds.manifests import Dropped
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.roll import drop
from fedpipe.store import Store

log = logging.getLogger("fedpipe")
LOCAL = (OSError, MemoryError)
"""Raised by a learner's own machine while it downloads; a failing store and a corrupt base raise errors of fedpipe."""
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def dropped_by(plan: Plan, name: str, error: BaseException) -> Dropped | None:
    """Return the reason why a learner does not take part; None when the learner is not the cause.

    Its data, its `load`, its model and its machine may raise anything. All of that drops this learner and no other. A
    failing store and a broken chain are errors of the run instead.
    """
    if isinstance(error, BudgetError):
        return Dropped(learner=name, why=reason(error), code="DP_BUDGET_EXCEEDED", spent=error.spent, lasting=True)
    if isinstance(error, DroppedError):
        return Dropped(learner=name, why=reason(error), lasting=error.lasting)
    if isinstance(error, InputError):
        return Dropped(learner=name, why=reason(error), lasting=True)
    if isinstance(error, CorruptError | NotFoundError):
        return Dropped(learner=name, why=reason(error))
    if isinstance(error, FedpipeError):
        return None
    if isinstance(error, OSError) and error.errno in _DISK:
        return Dropped(learner=name, why=f"the learner's disk cannot be used: {error.strerror}")
    if isinstance(error, MemoryError):
        return Dropped(learner=name, why="the learner's memory is used up")
    if not isinstance(error, Exception | SystemExit):
        return None
    log.warning("%s fails", name, exc_info=error)
    private = plan.federation.privacy_of(name) is not None  # foreign messages may quote examples
    why = type(error).__name__ if private else described(error)
    return Dropped(learner=name, why=why, lasting=not isinstance(error, OSError))


def left_out(
    store: Store, plan: Plan, name: str, number: int, error: BaseException, note: str, outcome: str = "is dropped"
) -> Dropped:  # fmt: skip
    """Leave the reason why a learner does not take part in a round, and return it.

    Args:
        store: the federation's store.
        plan: the run's plan.
        name: the learner.
        number: the round.
        error: what its data, code or machine raised; the exception that is being handled.
        note: of the round's roll (`Roll.note`).
        outcome: for the log.

    Raises:
        BaseException: the error itself, when the learner is not its cause.
    """
    dropped = dropped_by(plan, name, error)
    if dropped is None:
        raise error
    drop(store, plan.run, number, dropped, name=note)
    log.warning("round %d: %s %s: %s", number, name, outcome, dropped.why)
    return dropped


def reason(error: FedpipeError) -> str:
    """Return what is wrong and the remedy; the place is named only in the user's own files."""
    place = f" ({error.where})" if error.where and isinstance(error, InputError) else ""
    return f"{error.what.rstrip('.')}{place}. {error.remedy}" if error.remedy else f"{error.what}{place}"
