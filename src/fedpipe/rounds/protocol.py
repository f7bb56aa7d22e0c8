"""The protocol of a run: one number, which all its parties speak.

The plan of a run has the number (`Plan.format`), and the manifests of the run follow it. A version speaks its own
number and the one before. So sites need not be upgraded on one day: the coordinator takes the lowest number of those
that it knows.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedpipe.errors import RoundError
from fedpipe.store import objects


def spoken() -> tuple[int, ...]:
    """Return the numbers that this version speaks, its own last."""
    return tuple(number for number in (objects.PROTOCOL - 1, objects.PROTOCOL) if number >= 1)


def common(others: Iterable[int]) -> int:
    """Return the number of a new run: the highest that this version and the others speak, as far as it can.

    Args:
        others: the own number of each other party that is known.
    """
    return max(min([objects.PROTOCOL, *others]), spoken()[0])


def check_spoken(number: int, who: str) -> None:
    """Refuse a run whose number this version does not speak.

    Args:
        number: of the run's plan.
        who: names this party.

    Raises:
        RoundError: with the party to upgrade.
    """
    if number in spoken():
        return
    mine = " and ".join(map(str, spoken()))
    newer = number > objects.PROTOCOL
    remedy = f"Upgrade fedpipe of {who}." if newer else "Upgrade fedpipe of the coordinator, or begin another run."
    raise RoundError(f"the run speaks protocol {number}, and {who} speaks {mine}", remedy=remedy)
