"""Numbers and texts leave a site as its policy allows; names of metrics and error messages carry no data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedpipe.codec import converted
from fedpipe.data.disclosure import released_report
from fedpipe.data.statistics import ColumnReport, Report
from fedpipe.learners.contribute import contribute
from fedpipe.rounds import manifests
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.evaluation import Score
from fedpipe.rounds.floors import FLOORS, read_floors
from fedpipe.rounds.manifests import Ballot, Dropped, Scores, Update
from fedpipe.rounds.releases import (
    BUDGET_SPENT,
    REASON_STAYS,
    USUAL_METRICS,
    WITHHELD,
    Leaving,
    names_that_leave,
    released_ballot,
    released_metrics,
    released_reason,
    released_score,
    released_update,
)
from fedpipe.rounds.tallies import ClassTally
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import digest_of, find
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan

DIGEST = digest_of(b"")


def leaving(**more: Any) -> Leaving:
    return converted(more, Leaving)


def update(**more: Any) -> Update:
    return Update(
        federation="tiny", run="r1", round=1, learner="b", base=DIGEST, weights=DIGEST, size=1, examples=40,
        **{"metrics": {"loss": 1.0, "accuracy": 0.5}, **more},
    )  # fmt: skip


def test_usual_metrics_leave_as_they_are() -> None:
    given = update(tested=manifests.Tested(examples=10, metrics={"loss": 1.0, "val_auc": 0.5}))
    assert released_update(leaving(), given) == (given, ())


@pytest.mark.parametrize("name", ["patient_4711_positive", "loss ", "loss\n", "x" * 100, "LOSS", "val_val_loss", ""])
def test_names_that_could_carry_data_stay(name: str) -> None:
    made = released_update(leaving(), update(metrics={"loss": 1.0, name: 2.0}))
    assert made.statement.metrics == {"loss": 1.0}
    assert made.withheld == (f"the metric {name!r}",)


def test_a_list_replaces_the_usual_names() -> None:
    assert released_metrics(leaving(metrics=["dice"]), {"dice": 0.1, "loss": 1.0}, 9) == (
        {"dice": 0.1}, ("the metric 'loss'",)
    )  # fmt: skip
    assert released_metrics(leaving(metrics=[]), {"loss": 1.0}, 9)[0] == {}


@pytest.mark.parametrize("listed", [{}, {"metrics": []}, {"metrics": ["dice", "loss", "dice"]}])
def test_the_names_that_leave_are_those_that_are_kept(listed: dict[str, Any]) -> None:
    """Of a secure sum, the names are agreed on before the metrics are measured."""
    leaves = leaving(**listed)
    names = names_that_leave(leaves)
    assert names is not None
    measured = dict.fromkeys((*USUAL_METRICS, "val_loss", "test_auc", "val_val_loss", "dice", "loss2", ""), 1.0)
    assert released_metrics(leaves, measured, 9)[0].keys() == measured.keys() & set(names)
    assert names == tuple(sorted(set(names)))
    assert names_that_leave(None) is None


def test_too_few_examples_behind_a_number() -> None:
    given = update(tested=manifests.Tested(examples=9, metrics={"loss": 1.0}))
    made = released_update(leaving(examples=10), given)
    assert made.statement.metrics == given.metrics
    assert made.statement.tested is None
    assert made.withheld == ("1 metrics of 9 examples, of which the policy needs 10",)
    assert released_update(leaving(examples=9), given) == (given, ())


def ballot(**more: Any) -> Ballot:
    scores = Scores(vote=manifests.Tested(examples=5, metrics={"loss": 1.0, "secret": 4711.0}))
    return Ballot(
        federation="tiny", run="r1", round=1, learner="b", base=DIGEST, candidate=DIGEST, approve=False,
        current=scores, proposed=scores, **more,
    )  # fmt: skip


def test_a_ballot_keeps_its_criterion() -> None:
    made = released_ballot(leaving(), ballot(why="ValueError: patient 4711"))
    assert made.statement.current.vote.metrics == {"loss": 1.0}
    assert made.statement.proposed.vote.metrics == {"loss": 1.0}
    assert made.statement.why == REASON_STAYS
    assert made.withheld == ("the metric 'secret'",)
    assert released_ballot(leaving(reasons=True), ballot(why="x")).statement.why == "x"
    assert released_ballot(leaving(), ballot()).statement.why == ""


def tally(*true: int) -> ClassTally:
    return ClassTally(task="multiclass", form="probabilities", true=true, taken=true, right=true)


def score(**more: Any) -> Score:
    return Score(
        learner="b", weights=DIGEST, examples=40, **{"metrics": {"loss": 1.0}, "states": ((1.0, 2.0),), **more}
    )


def test_a_test_leaves_whole_or_not_at_all() -> None:
    assert released_score(leaving(), score()) == (score(), ())
    made = released_score(leaving(), score(metrics={"loss": 1.0, "p4711": 1.0}, states=((1.0,), (2.0,))))
    assert made.statement == Score(learner="b", weights=DIGEST, why=WITHHELD)
    assert made.withheld == ("the metric 'p4711'",)
    assert released_score(leaving(examples=41), score()).statement == Score(learner="b", weights=DIGEST, why=WITHHELD)


@pytest.mark.parametrize(
    ("limits", "counts", "leaves"),
    [({}, (1, 39), True), ({"examples": 5}, (4, 36), False), ({"examples": 5}, (5, 35), True),
     ({"examples": 5}, (0, 40), True), ({"tallies": False}, (20, 20), False)],
)  # fmt: skip
def test_counts_by_class(limits: dict[str, Any], counts: tuple[int, ...], leaves: bool) -> None:
    made = released_score(leaving(**limits), score(tallies={"": tally(*counts)}))
    assert isinstance(made.statement, Score)
    assert (made.statement.tallies == {"": tally(*counts)}) is leaves
    assert made.statement.uncounted == ({} if leaves else {"": WITHHELD})
    assert made.withheld == (() if leaves else ("the counts of the output",))


def test_reasons_of_user_code_stay() -> None:
    dropped = Dropped(learner="b", why="ValueError: patient 4711 (line 3)", lasting=True)
    made = released_reason(leaving(), dropped)
    assert made.statement == Dropped(learner="b", why=REASON_STAYS, lasting=True)
    assert made.withheld == (dropped.why,)
    assert released_reason(leaving(reasons=True), dropped) == (dropped, ())
    spent = Dropped(learner="b", why="epsilon would be 4.1", lasting=True, code="DP_BUDGET_EXCEEDED")
    assert released_reason(leaving(), spent).statement.why == BUDGET_SPENT
    untested = Score(learner="b", weights="", why="patient 4711")
    assert released_score(leaving(), untested).statement.why == REASON_STAYS


@pytest.fixture
def floors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Floors as a learner keeps them next to its key."""
    (tmp_path / "floors").write_text("leaves: {metrics: [loss], examples: 3}\n")
    monkeypatch.setenv(FLOORS, str(tmp_path / "floors"))


