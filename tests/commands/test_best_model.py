"""The best model of a run, and the gate in front of published models: whole runs of a model whose loss is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpipe
from fedpipe.errors import FedpipeError
from fedpipe.registry.publication import versions
from fedpipe.store import open_store

MODEL = """
import numpy as np
from onnx import TensorProto, helper, numpy_helper

class learner:
    metrics, inputs = ("loss",), [("x", "float32", (None, 1))]

    def initial_weights(self, seed):
        return {"w": np.zeros(1, np.float32)}

    def train(self, weights, x, y):
        return {"w": weights["w"] + 1}, {"loss": 0.0}

    def evaluate(self, weights, x, y):
        return {"loss": abs(float(weights["w"][0]) - float(y[0]))}

    def predict(self, weights, x):
        return 0 * x + weights["w"]

    def convert(self, weights, opset):
        graph = helper.make_graph(
            [helper.make_node("Mul", ["x", "zero"], ["z"]), helper.make_node("Add", ["z", "w"], ["value"])], "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])],
            [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["batch", 1])],
            [numpy_helper.from_array(weights["w"], "w"), numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
"""
"""After round t the weight is t. A learner's loss is the distance from its labels, which are equal."""


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A federation of three learners that like the weights 2, 2 and 3."""
    (tmp_path / "model.py").write_text(MODEL)
    for name, liked in (("a", 2.0), ("b", 2.0), ("c", 3.0)):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((20, 1), np.float32), y=np.full(20, liked, np.float32))
    return {
        "name": "tiny", "store": str(tmp_path / "store"), "model": f"{tmp_path}/model.py:learner", "framework": "custom",
        "learners": [{"name": name, "data": str(tmp_path / f"{name}.npz")} for name in "abc"],
        "training": {"rounds": 4, "batch_size": 1, "start": "fresh"},
        "export": {"choose": "best", "metric": "loss"},
    }  # fmt: skip


def run(settings: dict[str, Any], name: str, out: Path, *, rounds: int = 4, **export: Any) -> dict[str, Any]:
    changed = {**settings, "training": {**settings["training"], "rounds": rounds}, "export": export}
    return dict(fedpipe.run(changed, name=name, out=out / name).summary)


def predicted(path: Path) -> float:
    return float(fedpipe.predict(path, np.zeros((1, 1), np.float32)).outputs[0].ravel()[0])


def published(settings: dict[str, Any]) -> list[int]:
    return versions(open_store(settings["store"]).below("tiny").below("models")).get("tiny", [])


def test_the_best_model_is_evaluated_and_published(settings: dict[str, Any], tmp_path: Path) -> None:
    summary = run(settings, "best", tmp_path, choose="best", metric="loss")
    assert summary["choice"] == {
        "metric": "loss", "over": "mean", "round": 2, "values": {"2": pytest.approx(1 / 3), "4": pytest.approx(5 / 3)},
    }  # fmt: skip
    assert [one["tests"] for one in summary["rounds"]] == [
        {name: {"loss": abs(number - liked)} for name, liked in (("a", 2), ("b", 2), ("c", 3))}
        for number in (1, 2, 3, 4)
    ]  # fmt: skip
    assert summary["evaluation"]["weights"] == summary["rounds"][1]["weights"]
    assert summary["evaluation"]["federated"]["metrics"]["loss"] == pytest.approx(1 / 3)
    assert predicted(tmp_path / "best" / "model.onnx") == 2.0
    file = {**settings, "export": {"choose": "best", "metric": "loss"}}
    assert fedpipe.export(file, tmp_path / "again.onnx")["digest"] == summary["onnx"]["digest"]
    assert "loss by learner and round" in (tmp_path / "best" / "report.html").read_text()
    fedpipe.plot(file, "best", tmp_path / "page.html", live=False)
    assert "loss by learner and round" in (tmp_path / "page.html").read_text()
    assert "This is the model of round 2, the best by loss" in (tmp_path / "best" / "report.html").read_text()
    again = run(settings, "best", tmp_path, choose="best", metric="loss", over="worst_learner")
    assert again["choice"]["round"] == 2  # 1 for `c`, as in round 3 for `a` and `b`
    last = run(settings, "last", tmp_path, rounds=2, choose="best", metric="loss")
    assert last["choice"]["round"] == 2
    assert published(settings) == [1, 2]
    compared = fedpipe.compare(file, "best", "last")
    assert compared.settings["training.rounds"] == ["4", "2"]
    assert compared.results["worst learner: loss"] == [1.0, 1.0]
    assert "<td>training.rounds</td><td>4</td><td>2</td>" in fedpipe.report(file, "best", beside=["last"])


def test_early_stopping_ends_the_run_and_the_best_model_is_kept(settings: dict[str, Any], tmp_path: Path) -> None:
    """Round 3 brings no improvement, which the tests of round 4 show: six rounds are left out."""
    settings["training"]["early_stopping"] = {"patience": 1}
    summary = run(settings, "stopped", tmp_path, rounds=10, choose="best", metric="loss")
    assert len(summary["rounds"]) == 4
    assert summary["choice"]["round"] == 2
    assert predicted(tmp_path / "stopped" / "model.onnx") == 2.0


def test_a_model_that_is_not_better_is_not_published(settings: dict[str, Any], tmp_path: Path) -> None:
    gate = {"metric": "loss", "publish_if": {"better_by": 0.5}}
    assert run(settings, "first", tmp_path, rounds=1, **gate)["onnx"]  # nothing was published before
    assert published(settings) == [1]
    worse = run(settings, "worse", tmp_path, rounds=4, **gate)
    assert worse["rejected"] == "loss is 1.667, not better than 1.333 of tiny version 1 by 0.5"
    assert worse["onnx"] == {}
    assert not (tmp_path / "worse" / "model.onnx").exists()
    assert "Not published:" in (tmp_path / "worse" / "report.html").read_text()
    assert {line.name: line.state for line in fedpipe.runs(settings)} == {
        "first": "ended",
        "worse": "ended, not published",
    }
    assert run(settings, "worse", tmp_path, rounds=4, **gate)["rejected"] == worse["rejected"]
    better = run(settings, "better", tmp_path, rounds=2, **gate)
    assert better["onnx"]["path"].endswith("/2/model.onnx")
    third = run(settings, "third", tmp_path, rounds=3, metric="loss", publish_if={"no_learner_worse_by": 0.5})
    assert third["rejected"] == "loss is 0.6667, not better than 0.3333 of tiny version 2"
    assert published(settings) == [1, 2]


def test_a_model_that_is_worse_for_a_learner_is_not_published(settings: dict[str, Any], tmp_path: Path) -> None:
    """From 3 to 2 the mean improves, but `c` loses 1."""
    assert run(settings, "first", tmp_path, rounds=3)["onnx"]
    unfair = run(settings, "unfair", tmp_path, rounds=2, metric="loss", publish_if={"no_learner_worse_by": 0.5})
    assert unfair["rejected"] == "loss of c is 1, 0 with tiny version 1: worse by more than 0.5"
    fair = run(settings, "fair", tmp_path, rounds=2, metric="loss", publish_if={"no_learner_worse_by": 1.0})
    assert fair["onnx"]["path"].endswith("/2/model.onnx")


def test_a_run_that_continues_the_published_model_tests_it_again(settings: dict[str, Any], tmp_path: Path) -> None:
    """All learners have come to like 1: the published model is better now than when it was published."""
    assert run(settings, "first", tmp_path, rounds=1)["onnx"]
    for name in "abc":
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((20, 1), np.float32), y=np.ones(20, np.float32))
    settings["training"]["start"] = "head"
    second = run(settings, "second", tmp_path, rounds=1, metric="loss", publish_if={})
    assert second["rejected"] == "loss is 1, not better than 0 of tiny version 1"


def test_a_metric_that_is_not_measured_is_found_first(settings: dict[str, Any]) -> None:
    with pytest.raises(FedpipeError, match="'accuracy' is neither the loss nor a compiled metric") as caught:
        fedpipe.check({**settings, "export": {"choose": "best", "metric": "accuracy"}})
    assert caught.value.where == "export.metric"
    assert caught.value.exit_code == 2
