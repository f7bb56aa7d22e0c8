"""Whole runs whose learners keep weights: sessions and steps, killed and resumed, exported and reported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from typer.testing import CliRunner

import fedpipe
from fedpipe.cli.main import app
from fedpipe.commands.init import init
from fedpipe.commands.prune import prune
from fedpipe.errors import InputError, NotFoundError
from fedpipe.federation.sources import overlaid, read_source
from fedpipe.learners.personal import Kept
from fedpipe.rounds.history import history
from fedpipe.steps.simulate import check_simulated
from tests.commands.runs import records, run_killed, store_of

TRAINING: dict[str, Any] = {"rounds": 3, "learning_rate": 0.1}
WAYS: dict[str, dict[str, Any]] = {
    "bias": {"share": {"local": ["bias"]}, "training": TRAINING},
    "scaffold": {"training": {**TRAINING, "method": "scaffold"}},
    "ditto": {"training": {**TRAINING, "method": {"name": "ditto", "lambda": 0.1}}},
    "schedules": {
        "training": {**TRAINING, "schedule": {"name": "cosine", "warm_up": 1}},
        "algorithm": {
            "server_optimizer": {"name": "adam", "learning_rate": 0.1},
            "schedule": {"name": "step", "every": 1, "by": 0.5},
        },
    },
}


@pytest.fixture
def file(numpy_digits: Path) -> Path:
    return numpy_digits / "federation.yaml"


def written(file: Path, **changes: Any) -> Path:
    """Writes changes into the federation file."""
    file.write_text(yaml.safe_dump(overlaid(yaml.safe_load(file.read_text()), changes)))
    return file


@pytest.mark.parametrize("way", ["bias", "scaffold", "schedules"])
def test_single_steps_and_killed_sessions_give_the_same_bytes(file: Path, tmp_path: Path, way: str) -> None:
    """The process dies when the second round is closed, and the same command resumes the run."""
    written(file, **WAYS[way])
    whole = fedpipe.run(file, store=tmp_path / "whole", out=tmp_path / "out").summary
    steps = fedpipe.run(file, store=tmp_path / "steps", out=tmp_path / "out", training={"rounds_per_step": 1}).summary
    run_killed(file, tmp_path / "killed", "coordinate closed", 2)
    resumed = fedpipe.run(file, store=tmp_path / "killed", out=tmp_path / "out").summary
    assert records(whole) == records(steps) == records(resumed)


def test_personal_models_in_the_summary_the_report_and_the_terminal(file: Path, tmp_path: Path) -> None:
    written(file, **WAYS["bias"])
    done = CliRunner().invoke(app, ["run", str(file), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    summary = fedpipe.run(file, out=tmp_path / "out").summary
    evaluation = summary["evaluation"]
    names = [f"hospital-{k}" for k in "abcde"]
    assert list(evaluation["personal"]) == names
    examples = [evaluation["learners"][name]["examples"] for name in names]
    for kind, where in (("own", "personal"), ("shared", "learners")):
        accuracy = [evaluation[where][name]["metrics"]["accuracy"] for name in names]
        assert evaluation["personal_models"][kind] == pytest.approx(np.average(accuracy, weights=examples))
    assert f"personal models: better at {evaluation['personal_models']['better']} of 5 learners" in done.output
    page = (tmp_path / "out" / "report.html").read_text()
    assert "hospital-a, personal model" in page
    assert f"better at {evaluation['personal_models']['better']} of 5 learners" in page


def test_the_personal_model_is_exported(file: Path, tmp_path: Path) -> None:
    """Its predictions are those whose accuracy the learner has measured."""
    written(file, **WAYS["ditto"])
    fedpipe.run(file, out=tmp_path / "out")
    target = tmp_path / "own.onnx"
    done = CliRunner().invoke(app, ["export", str(file), "--learner", "hospital-b", "-o", str(target)])
    assert done.exit_code == 0, done.output
    store = store_of(file.parent / "store")
    kept = next(u.personal for u in history(store, "run-1")[-1].updates if u.learner == "hospital-b")
    own = Kept.load(store, "hospital-b", str(kept)).model
    held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(target).graph.initializer}
    np.testing.assert_array_equal(held["kernel"], own["kernel"])
    shared = fedpipe.export(file, tmp_path / "shared.onnx")
    assert shared["learner"] == ""
    assert (tmp_path / "shared.onnx").read_bytes() == (tmp_path / "out" / "model.onnx").read_bytes()


def test_the_export_of_local_weights_says_whose_they_are(file: Path, tmp_path: Path) -> None:
    written(file, **WAYS["bias"])
    fedpipe.run(file, out=tmp_path / "out")
    command = ["export", str(file), "-o", str(tmp_path / "model.onnx")]
    shared = CliRunner().invoke(app, command)
    own = CliRunner().invoke(app, [*command, "--learner", "hospital-c"])
    assert "their first values, because each learner has its own: bias" in " ".join(shared.output.split())
    assert "those of hospital-c: bias" in " ".join(own.output.split())


def test_a_learner_without_a_personal_model(file: Path, tmp_path: Path) -> None:
    fedpipe.run(file, out=tmp_path / "out", parameters={"rounds": 1})
    with pytest.raises(NotFoundError, match="hospital-a has no personal model in run 'run-1': its learners share all"):
        fedpipe.export(file, tmp_path / "x.onnx", learner="hospital-a")
    with pytest.raises(InputError, match=r"there is no learner 'hospital-z'. Did you mean 'hospital-"):
        fedpipe.export(file, tmp_path / "x.onnx", learner="hospital-z")


def test_a_second_run_continues_and_prune_keeps_what_it_needs(file: Path, tmp_path: Path) -> None:
    """Also of a learner whose last update that counted is in the first run."""
    written(file, **WAYS["bias"])
    fedpipe.run(file, out=tmp_path / "out")
    store = store_of(file.parent / "store")
    first = {u.learner: str(u.personal) for u in history(store, "run-1")[-1].updates}
    prune(file, keep_runs=1, drop_replays=True, yes=True)
    for name, digest in first.items():
        assert Kept.load(store, name, digest).local["bias"].any()
    fedpipe.run(file, name="run-2", out=tmp_path / "out")
    second = {u.learner: str(u.personal) for u in history(store, "run-2")[-1].updates}
    prune(file, keep_runs=1, drop_replays=True, yes=True)
    for name, digest in second.items():
        assert Kept.load(store, name, digest).local["bias"].any()


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"share": {"local": ["kernal"]}}, "share.local[0]: 'kernal' matches none of the weights"),
        ({"share": {"local": ["*"]}}, "share.local[0]: '*' matches all weights"),
        ({"training": {"method": "scaffold"}}, "training.learning_rate: is missing, and scaffold needs it"),
        ({"training": {"method": "scafold"}}, "training.method.name: Invalid value 'scafold'. Valid: ditto, fednova"),
    ],
)
def test_mistakes_are_found_first(file: Path, changes: dict[str, Any], where: str) -> None:
    written(file, **changes)
    with pytest.raises(InputError, match=re.escape(where)) as caught:
        fedpipe.run(file)
    assert caught.value.exit_code == 2
    assert not list((file.parent / "store").rglob("record"))


def test_a_simulation_refuses_what_it_does_not_know(file: Path) -> None:
    keras = {"framework": "keras"}
    for path, changes in (
        ("share", {"share": "trainable"}),
        ("training.method", {"training": {"method": {"name": "fedprox", "mu": 0.1}}}),
        ("training.clip_norm", {"training": {"clip_norm": 1.0}}),
        ("training.accumulate", {"training": {"accumulate": 2}}),
    ):
        with pytest.raises(InputError, match=f"^{path}: cannot be simulated"):
            check_simulated(read_source(file, {**keras, **changes}))


NORMALISED = """
import keras

