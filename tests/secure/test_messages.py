"""Statements of learners: one of another occasion or learner is refused, signed as it was or with other words put in."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from fedpipe.errors import DroppedError
from fedpipe.secure.messages import Occasion, check_statement
from tests.secure.table import OCCASION, roster_of
from tests.secure.test_hostile import OTHER, Begun, resigned

OTHERS: dict[str, Any] = {
    "federation": "other", "run": "r2", "session": "t", "round": 2, "plan": OTHER, "base": OTHER, "learner": "b",
}  # fmt: skip
ROSTER = roster_of("abcd")


@pytest.fixture(scope="module")
def statements() -> dict[str, Any]:
    begun = Begun()
    members, party = begun.members(), begun.party()
    return {
        "offer": party.offer(), "masked": party.sent, "agreement": party.agree(members),
        "reveal": begun.reveal("a", members, begun.agreements(members)),
    }  # fmt: skip


@pytest.mark.parametrize("field", OTHERS)
@pytest.mark.parametrize("kind", ["offer", "masked", "agreement", "reveal"])
def test_of_another_occasion_or_learner(statements: dict[str, Any], kind: str, field: str) -> None:
    found = statements[kind]
    assert check_statement(found, OCCASION, "a", ROSTER) == found
    if not hasattr(found, field):
        assert (kind, field) == ("offer", "base"), "a key is offered before the base is known"
        return
    changed = replace(found, **{field: OTHERS[field]})
    with pytest.raises(DroppedError, match=f"the {kind}'s {field} is"):
        check_statement(resigned(changed, changed.learner), OCCASION, "a", ROSTER)
    there = OCCASION._replace(**{field: OTHERS[field]}) if field in Occasion._fields else OCCASION
    with pytest.raises(DroppedError, match=r"does not fit|another key"):
        check_statement(changed, there, changed.learner, ROSTER)
