from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.errors import DroppedError
from fedpipe.federation.algorithms import Vote
from fedpipe.rounds.manifests import Ballot, Outcome, Scores
from fedpipe.rounds.manifests import Tested as Means
from fedpipe.rounds.voting import approves, check_ballot, electorate, proposer_of, tally

BASE, CANDIDATE = "sha256:" + "0" * 64, "sha256:" + "1" * 64
NAMES = ("a", "b", "c", "d", "e")


def scores(value: float | None, metric: str = "loss") -> Scores:
    return Scores(vote=Means(examples=4, metrics={} if value is None else {metric: value}))


def ballot(learner: str, approve: bool, **more: object) -> Ballot:
    content = {
        "federation": "tiny", "run": "r1", "round": 1, "learner": learner, "base": BASE, "candidate": CANDIDATE,
        "approve": approve, "current": scores(1.0), "proposed": scores(0.5 if approve else 1.5),
    }  # fmt: skip
    return Ballot(**{**content, **more})  # type: ignore[arg-type]


def cast(text: str) -> list[Ballot]:
    """`yn-y` is yes of a, no of b, c absent, yes of d."""
    return [ballot(name, mark == "y") for name, mark in zip(NAMES, text, strict=False) if mark != "-"]


# rule, threshold, absent voters, ballots of a, b, c, ... (a proposes), approvals, voters, accepted
TABLE = [
    ("all_vote", 0.5, "against", "yyynn", 3, 5, True),
    ("all_vote", 0.5, "against", "yynnn", 2, 5, False),  # 2.5 is needed
    ("all_vote", 0.5, "against", "yynn", 2, 4, True),  # a tie reaches the bar
    ("all_vote", 0.6, "against", "yyynn", 3, 5, True),  # 0.6 of 5 is 3, exactly
    ("all_vote", 0.61, "against", "yyynn", 3, 5, False),
    ("all_vote", 1.0, "against", "yyyyy", 5, 5, True),
    ("all_vote", 1.0, "against", "yyyyn", 4, 5, False),
    ("all_vote", 0.0, "against", "nnnnn", 0, 5, True),
    ("all_vote", 0.5, "against", "y", 1, 1, True),
    ("all_vote", 0.5, "against", "n", 0, 1, False),
    ("others_vote", 0.5, "against", "ynnyy", 2, 4, True),  # the proposer's yes is void
    ("others_vote", 0.5, "against", "ynnny", 1, 4, False),
    ("others_vote", 0.5, "against", "nyynn", 2, 4, True),
    ("others_vote", 1.0, "against", "nyyyy", 4, 4, True),
    ("others_vote", 1.0, "against", "yyyyn", 3, 4, False),
    ("others_vote", 0.0, "against", "nnnnn", 0, 4, True),
    ("others_vote", 0.5, "against", "y", 0, 0, True),  # alone: nobody is asked
    ("others_vote", 1.0, "against", "n", 0, 0, True),
    ("all_vote", 0.5, "against", "yy---", 2, 5, False),  # absent is a no
    ("all_vote", 0.5, "left_out", "yy---", 2, 2, True),
    ("all_vote", 0.5, "left_out", "yn---", 1, 2, True),
    ("all_vote", 0.75, "left_out", "yyn--", 2, 3, False),
    ("others_vote", 0.5, "left_out", "y-y--", 1, 1, True),
    ("others_vote", 0.5, "left_out", "-nyn-", 1, 3, False),
    ("all_vote", 0.5, "against", "-----", 0, 5, False),  # every voter absent
    ("all_vote", 0.5, "left_out", "-----", 0, 5, False),  # nobody looked at it: nobody accepted it
    ("all_vote", 0.0, "left_out", "-----", 0, 5, True),
    ("others_vote", 0.01, "left_out", "y----", 0, 4, False),
    ("others_vote", 0.0, "against", "-----", 0, 4, True),
]