def build():
    model = keras.Sequential([
        keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(16, name="base"),
        keras.layers.BatchNormalization(momentum=0.9), keras.layers.ReLU(),
        keras.layers.Dense(10, "softmax", name="head"),
    ])
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""


@pytest.mark.heavy
@pytest.mark.xdist_group("runs")
def test_batch_normalisation_stays_at_keras_learners(tmp_path: Path) -> None:
    """FedBN in a line, with SCAFFOLD for the rest: through a session, an evaluation, a report and both exports."""
    init(tmp_path / "digits")
    file = tmp_path / "digits" / "federation.yaml"
    (tmp_path / "digits" / "model.py").write_text(NORMALISED)
    share = {"local": ["*batch_normalization*"]}
    training = {"rounds": 2, "learning_rate": 0.1, "method": "scaffold"}
    written(file, share=share, training=training, evaluation={"every_round": False})
    evaluation = fedpipe.run(file, out=tmp_path / "out").summary["evaluation"]
    assert evaluation["personal_models"]["learners"] == len(evaluation["learners"])
    for name, found in evaluation["personal"].items():
        assert found["metrics"]["loss"] < evaluation["learners"][name]["metrics"]["loss"]
    shared = fedpipe.export(file, tmp_path / "shared.onnx")
    own = fedpipe.export(file, tmp_path / "own.onnx", learner="hospital-a")
    assert "batch_normalization/moving_mean" in shared["local"]
    assert own["max_abs_difference"] < 1e-4
    assert (tmp_path / "own.onnx").read_bytes() != (tmp_path / "shared.onnx").read_bytes()