@pytest.mark.usefixtures("floors")
class TestFloors:
    """Statements of a learner pass its floors before they are signed."""

    def test_an_update(self, store: MemoryStore) -> None:
        plan = make_plan(make_federation(names=("b",)))
        base = begin(store, plan, fresh).weights
        learner = PlusOneLearner(1.0, examples=5)
        made = contribute(store, plan, "b", 1, base, lambda: learner)
        assert isinstance(made, Update)
        assert set(made.metrics) <= {"loss"}
        found = find(store, keys.update("b", plan.run, 1), Update)
        assert found == made

    def test_a_reason(self, store: MemoryStore) -> None:
        plan = make_plan(make_federation(names=("b",)))
        base = begin(store, plan, fresh).weights
        contribute(store, plan, "b", 1, base, lambda: PlusOneLearner(1.0, fails="patient 4711"))
        found = find(store, keys.answer("b", plan.run, 1, "dropped"), Dropped)
        assert found is not None
        assert found.why == REASON_STAYS

    def test_statistics(self) -> None:
        sex = ColumnReport(name="sex", kind="category", missing=0, categories={"f": 3, "m": 2})
        report = Report(learner="b", examples=5, columns=(sex,), classes={"yes": 2, "no": 3})
        leaves = read_floors().leaves
        assert leaves is not None
        made = released_report(leaves, report)
        assert made.columns[0].categories == {"f": 3}
        assert made.classes == {"no": 3}
        assert released_report(leaves, Report(learner="b", why="row 7: 'x'")).why == REASON_STAYS
