"""Simulations from end to end: the same weights as `fedpipe run`, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from fedpipe.commands.run import run
from fedpipe.compiled.compiler import compile_pipeline, read_code
from fedpipe.compiled.graph import read_graph
from fedpipe.engine.local import Event
from fedpipe.engine.preflight import Checked, SimulationFiles, check
from fedpipe.engine.workers import Workers
from fedpipe.errors import InputError
from fedpipe.federation.file import read_federation
from tests.commands.test_table_run import federation as table_federation
from tests.commands.test_table_run import rows, write
from tests.federations import change
from tests.tff import inside
from tests.tff.runs import Finished, finished
from tests.tff.simulated import records_of, weights_of

LINEAR = """
import keras

def build():
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")])
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""


@pytest.fixture
def linear(digits: Path) -> Path:
    """The demo's federation with a linear model and SGD, for two rounds on a third of the digits."""
    (digits / "model.py").write_text(LINEAR)
    with np.load(digits / "digits.npz") as file:
        few = {name: file[name][:600] for name in file.files}
    np.savez(digits / "digits.npz", **few)
    return change(digits, **{"rounds: 10": "rounds: 2", "minimum: 100": "minimum: 30"})


@pytest.mark.heavy
@pytest.mark.xdist_group("tff")
class TestASimulation:
    def test_gives_the_weights_of_a_run(self, linear: Path, tmp_path: Path, processes: Workers) -> None:
        """The same data, model, seed, batches, optimizer and rounds: Keras learners and our mean, or TFF."""
        run = finished(linear, tmp_path / "run", processes)
        events: list[Event] = []
        simulated = finished(linear, tmp_path / "tff", processes, simulation=True, listener=events.append)
        assert_alike(run, simulated)
        steps = [event.task.step for event in events if event.what == "started"]
        assert steps.index("explore") > steps.index("simulate")  # nobody waits for its page
        rounds = simulated.summary["rounds"]
        assert rounds[-1]["metrics"]["test_accuracy"] > rounds[0]["metrics"]["test_accuracy"]
        # The last test of TFF is Keras's evaluation of the same weights.
        central = simulated.summary["evaluation"]["central"]["metrics"]
        for metric in ("loss", "accuracy"):
            assert rounds[-1]["metrics"][f"central_{metric}"] == pytest.approx(central[metric], abs=1e-5)
        assert (simulated.folder / "model.onnx").exists()

    def test_rehearses_the_aggregator_and_the_preprocessing_of_a_run(
        self, linear: Path, tmp_path: Path, processes: Workers
    ) -> None:
        """A rule and a server optimizer that keep states: in a session, step by step, and in TFF's own rounds."""
        change(linear.parent, **{
            "  rule: mean": "  engine: tff\n  rule: {name: robust, zeroing: false}",
            "{name: sgd, learning_rate: 1.0, momentum: 0.0}": "{name: adam, learning_rate: 0.1, epsilon: 0.001}",
            "  local_epochs: 2": '  preprocessing: "repeat(2).shuffle(100, seed=3).batch(20)"',
        })  # fmt: skip
        federation = read_federation(linear)
        found = check(federation, read_code(federation), federation.data.uri, "", processes.call)
        assert Checked("aggregation", "robust and adam, by TensorFlow Federated") in found
        session = finished(linear, tmp_path / "run", processes)
        simulated = finished(linear, tmp_path / "tff", processes, simulation=True)
        assert_alike(session, simulated)
        for done in (session, simulated):
            norms = [each["metrics"]["aggregator/clipping_norm"] for each in done.summary["rounds"]]
            assert norms[0] == 1.0
            assert norms[1] != 1.0
        examples = sum(update.examples for update in records_of(session.place)[1].updates)
        assert simulated.summary["rounds"][0]["metrics"]["num_examples"] == 2 * examples
        change(linear.parent, **{"rounds_per_step: all": "rounds_per_step: 1"})
        run(linear, store=f"file://{tmp_path}/steps", out=tmp_path / "out", name="r")
        steps = replace(session.place, store=f"file://{tmp_path}/steps")
        assert records_of(steps) == records_of(session.place)

    def test_a_mistake_in_the_algorithm_is_found_before_anything_is_written(self, linear: Path, tmp_path: Path) -> None:
        (linear.parent / "own.py").write_text("def build(model_fn):\n    return model_fn\n")
        change(linear.parent, **{"quorum:": "simulation: {process: own.py}\nquorum:"})
        with pytest.raises(InputError, match=r"own\.py: build\(\) returns function without .* `initialize`"):
            run(linear, store=f"file://{tmp_path}/store", simulation=True)
        assert not (tmp_path / "store").exists()


