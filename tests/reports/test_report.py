"""Tests the report: the final model's quality, explanations, and text from outside."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest

from fedpipe.data.schema import Column, Kind, Schema
from fedpipe.learners.tallying import counter_of
from fedpipe.reports.comparison import compare
from fedpipe.reports.remarks import beginning, gap, held_data
from fedpipe.reports.report import number, render
from fedpipe.reports.story import Story, read_story, summarise
from fedpipe.rounds.evaluation import Evaluation, Measured, measure_all
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.tallies import Head, Tally
from fedpipe.steps.evaluate import flat_metrics
from fedpipe.store import MemoryStore
from tests.federations import make_federation, make_plan, play

RNG = np.random.default_rng(3)
EVIL = "<script>\"evil\" & 'bad'</script>"
Y = np.array([0, 1] * 20)
P = np.clip(Y * 0.4 + 0.3 + RNG.normal(size=40) * 0.2, 0.01, 0.99)


def tally(head: Head, outputs: Any, labels: Any) -> Tally:
    counter = counter_of(head)
    counter.add(np.asarray(outputs), np.asarray(labels))
    found = counter.tally()
    assert found is not None
    return found


BINARY = {"": tally(Head("", "binary"), P, Y)}
THREE = {"": tally(Head("", "multiclass", width=3), np.eye(3)[Y], Y)}
VALUES = {"": tally(Head("", "regression", width=1), P * 100, Y * 100.0)}
COLUMNS = {"": tally(Head("", "regression", width=6), RNG.normal(size=(30, 6)), RNG.normal(size=(30, 6)))}
BOTH = {"sick": BINARY[""], EVIL: VALUES[""]}
LABELS = {"": tally(Head("", "multilabel", width=2), np.stack([P, P], 1), np.stack([Y, Y], 1))}
MARGINS = {"": tally(Head("", "binary", "margins"), P * 2 - 1, Y)}
RAW = {"": tally(Head("", "binary"), P * 9 - 4, Y)}


@pytest.fixture
def story(store: MemoryStore) -> Story:
    play(store, make_plan())
    return read_story(store, "r1")


def evaluated(story: Story, tallies: dict[str, Tally], classes: tuple[str, ...] = (), **more: Any) -> Story:
    """The story with an evaluation of these tallies, central and federated."""
    measured = Measured(examples=40, metrics={"loss": 0.5}, measures=measure_all(tallies))
    evaluation = Evaluation(
        weights=story.records[-1].weights, central=measured, federated=measured, learners={"a": measured, "b": measured},
        classes=classes, tallies={"central": tallies, "federated": tallies}, **more,
    )  # fmt: skip
    return msgspec.structs.replace(story, evaluation=evaluation)


def check_pictures(page: str) -> list[str]:
    """Every picture is valid XML with a description; returns all their texts."""
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    texts = []
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert len(root.get("aria-label", "")) > 10
        assert "nan" not in picture.replace("nance", "")
        texts += [element.text or "" for element in root.iter()]
    return texts


class TestQuality:
    def test_a_binary_classifier(self, story: Story) -> None:
        page = render(evaluated(story, BINARY, ("healthy", "sick")))
        texts = check_pictures(page)
        for part in ("confusion matrix", "ROC curve", "precision by recall", "calibration", "healthy", "predicted"):
            assert part in texts
        assert any(text.startswith(f"sick: AUC {measure_all(BINARY)['auc']:.4f}") for text in texts)
        for part in (
            "<th>sick if above</th>",
            "0.55</td>",
            "<td>healthy</td>",
            "F1 of sick is highest",
            "<th>auc</th>",
        ):
            assert part in page

    @pytest.mark.parametrize(
        ("tallies", "parts"),
        [
            (THREE, ["<th>auc_macro</th>", "<td>2</td>", "confusion matrix"]),
            (VALUES, ["<th>r2</th>", "<th>mae</th>", "residuals by prediction", "mean residual"]),
            (COLUMNS, ["residuals of column 3", "Pictures show the first 4 columns"]),
            (BOTH, ["sick on the central test set", "<th>sick_auc</th>", "&lt;script&gt;"]),
            (LABELS, ["<th>f1_macro</th>", "ROC curve"]),
            (MARGINS, ["takes margins, not probabilities"]),
            (RAW, ["The outputs are not probabilities"]),
        ],
        ids=["three", "values", "columns", "both", "labels", "margins", "raw"],
    )
    def test_every_kind_of_model(self, story: Story, tallies: dict[str, Tally], parts: list[str]) -> None:
        page = render(evaluated(story, tallies))
        check_pictures(page)
        for part in parts:
            assert part in page

    def test_text_from_outside_is_escaped(self, story: Story) -> None:
        shown = evaluated(
            story, BINARY, (EVIL, f"{EVIL}\x00\x1b"), left_out={EVIL: EVIL}, uncounted={EVIL: {EVIL: EVIL}}
        )
        page = render(shown)
        check_pictures(page)
        assert "<script" not in page
        assert EVIL not in page

    def test_each_learner_has_a_line_and_a_reason(self, story: Story) -> None:
        page = render(evaluated(story, BINARY, left_out={"c": "no power"}, uncounted={"a": {"": "the labels are odd"}}))
        assert "c did not test the final model: no power" in page
        assert "a has no measures: the labels are odd" in page
        assert page.count("<td>a</td>") >= 2


class TestShortLists:
    def test_the_summary_has_measures_and_classes_but_no_tallies(self, story: Story) -> None:
        found = summarise(evaluated(story, BINARY, ("healthy", "sick")))["evaluation"]
        assert "tallies" not in found
        assert found["central"]["measures"] == measure_all(BINARY)
        assert found["federated"]["classes"]["sick"]["examples"] == 20
        assert found["learners"]["a"]["measures"]["f1"] > 0.5

    def test_many_classes_are_not_listed(self, story: Story) -> None:
        many = {"": tally(Head("", "multiclass", width=30), np.eye(30), np.arange(30))}
        assert "classes" not in summarise(evaluated(story, many))["evaluation"]["central"]
        check_pictures(render(evaluated(story, many)))

    @pytest.mark.parametrize(
        ("tallies", "names"),
        [
            (BINARY, {"accuracy", "auc", "f1", "loss"}),
            (THREE, {"accuracy", "auc_macro", "f1_macro", "loss"}),
            (VALUES, {"r2", "mae", "loss"}),
            (LABELS, {"auc_macro", "f1_macro", "loss"}),
        ],
    )
    def test_kubeflow_and_comparisons_show_the_main_ones(
        self, story: Story, tallies: dict[str, Tally], names: set[str]
    ) -> None:
        shown = evaluated(story, tallies)
        assert shown.evaluation is not None
        assert set(flat_metrics(shown.evaluation)) == {
            f"{kind}_{n}" for kind in ("central", "federated") for n in names
        }
        found = compare([shown, shown]).results
        assert {name.removeprefix("central: ") for name in found if name.startswith("central")} == names


class TestExplanations:
    def test_terms_settings_and_data(self, story: Story) -> None:
        page = render(story)
        for part in (
            "the same model on the test parts of all learners", "This run has neither", "The run began with fresh weights",
            "<td>batch size</td><td>1</td>", "dealt out", "All settings",
        ):  # fmt: skip
            assert part in page
        assert check_pictures(page)

    def test_a_run_that_continues_says_from_where(self, store: MemoryStore) -> None:
        play(store, make_plan())
        play(store, make_plan(run="r2"))
        second = read_story(store, "r2")
        assert beginning(second, {}) == "The run began from HEAD, the model of round 3 of run r1."
        assert beginning(second, {"begun_from": {"run": "x", "round": 2}}).endswith("round 2 of run x.")
        assert beginning(second, {"begun_from": None}) == "The run began with fresh weights."

    def test_the_data_of_learners_that_bring_their_own(self, store: MemoryStore) -> None:
        federation = make_federation(learners=[{"name": "a", "data": "x.npz"}, {"name": "b"}, {"name": "c"}])
        play(store, make_plan(federation))
        found = {held.learner: held for held in held_data(evaluated(read_story(store, "r1"), BINARY))}
        assert (found["a"].own, found["a"].train, found["a"].test, found["a"].vote) == (True, 1, 40, None)
        assert (found["b"].own, found["b"].train) == (False, 2)
        assert found["c"].test == 2

    @pytest.mark.parametrize(
        ("training", "shared", "far"),
        [
            ({"accuracy": 0.96, "loss": 0.1}, {"accuracy": 0.56, "loss": 3.0}, "reached accuracy 0.96, but the shared"),
            ({"accuracy": 0.96, "loss": 0.1}, {"accuracy": 0.90, "loss": 3.0}, ""),
            ({"accuracy": 0.56}, {"accuracy": 0.96}, ""),
            ({"loss": 10.0}, {"loss": 50.0}, "reached loss 10.00, but the shared model has 50.00"),
            ({"loss": 10.0}, {"loss": 20.0}, ""),
            ({"loss": 10.0}, {"mae": 2000.0}, ""),
        ],
    )
    def test_a_gap_is_remarked(
        self, story: Story, training: dict[str, float], shared: dict[str, float], far: str
    ) -> None:
        records = (*story.records[:-1], msgspec.structs.replace(story.records[-1], metrics=training))
        evaluation = Evaluation(weights=records[-1].weights, federated=Measured(examples=9, metrics=shared))
        changed = msgspec.structs.replace(story, records=records, evaluation=evaluation)
        found = gap(changed)
        assert (far in found.what) if far and found else (not far and found is None)
        assert ("BatchNormalization" in render(changed)) == bool(far)

    @pytest.mark.parametrize(("statistics", "kind", "remarked"), [
        (False, "number", True), (False, "category", False), (True, "number", False),
    ])  # fmt: skip
    def test_a_table_without_statistics_is_remarked(
        self, story: Story, statistics: bool, kind: Kind, remarked: bool
    ) -> None:
        schema = Schema(columns=(Column(name="age", kind=kind),), statistics=statistics)
        page = render(msgspec.structs.replace(story, schema=schema))
        assert ("not normalised: no learner disclosed statistics" in page) == remarked

    def test_a_run_without_rounds(self, store: MemoryStore) -> None:
        plan: Plan = make_plan()
        play(store, plan)
        whole = read_story(store, "r1")
        first = msgspec.structs.replace(whole, records=whole.records[:1])
        assert gap(first) is None
        assert "Rounds" in render(first)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.0, "0.0000"), (0.5, "0.5000"), (1234.5, "1234.5000"), (1e6, "1e+06"), (2e-5, "2e-05")],
)
def test_numbers_in_tables(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_report_imports_no_library_for_plots() -> None:
    code = (
        "import sys; from fedpipe.store import MemoryStore; from tests.federations import make_plan, play;"
        "from fedpipe.reports.report import render; from fedpipe.reports.story import read_story;"
        "store = MemoryStore('memory:x'); play(store, make_plan()); render(read_story(store, 'r1'));"
        "print(sorted({'matplotlib', 'PIL', 'pyarrow', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
