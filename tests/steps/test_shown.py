"""The artifacts that Kubeflow's UI shows and compares, of a whole run and of rounds in memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import fedpipe
from fedpipe.engine.local import Event
from fedpipe.rounds.evaluation import Evaluation, Measured
from fedpipe.rounds.manifests import Spent
from fedpipe.rounds.tallies import ClassTally
from fedpipe.steps.evaluate import _outputs
from fedpipe.steps.shown import metrics_of_learner, metrics_of_run, page_of_confusion
from fedpipe.store import MemoryStore
from fedpipe.store.objects import digest_of
from tests.federations import make_plan, play


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], dict[str, str], Any]:
    """The metadata and the pages of a run's artifacts by step, and its summary."""
    from fedpipe.commands.init import Framework, init

    folder = tmp_path_factory.mktemp("shown") / "numpy"
    init(folder, framework=Framework.numpy)
    metadata: dict[str, dict[str, Any]] = {}
    pages: dict[str, str] = {}

    def listen(event: Event) -> None:
        if event.what == "done" and event.result:
            for name, listed in event.result["artifacts"].items():
                (artifact,) = listed["artifacts"]
                metadata[f"{event.task.name} {name}"] = artifact["metadata"]
                path = Path(artifact["uri"].removeprefix("file://"))
                if path.is_file():
                    pages[f"{event.task.name} {name}"] = path.read_text()

    result = fedpipe.run(folder / "federation.yaml", out=folder / "out", parameters={"rounds": 2}, listener=listen)
    return metadata, pages, result.summary


def test_the_run_and_each_learner_compare_by_the_same_names(shown: Any) -> None:
    metadata, _, summary = shown
    last = summary["rounds"][-1]
    run = next(found for name, found in metadata.items() if "coordinate" in name and name.endswith("metrics"))
    assert list(run) == ["loss", "accuracy", "rounds", "learners", "examples"]
    assert (run["loss"], run["rounds"], run["learners"]) == (last["loss"], 2, 5)
    learners = [found for name, found in metadata.items() if "learn " in name or name.startswith("learn")]
    assert len(learners) == 5
    for found in learners:
        assert list(found) == ["loss", "accuracy", "rounds", "votes", "examples"]
        assert (found["rounds"], found["votes"]) == (2, 0)
    assert sum(found["examples"] for found in learners) == run["examples"]
    weighted = sum(found["loss"] * found["examples"] for found in learners) / run["examples"]
    assert weighted == pytest.approx(last["loss"])


def test_the_session_has_a_page_with_curves_and_commands(shown: Any) -> None:
    page = next(page for name, page in shown[1].items() if "coordinate" in name and name.endswith("page"))
    for part in ("<svg", "digits, run-1: 2 rounds", "fedpipe watch run-1", "fedpipe report run-1", "hospital-e"):
        assert part in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_ten_classes_have_a_page_and_no_matrix_that_is_cut_off(shown: Any) -> None:
    metadata, pages, _ = shown
    assert metadata["evaluate confusion"] == {}
    assert "confusion matrix" in pages["evaluate matrix"]
    assert pages["evaluate matrix"].count("<rect") >= 100
    assert re.search(r"on the central test set: \d+ of 180 examples are predicted correctly", pages["evaluate matrix"])
    assert metadata["evaluate metrics"]["central_accuracy"] > 0.5


def evaluation_of(classes: int) -> Evaluation:
    matrix = tuple(tuple(int(i == j) for j in range(classes)) for i in range(classes))
    ones = (1,) * classes
    tally = ClassTally(task="multiclass", form="probabilities", true=ones, taken=ones, right=ones, confusion=matrix)
    return Evaluation(
        weights=digest_of(b""), central=Measured(examples=classes, metrics={}), confusion=matrix,
        classes=tuple(f"c{k}" for k in range(classes)), tallies={"central": {"": tally}},
    )  # fmt: skip


@pytest.mark.parametrize(("classes", "compared"), [(2, True), (6, True), (7, False)])
def test_few_classes_are_drawn_by_kubeflow_too(classes: int, compared: bool) -> None:
    outputs = _outputs(evaluation_of(classes))
    assert ("confusionMatrix" in outputs.confusion.metadata) == compared
    assert f"c{classes - 1}" in outputs.matrix.content


def test_a_regression_has_a_page_that_says_so() -> None:
    page = page_of_confusion(Evaluation(weights=digest_of(b"")))
    assert "the model is not a classifier" in page.content


def test_privacy_is_the_largest_epsilon(store: MemoryStore) -> None:
    from msgspec.structs import replace

    plan = make_plan()
    record = play(store, plan)
    spent = [Spent(events=1, epsilon_poisson=value, epsilon_unamplified=None, delta=1e-5, target_epsilon=9.0,
                   sampling="poisson") for value in (1.0, 3.0)]  # fmt: skip
    updates = tuple(replace(update, spent=one) for update, one in zip(record.updates, [*spent, None], strict=True))
    assert metrics_of_run(plan.federation, replace(record, updates=updates)).metadata["epsilon"] == 3.0
    assert metrics_of_learner(updates[0], 3, 0).metadata["epsilon"] == 1.0
    assert metrics_of_learner(None, 0, 2).metadata == {"rounds": 0, "votes": 2}
