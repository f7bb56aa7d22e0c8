"""Whole runs of learners of a user's own functions: each step in their environment, killed runs, votes, and serving."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import fedpipe
from fedpipe.commands.check import check
from fedpipe.commands.init import Algorithm, Framework, init
from fedpipe.engine.local import Event
from fedpipe.errors import FedpipeError, InputError, ModelError
from tests.commands.framework_examples import copied, trained_and_served
from tests.commands.runs import records, run_killed, store_of
from tests.federations import change
from tests.models import CUSTOM_DIGITS
from tests.served import serving


def written(folder: Path, algorithm: Algorithm = Algorithm.averaging, **changes: str) -> Path:
    """Writes a federation whose learners are functions in NumPy."""
    init(folder, algorithm, Framework.numpy)
    (folder / "model.py").write_text(CUSTOM_DIGITS)
    rounds = {Algorithm.averaging: "rounds: 10", Algorithm.collective: "rounds: 20"}[algorithm]
    kind = {"framework: numpy": "framework: custom", "model.py:build": "model.py:learner", rounds: "rounds: 3"}
    return change(folder, **{**kind, **changes})


def test_from_the_file_to_a_served_model(tmp_path: Path) -> None:
    """With a robust rule, and a vote on each aggregate."""
    robust = "before: [{name: nearest_neighbour_mixing, byzantine: 1}]\n  rule: median\n  vote: {rule: all_vote}"
    file = written(tmp_path, **{"rule: mean": robust})
    assert "650 parameters, input (None, 8, 8, 1), learner of model.py" in str(check(file))
    tasks: list[Event] = []
    summary = fedpipe.run(file, out=tmp_path / "out", listener=tasks.append).summary
    used = {event.task.step: event.task.environment for event in tasks}
    assert {used[step] for step in ("initialise", "learn", "evaluate", "export")} == {"custom"}
    assert used["coordinate"] == used["report"] == "core"
    assert summary["evaluation"]["central"]["metrics"]["accuracy"] > 0.85
    assert summary["evaluation"]["federated"]["measures"]["f1_macro"] > 0.85
    assert [entry["vote"]["voters"] for entry in summary["rounds"]] == [0, 5, 5, 5]
    assert summary["onnx"]["max_abs_difference"] < 1e-6
    again = fedpipe.export(file, tmp_path / "again.onnx")
    assert again["digest"] == summary["onnx"]["digest"]
    with np.load(file.parent / "digits.npz") as data:
        x, y = data["x"], data["y"]
    found = fedpipe.predict(tmp_path / "out" / "model.onnx", x)
    assert np.mean(found.classes == y) > 0.85
    with serving(tmp_path / "server", "--store", f"file://{file.parent}/store/digits") as server:
        server.wait_for("digits", 1)
        row = {"name": "x", "shape": [1, 8, 8, 1], "datatype": "FP32", "data": x[:1].ravel().tolist()}
        answer = server.post("/v2/models/digits/infer", json={"inputs": [row]}).json()
    np.testing.assert_allclose(answer["outputs"][0]["data"], found.outputs[0], atol=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "rounds_per_step", "what", "count"),
    [
        (Algorithm.averaging, "all", "coordinate answered", 7),
        (Algorithm.averaging, "1", "train done", 7),
    ],
    ids=["session", "steps"],
)
def test_the_same_bytes_after_sigkill(
    tmp_path: Path, algorithm: Algorithm, rounds_per_step: str, what: str, count: int
) -> None:
    file = written(tmp_path, algorithm)
    whole = fedpipe.run(file, out=tmp_path / "out").summary
    change(tmp_path, **{"rounds_per_step: all": f"rounds_per_step: {rounds_per_step}"})
    run_killed(file, tmp_path / "killed", what, count)
    assert store_of(tmp_path / "killed").size("runs/run-1/3/record") is None
    again = fedpipe.run(file, store=str(tmp_path / "killed"), out=tmp_path / "again").summary
    assert records(again) == records(whole)
    assert again["onnx"]["digest"] == whole["onnx"]["digest"]


def test_a_learner_whose_functions_fail_drops_out(tmp_path: Path) -> None:
    """Its process ends, or raises, in the second round only; the others continue."""
    file = written(tmp_path)
    code = CUSTOM_DIGITS.replace(
        "    generator, w, metrics",
        "    if len(x) < 200 and abs(weights['bias']).max() > 0:\n        import os; os._exit(3)\n    generator, w, metrics",
    )
    (tmp_path / "model.py").write_text(code)
    summary = fedpipe.run(file, out=tmp_path / "out").summary
    dropped = [[each["learner"] for each in entry["dropped"]] for entry in summary["rounds"]]
    assert dropped[0] == []
    assert dropped[1] == dropped[2] == ["hospital-d"]


@pytest.mark.heavy
def test_the_example_in_scikit_learn(tmp_path: Path) -> None:
    """Its packages are in `.venv-custom`, or where FEDPIPE_CUSTOM_PYTHON says; its ONNX form is skl2onnx's."""
    trained_and_served(tmp_path, "scikit_learn.py")


