"""The table of votes, as lines on the terminal."""

from __future__ import annotations

from rich.text import Text

from fedpipe.cli.vote_table import VoteTable
from tests.cli.events import event

TOLD = ("a", "yes", 0.5), ("b", "no", 1.25)


def told(width: int) -> list[str]:
    """The lines for a round in which a and b vote, and c does not."""
    table, lines = VoteTable(width), list[Text]()
    for name, ballot, loss in TOLD:
        lines += table.lines(event("vote", 1, {"ballot": ballot, "vote_loss": loss, "test_loss": loss / 2}, name))
    lines += table.lines(event("vote", 1, {"absent": "too few [examples]"}, "c"))
    decided = {"criterion": "loss", "rule": "others_vote", "proposer": "a", "accepted": True, "approvals": 1,
               "voters": 2, "epsilon": 1.5, "dropped": ""}  # fmt: skip
    return [line.plain for line in lines + table.lines(event("tally", 1, decided))]


def test_a_row_holds_scores_and_ballots() -> None:
    absent, head, names, row = told(120)
    assert "absent: too few [examples]" in absent
    assert "loss on vote and test part" in head
    assert [c for c in names if c in "abc"] == ["a", "b", "c"]
    assert "accepted 1/2 ε 1.5" in row
    assert "0.5000 0.2500" in row
    assert "✗1.2500 0.6250" in row


def test_a_narrow_terminal_gets_ballots() -> None:
    row = told(60)[-1]
    assert "0.5000" not in row
    assert "✗" in row


def test_a_round_without_a_proposal() -> None:
    decided = {"criterion": "loss", "rule": "others_vote", "proposer": "a", "accepted": False, "dropped": "a: ill"}
    (row,) = VoteTable(100).lines(event("tally", 2, decided))
    assert "a: ill" in row.plain
