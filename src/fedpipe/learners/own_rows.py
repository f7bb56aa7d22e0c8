"""Look at the rows of a split network's parties, as far as this machine reaches them, before a run."""

from __future__ import annotations

from collections.abc import Mapping

from fedpipe.data.examples import Examples
from fedpipe.errors import DataError, FedpipeError
from fedpipe.federation.federation import Federation
from fedpipe.learners.keras.cut import CutKeras
from fedpipe.learners.own_data import few_of, is_here
from fedpipe.learners.party import Held, held_rows
from fedpipe.learners.user_code import load_code
from fedpipe.store.objects import digest_of

SAME_ROWS = "Sort the files of all parties by id, and keep only common rows."
"""The remedy for parties with different rows."""


def check_parties(federation: Federation, code: str) -> list[tuple[str, str]]:
    """Read the rows of each party as far as this machine reaches them, and try the network on a few.

    Returns:
        Each party, and its rows or the reason why they are not read here.

    Raises:
        DataError: a party's rows are on this machine and cannot be used, or are not those of another.
        ModelError: the network cannot be used on them.
    """
    data = code.encode()
    digest, found, known = digest_of(data), [], dict[str, Held]()
    module = load_code(data, digest)
    for position, learner in enumerate(federation.learners):
        where = f"learners[{position}].data, {learner.name}"
        try:
            held = known[learner.name] = held_rows(federation, learner.name, module)
        except FedpipeError as error:
            if is_here(learner.data):
                place = f"{error.where}: " if error.where else ""
                what = f"the data cannot be used: {place}{error.what}"
                raise DataError(what, where=where, remedy=error.remedy) from error
            found.append((learner.name, f"not read: {error.what}"))
            continue
        _check_same(known, where)
        found.append((learner.name, ", ".join(f"{len(rows)} {part}" for part, rows in held.parts.items())))
    _try(federation, data, digest, known)
    return found


def _check_same(known: Mapping[str, Held], where: str) -> None:
    """Check that the last party has the rows of the first. Raises DataError."""
    (first, one), *_, (_, other) = [*known.items(), *known.items()]
    counts = [sum(map(len, held.parts.values())) for held in (one, other)]
    if counts[0] != counts[1]:
        raise DataError(f"there are {counts[1]} rows, but {first} has {counts[0]}", where=where, remedy=SAME_ROWS)
    if one.order != other.order:
        raise DataError(f"the ids are not those of {first}, in the same order", where=where, remedy=SAME_ROWS)


def _try(federation: Federation, code: bytes, digest: str, known: Mapping[str, Held]) -> None:
    """Take a step of the network on a few rows, if those of all parties are known. Raises ModelError."""
    if len(known) < len(federation.learners):
        return
    adapter, training, cut = CutKeras(federation), federation.training, federation.split
    assert cut is not None
    x = {name: held.x for name, held in known.items() if held.x is not None}
    labels = known[cut.label_party].y
    assert labels is not None
    few = few_of(Examples(next(iter(x.values())) if len(x) == 1 else dict(x), labels))
    adapter.build(code, digest, "", training).check_examples(few.x, few.y)