@pytest.mark.heavy
def test_the_example_in_xgboost(tmp_path: Path) -> None:
    """Learners take turns to add trees, in any framework: weights are bytes, and a vote decides on them."""
    copied(tmp_path, "boosted_trees.py", "boosted_trees.yaml")
    file = change(tmp_path, **{"rounds: 10": "rounds: 6", "local_epochs: 3": "local_epochs: 2"})
    assert "learner of model.py" in str(check(file))
    whole = fedpipe.run(file, out=tmp_path / "out").summary
    rounds = whole["rounds"][1:]
    assert [entry["vote"]["proposer"] for entry in rounds] == [f"hospital-{k}" for k in "abcdea"]
    assert sum(entry["vote"]["accepted"] for entry in rounds) > 3
    assert whole["evaluation"]["central"]["metrics"]["accuracy"] > 0.75
    run_killed(file, tmp_path / "killed", "coordinate answered", 12)
    again = fedpipe.run(file, store=str(tmp_path / "killed"), out=tmp_path / "again").summary
    assert records(again) == records(whole)


def test_a_learner_without_its_function_is_found_first(tmp_path: Path) -> None:
    file = written(tmp_path)
    (tmp_path / "model.py").write_text(
        CUSTOM_DIGITS.replace("train, evaluate, predict, convert = map", "train_it, evaluate, predict, convert = map")
    )
    with pytest.raises(ModelError, match=r"the learner of learner\(\) has no function 'train'") as caught:
        check(file)
    assert caught.value.exit_code == 2
    change(tmp_path, **{"model.py:learner": "model.py:build", "framework: custom": "framework: numpy"})
    with pytest.raises(ModelError, match="there is no function 'build'") as caught:
        check(file)
    assert caught.value.remedy == "For a learner of your own, set `framework: custom` and `model: model.py:learner`."
    change(
        tmp_path,
        **{
            "framework: numpy": "framework: custom\nprivacy: {noise_multiplier: 1, l2_norm_clip: 1, microbatches: 1, delta: 1.0e-5, target_epsilon: 9}"
        },
    )
    with pytest.raises(FedpipeError, match="needs Keras, but the framework is custom"):
        check(file)


def test_the_python_of_custom_learners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps run where FEDPIPE_CUSTOM_PYTHON says; a Python that cannot work is refused before anything runs."""
    file = written(tmp_path)
    (tmp_path / "model.py").write_text(CUSTOM_DIGITS + "\nimport sys\nassert 'mine' in sys._xoptions\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -X mine "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("FEDPIPE_CUSTOM_PYTHON", str(python))
    assert check(file)
    monkeypatch.setenv("FEDPIPE_CUSTOM_PYTHON", str(tmp_path / "none"))
    with pytest.raises(InputError, match="the custom environment is not set up: there is no"):
        check(file)
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setenv("FEDPIPE_CUSTOM_PYTHON", str(bare))
    with pytest.raises(InputError, match=r"cannot run fedpipe, because ModuleNotFoundError: No module named 'fedpipe'"):
        check(file)
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho 0.0.1\n")
    old.chmod(0o755)
    monkeypatch.setenv("FEDPIPE_CUSTOM_PYTHON", str(old))
    with pytest.raises(InputError, match=r"has fedpipe 0\.0\.1, not ") as caught:
        check(file)
    assert caught.value.exit_code == 2
