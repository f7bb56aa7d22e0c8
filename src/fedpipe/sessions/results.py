"""Results of the steps before a session, for the steps of that session that have started with them.

    runs/<run>/<step>.<job>.results     the results, and whether the step has ended or failed
    runs/<run>/<step>.pulse             renewed while the step works, also between its tries

Kubeflow takes some 20 s to start a step. A step that starts early imports its packages in that time, and waits here.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator
from random import Random
from typing import Annotated

from msgspec import Meta, Struct

from fedpipe.errors import RoundError, StoreUnavailableError
from fedpipe.rounds.plan import Shards
from fedpipe.sessions.pacing import pause
from fedpipe.sessions.pulse import BEAT, GONE, GRACE, silence
from fedpipe.store import Store, keys
from fedpipe.store.objects import Digest, decode, encode

log = logging.getLogger("fedpipe")

PATIENCE = 1800.0
"""Seconds that a step awaits another one that has not started: a node may be added for it, and pull its image."""
_UNAVAILABLE = 900.0
"""Seconds without an answer of the store after which a step fails."""
_SAME_TRY = 30.0
"""Seconds between a failure and the start of another step, within which both belong to one try of the job."""


class Results(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The results of a step for a job: the shards, or the digest of the plan; `why` it failed, once it has ended."""

    format: int = 1
    job: Annotated[str, Meta(max_length=200)]
    shards: Shards | None = None
    plan: Digest | None = None
    ended: bool = False
    why: str = ""

    @property
    def is_known(self) -> bool:
        """Whether there are results, as in a step that has ended, or may end soon."""
        return self.ended or self.shards is not None or self.plan is not None


def publish_results(store: Store, run: str, step: str, results: Results) -> None:
    """Write the results of a step. Two jobs of a run may work at once, and each has its own."""
    store.replace(keys.results(run, step, results.job), encode(results))


def awaited(
    store: Store, run: str, step: str, job: str, *, ended: bool, patience: float = PATIENCE,
    clock: Callable[[], float] = time.monotonic, random: Random | None = None,
) -> Generator[float, None, Results]:  # fmt: skip
    """Wait for the results of a step; yield seconds to wait.

    Kubeflow may repeat a job whose step has failed. So an older failure counts only after a while in which the step
    has not started again.

    Args:
        store: the federation's store.
        run: the run's name.
        step: the step.
        job: id of the KFP job of both steps.
        ended: whether the step must have ended, too.
        patience: seconds without a sign of the step.
        clock: seconds of this process; no other clock is compared with them.
        random: of the jitter between looks.

    Raises:
        RoundError: the step failed, has disappeared, or did not start.
        CorruptError: its results are malformed.
        StoreError: the store does not answer, or refuses.
    """
    key, random = keys.results(run, step, job), random or Random()  # noqa: S311  (jitter)
    version, began, why, is_new = "", clock(), "", False
    answered, looks = began, began + BEAT
    while True:
        try:
            blob = store.poll(key, version)
            if blob is not None:
                version = blob.version
                found = decode(blob.data, Results, where=f"{store.uri}/{key}")
                why = found.why if found.job == job else ""
                is_new = bool(why) and _age(store, key) <= clock() - began + _SAME_TRY
                if found.job == job and (found.ended if ended else found.is_known) and not why:
                    return found
            if why and (is_new or clock() - began > GRACE):
                raise RoundError(f"step {step} failed: {why}", where=f"run {run}", remedy=_remedy(run))
            if patience < math.inf and clock() >= looks:
                _check_working(store, run, step, job, clock() - began, patience)
                looks = clock() + BEAT
            answered = clock()
        except StoreUnavailableError as error:
            if clock() - answered > _UNAVAILABLE:
                raise
            log.warning("the store does not answer; trying again: %s", error)
            version = ""
        yield pause(clock() - began, 1, random)


def _remedy(run: str) -> str:
    return f"See its log. Mend the cause, and continue the run: fedpipe resume {run}"


def _age(store: Store, key: str) -> float:
    age = store.age(key)
    return math.inf if age is None else age


def _check_working(store: Store, run: str, step: str, job: str, waited: float, patience: float) -> None:
    """Check that a step lives. Raises RoundError when it disappeared, or has not started for too long."""
    heard = silence(store, run, job, step)
    if heard is None and waited > patience:
        raise RoundError(
            f"step {step} has not started within {waited:.0f} s", where=f"run {run}",
            remedy="Look why its pod waits. If nodes lack room for all steps at once, set placement.learn.early to "
            "false in the federation file.",
        )  # fmt: skip
    if heard is not None and heard > GONE and waited > GONE:
        raise RoundError(
            f"step {step} has disappeared: it was last heard of {heard:.0f} s ago", where=f"run {run}",
            remedy=_remedy(run),
        )  # fmt: skip
