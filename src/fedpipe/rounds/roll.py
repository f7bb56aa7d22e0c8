"""The roll of a round: the learners asked, those excused, and whether enough took part."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from fedpipe.errors import (
    CorruptError,
    DroppedError,
    QuorumError,
)
from fedpipe.rounds.floors import released_here
from fedpipe.rounds.manifests import Dropped
from fedpipe.rounds.received import Source, cleaned, parse, receive_blob, usable
from fedpipe.store import Blob, Store, keys
from fedpipe.store.objects import encode
from fedpipe.store.requests import each

T = TypeVar("T")


class Answer(Protocol):
    """A learner's update or ballot: the weights that the round began with, and the definition of the run."""

    @property
    def base(self) -> str:
        """The digest of the weights that the round began with."""

    @property
    def learner(self) -> str:
        """The learner's name."""

    @property
    def run(self) -> str:
        """The run's name."""

    @property
    def plan(self) -> str | None:
        """The digest of the definition of the run; None where it was not recorded."""


A = TypeVar("A", bound=Answer)


def is_of_try(answer: Answer, plan: str, base: str) -> bool:
    """Return whether an answer belongs to this try of the run; an earlier one had another plan or began elsewhere."""
    return answer.base == base and answer.plan in (None, plan)


def publish_answer(source: Source, answer: A) -> A:
    """Write a learner's answer unless there is one of the same try of the run, and return the stored one.

    Raises:
        CorruptError: the answer could not be read again, for instance because a number in it is out of bounds.
    """
    data, store, key = encode(answer), source.store, source.key
    if len(data) > source.limit:
        raise CorruptError(f"the {source.what} has {len(data)} bytes, the limit is {source.limit}")
    while not store.create(key, data):
        blob: Blob | None = None
        with contextlib.suppress(DroppedError):
            if (blob := receive_blob(source)) is None:
                continue  # it was removed in the meantime
            found = parse(blob, type(answer), source.what, learner=answer.learner, run=answer.run)
            if is_of_try(found, answer.plan or "", answer.base):
                return found
        if blob is None:
            store.replace(key, data)  # nobody can read what is there
            break
        if store.swap(key, data, blob.version):
            break
    return answer


def drop(store: Store, run: str, number: int, dropped: Dropped, *, name: str = "dropped") -> None:
    """Write down why a learner does not take part (`dropped`) or does not vote (`absent`)."""
    manifest = released_here(msgspec.structs.replace(dropped, why=dropped.why[:500]))
    store.replace(keys.answer(dropped.learner, run, number, name), encode(manifest))


def find_dropped(store: Store, learner: str, run: str, number: int, *, name: str = "dropped") -> Dropped | None:
    """Return the reason that a learner left, cleaned; None when there is none that can be read."""
    found = usable(Source(store, run, keys.answer(learner, run, number, name), "note"), Dropped)
    if found is None:
        return None
    return msgspec.structs.replace(found, learner=learner, why=cleaned(found.why) or "no reason given")


class Roll(NamedTuple):
    """The learners that a round asks.

    The answers of `asked` count, except those of learners in `excused`, which has the reason: late, away or not needed.
    `excused` may also name learners that were not asked. `attempt` counts how often the phase was opened.
    """

    asked: tuple[str, ...]
    excused: Mapping[str, str] = {}
    attempt: int = 1

    def note(self, name: str) -> str:
        """Return the name of a learner's note in this attempt; from the second on, it ends with the attempt."""
        return keys.note(name, self.attempt)


ANY_ROLL = Roll(())
"""The roll when no learner was asked by name: in a pipeline of single steps."""


def gather(
    store: Store, run: str, number: int, roll: Roll, read: Callable[[str], T | None], *, name: str, otherwise: str,
) -> tuple[list[T], list[Dropped]]:  # fmt: skip
    """Return the learners' answers in a round, and the learners without one with the reason, both sorted by name.

    Args:
        store: the federation's store.
        run: the run's name.
        number: the round.
        roll: the learners whose answers count.
        read: returns a learner's answer, checked, or None. May raise DroppedError.
        name: the note with the reason of a learner without an answer: `dropped` or `absent`.
        otherwise: the reason of one that left none.
    """

    def answer(learner: str) -> T | Dropped:
        if why := roll.excused.get(learner):
            return Dropped(learner=learner, why=why)
        try:
            part = read(learner)
        except DroppedError as error:
            return Dropped(learner=learner, why=cleaned(error.what))
        if part is not None:
            return part
        left = find_dropped(store, learner, run, number, name=roll.note(name))
        return left or Dropped(learner=learner, why=otherwise)

    answers = each(store, answer, sorted({*roll.asked, *roll.excused}))
    missing = [found for found in answers if isinstance(found, Dropped)]
    return [found for found in answers if not isinstance(found, Dropped)], missing


def check_quorum(
    number: int, taking_part: int, dropped: list[Dropped], minimum: int, rule: str = "", *, all_needed: bool = False
) -> None:  # fmt: skip
    """Raise QuorumError, with the missing learners and their reasons, when fewer than `minimum` take part.

    Args:
        number: the round.
        taking_part: number of learners.
        dropped: learners that are missing.
        minimum: the quorum.
        rule: the aggregation rule that needs so many, if that is why.
        all_needed: whether a lower quorum has no meaning.
    """
    if taking_part >= minimum:
        return
    by_reason: dict[str, list[str]] = {}
    for item in dropped:
        by_reason.setdefault(item.why.rstrip("."), []).append(item.learner)
    missing = "; ".join(f"{', '.join(names)}: {why}" for why, names in by_reason.items()) or "nobody was dropped"
    needed = f"but {rule} needs {minimum} updates" if rule else f"the quorum is {minimum}"
    lowered = "the rule's settings" if rule else "quorum.min_learners"
    lower = "" if all_needed else f", or lower {lowered}"
    raise QuorumError(
        f"round {number}: {taking_part} of {taking_part + len(dropped)} learners took part, {needed} ({missing})",
        remedy=f"HEAD stays at the last good round. Repair the learners{lower}; then run the same command again.",
        lasting=taking_part + sum(not item.lasting for item in dropped) < minimum,
        missing=tuple(item.learner for item in dropped),
    )