TABLE = """
import keras

def build(table):
    words = keras.layers.TextVectorization(vocabulary=["cough", "fever"], output_mode="multi_hot")
    notes = keras.layers.Dense(4, activation="tanh")(words(table.inputs["texts"][:, 0]))
    x = keras.layers.Concatenate()([keras.layers.Dense(4, activation="tanh")(table.encoded), notes])
    model = keras.Model(table.inputs, keras.layers.Dense(1, activation="sigmoid")(x))
    model.compile(keras.optimizers.SGD(0.1), "binary_crossentropy", metrics=["accuracy"])
    return model
"""
KINDS = {"age": "number", "smokes": "boolean", "admitted": "date", "ward": "category", "note": "text"}


def write_patients(folder: Path) -> None:
    """Columns of every kind; in each but the text, some values are missing."""
    found = [
        {
            **row, "admitted": "" if n % 7 == 0 else f"2024-{n % 12 + 1:02d}-{n % 28 + 1:02d}",
            "ward": ["north", "south", "", "öst"][n % 4],
            "note": ["", "Fever, fever!", "cough", "no cough; fever"][n // 3 % 4],
        }
        for n, row in enumerate(rows(0, 300))
    ]  # fmt: skip
    write(folder / "d.csv", found)
    write(folder / "own.csv", [dict(reversed(row.items())) for row in found[::3]])


@pytest.mark.heavy
@pytest.mark.xdist_group("tff")
def test_a_table_is_simulated_with_the_features_of_a_run(tmp_path: Path, processes: Workers) -> None:
    """Columns of every kind, labels that are names, a learner with a file of its own: the same weights as by Keras 3."""
    data = {"uri": "d.csv", "features": KINDS, "labels": "diagnosis"}
    file = table_federation(tmp_path, framework="keras", data=data, export="none")
    write_patients(tmp_path)
    (tmp_path / "model.py").write_text(TABLE)
    federation = read_federation(file)
    found = check(federation, TABLE, federation.data.uri, "", processes.call, SimulationFiles())
    assert Checked("simulation", "fedavg, 4 rounds") in found
    ran = finished(file, tmp_path / "run", processes)
    simulated = finished(file, tmp_path / "tff", processes, simulation=True)
    first, other = records_of(ran.place)[0], records_of(simulated.place)[0]
    assert first.schema == other.schema
    assert str(first.schema).startswith("sha256:")
    assert_alike(ran, simulated)
    start = weights_of(ran.place, first)
    for name, value in simulated.weights().items():  # words and wards have taught the model
        assert np.abs(value - start[name]).max() > 1e-3
    central = simulated.summary["evaluation"]["central"]["metrics"]
    assert simulated.summary["rounds"][-1]["metrics"]["central_loss"] == pytest.approx(central["loss"], abs=1e-5)
    patients = processes.call(inside.patients_of, simulated.place, "train", environment="tff")
    assert patients.keys() == {"a", "b"}  # those with a shard
    assert {ward for shard in patients.values() for (ward,), _ in shard} == {"north", "south", "", "öst"}
    assert {sick for shard in patients.values() for _, sick in shard} == {0, 1}


@pytest.mark.heavy
def test_ends_with_its_processes_and_its_output(linear: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedpipe", "simulate", str(linear), "--out", str(tmp_path / "out")]
    ours = {"STARTED_BY": str(tmp_path)}
    done = subprocess.run(
        [*command, "-p", "rounds=3"], capture_output=True, text=True, timeout=300, env=os.environ | ours
    )
    assert done.returncode == 0, done.stderr
    assert "round 3 of 3" in done.stderr
    assert "test_accuracy" in done.stderr
    assert_ended(ours)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [r["round"] for r in summary["rounds"]] == [1, 2, 3]
    assert summary["rounds"][2]["seconds"] > 0
    assert len(summary["rounds"][2]["learners"]) == 5
    page = (tmp_path / "out" / "report.html").read_text()
    assert "shared model, central test set" in page


def assert_alike(run: Finished, simulated: Finished) -> None:
    ours, theirs = run.weights(), simulated.weights()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, atol=1e-5)


def started_with(mark: dict[str, str]) -> set[str]:
    """The processes with these environment variables; one that has ended has none."""
    wanted = [f"{name}={value}".encode() for name, value in mark.items()]
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if set(wanted) <= set(path.read_bytes().split(b"\0")):
                found.add(path.parent.name)
    return found


def assert_ended(mark: dict[str, str]) -> None:
    """The kernel ends TFF's worker after its parent: a moment later, on a machine that is busy."""
    end = time.monotonic() + 30
    while (left := started_with(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left


class TestThePipeline:
    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("quorum:", "simulation: {algorithm: fedprix}\nquorum:",
             "simulation.algorithm: Invalid enum value 'fedprix'. Valid: fedavg, fedprox, fedsgd, mimelite."),
            ("quorum:", "simulation: {server_optimizer: {name: adamw, learning_rate: 1}}\nquorum:",
             "Valid: adagrad, adam, sgd, yogi."),
            ("quorum: {", "quorum: {learners_per_round: 9, ", "quorum.learners_per_round: is 9, but there are 5 learners"),
            ("quorum:", "simulation: {process: absent.py:build}\nquorum:", "Check the path in `simulation.process`"),
        ],
    )  # fmt: skip
    def test_mistakes_in_the_file(self, old: str, new: str, message: str, digits: Path, tmp_path: Path) -> None:
        change(digits, **{old: new})
        with pytest.raises(InputError) as caught:
            compile_pipeline(read_federation(digits / "federation.yaml"), tmp_path / "s.yaml", simulation=True)
        assert message in str(caught.value)
        assert not (tmp_path / "s.yaml").exists()

    def test_explores_simulates_evaluates_and_exports(self, digits: Path, tmp_path: Path) -> None:
        placement = "{node_selector: {pool: gpu}, accelerator: {count: 1}}"
        change(digits, **{"quorum:": f"simulation: {{placement: {placement}}}\nquorum:"})
        compile_pipeline(read_federation(digits / "federation.yaml"), tmp_path / "s.yaml", simulation=True)
        graph = read_graph(tmp_path / "s.yaml")
        assert sorted(task.step or "" for task in graph.tasks) == [
            "evaluate", "explore", "export", "initialise", "report", "shard", "simulate",
        ]  # fmt: skip
        text = (tmp_path / "s.yaml").read_text()
        assert "pool: gpu" in text
        assert "fedpipe/tff:" in text

    @pytest.mark.parametrize(
        ("old", "new", "where"),
        [
            ("  name: averaging\n  rule: mean\n  weighting: examples\n"
             "  server_optimizer: {name: sgd, learning_rate: 1.0, momentum: 0.0}", "  name: collective", "algorithm"),
            ("  rule: mean", "  rule: mean\n  vote: {}", "algorithm.vote"),
            ("export: {opset: 17}", "export: {choose: best, metric: loss}", "export.choose"),
            ("training:\n", "training:\n  exchange: {}\n", "training.exchange"),
            ("export: {opset: 17}", "export: {publish_if: {}, metric: loss}", "export.publish_if"),
            ("quorum:", "privacy: {noise_multiplier: 1, l2_norm_clip: 1, microbatches: 16, delta: 1e-5, "
             "target_epsilon: 9}\nquorum:", "privacy"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_simulated(self, old: str, new: str, where: str, digits: Path, tmp_path: Path) -> None:
        change(digits, **{old: new})
        with pytest.raises(InputError, match="cannot be simulated") as caught:
            compile_pipeline(read_federation(digits / "federation.yaml"), tmp_path / "s.yaml", simulation=True)
        assert caught.value.where == where
        assert caught.value.remedy
        assert not (tmp_path / "s.yaml").exists()