@pytest.mark.parametrize(("rule", "threshold", "absent", "marks", "approvals", "voters", "accepted"), TABLE)
def test_the_rules_on_hand_made_ballots(
    rule: str, threshold: float, absent: str, marks: str, approvals: int, voters: int, accepted: bool
) -> None:
    vote = Vote(rule=rule, threshold=threshold, absent=absent)  # type: ignore[arg-type]
    found = tally(vote, NAMES[: len(marks)], cast(marks), "a")
    assert found == Outcome(approvals=approvals, voters=voters, accepted=accepted)


@given(st.decimals(0, 1, places=4), st.integers(1, 2000), st.integers(0, 2000))
def test_the_bar_is_exact(threshold: Decimal, learners: int, approvals: int) -> None:
    """Against decimal arithmetic on what the user wrote: 0.55 x 100 is 55, not 55.00000000000001."""
    names = [f"l{k}" for k in range(learners)]
    ballots = [ballot(name, k < approvals) for k, name in enumerate(names)]
    found = tally(Vote(rule="all_vote", threshold=float(threshold)), names, ballots)
    assert found.accepted == (Decimal(min(approvals, learners)) >= threshold * learners)


@given(st.permutations(cast("ynyny")), st.sampled_from(["all_vote", "others_vote"]))
def test_the_order_of_ballots_does_not_matter(ballots: list[Ballot], rule: str) -> None:
    vote = Vote(rule=rule, threshold=0.6)  # type: ignore[arg-type]
    assert tally(vote, NAMES, ballots, "b") == tally(vote, NAMES, cast("ynyny"), "b")


def test_an_aggregated_model_has_no_proposer_so_all_vote() -> None:
    assert electorate(Vote(rule="others_vote"), NAMES) == NAMES
    assert electorate(Vote(rule="others_vote"), NAMES, "c") == ("a", "b", "d", "e")
    assert electorate(Vote(rule="all_vote"), NAMES, "c") == NAMES


def test_a_stranger_has_no_vote() -> None:
    assert tally(Vote(rule="all_vote"), ("a", "b"), [ballot("x", True), ballot("y", True)]).approvals == 0


def test_round_robin() -> None:
    assert [proposer_of(NAMES, number) for number in (1, 2, 5, 6, 11)] == ["a", "b", "e", "a", "a"]
    assert proposer_of((), 3) == ""


class TestApproval:
    @pytest.mark.parametrize(
        ("current", "proposed", "yes"),
        [
            (1.0, 0.9, True),
            (1.0, 1.0, False),
            (1.0, 1.1, False),
            (1.0, None, False),
            (None, 5.0, True),
            (None, None, False),
        ],
    )
    def test_strictly_less(self, current: float | None, proposed: float | None, yes: bool) -> None:
        assert approves(Vote(), scores(current), scores(proposed)) is yes

    def test_strictly_more(self) -> None:
        vote = Vote(criterion="accuracy", minimise=False)
        assert approves(vote, scores(0.5, "accuracy"), scores(0.6, "accuracy"))
        assert not approves(vote, scores(0.5, "accuracy"), scores(0.5, "accuracy"))

    def test_no_vote_part_is_no_approval(self) -> None:
        assert not approves(Vote(), scores(1.0), Scores())


CHECK = {
    "vote": Vote(), "federation": "tiny", "run": "r1", "number": 1, "learner": "a", "base": BASE, "candidate": CANDIDATE,
}  # fmt: skip


class TestBallotsFromOutside:
    def test_a_good_one(self) -> None:
        check_ballot(ballot("a", True), **CHECK)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "change",
        [
            {"federation": "other"},
            {"run": "r2"},
            {"round": 2},
            {"learner": "b"},
            {"base": CANDIDATE},
            {"candidate": BASE},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_of_another_vote(self, change: dict[str, object]) -> None:
        with pytest.raises(DroppedError, match=f"the ballot's {next(iter(change))} is"):
            check_ballot(ballot(**{"learner": "a", "approve": True, **change}), **CHECK)  # type: ignore[arg-type]

    @pytest.mark.parametrize("approve", [True, False])
    def test_one_that_contradicts_its_scores(self, approve: bool) -> None:
        wrong = ballot("a", approve, proposed=scores(1.5 if approve else 0.5))
        with pytest.raises(DroppedError, match="contradicts its own scores"):
            check_ballot(wrong, **CHECK)  # type: ignore[arg-type]
