"""Tests `fedpipe simulate` from end to end: it gives the same weights as `fedpipe run`, and leaves nothing behind."""

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
from typer.testing import CliRunner

from fedpipe import weights
from fedpipe.cli.main import app
from fedpipe.commands.run import run
from fedpipe.compiled.compiler import compile_pipeline
from fedpipe.compiled.graph import read_graph
from fedpipe.engine.local import Event
from fedpipe.errors import InputError
from fedpipe.federation.file import read_federation
from fedpipe.rounds.history import history
from fedpipe.store import LocalStore
from fedpipe.store.objects import get_bytes
from tests.federations import change

LINEAR = """
import keras

def build():
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")])
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""


@pytest.fixture
def linear(digits: Path) -> Path:
    """Creates the demo's federation with a linear model and SGD."""
    (digits / "model.py").write_text(LINEAR)
    return change(digits, **{"rounds: 10": "rounds: 5"})


def last_weights(folder: Path, run_name: str) -> dict[str, np.ndarray]:
    store = LocalStore(folder).below("digits")
    return dict(weights.loads(get_bytes(store, history(store, run_name)[-1].weights)))


@pytest.mark.heavy
@pytest.mark.xdist_group("tff")
class TestASimulation:
    def test_gives_the_weights_of_a_run(self, linear: Path, tmp_path: Path) -> None:
        """Compares Keras learners and fedpipe's mean with TFF: same data, model, seed, batches, optimizer and rounds."""
        run(linear, store=f"file://{tmp_path}/keras", out=tmp_path / "a", name="r")
        events: list[Event] = []
        simulated = run(
            linear,
            store=f"file://{tmp_path}/tff",
            out=tmp_path / "b",
            name="r",
            simulation=True,
            listener=events.append,
        )
        steps = [event.task.step for event in events if event.what == "started"]
        assert steps.index("explore") > steps.index("simulate")  # nobody waits for its page
        ours, theirs = (last_weights(tmp_path / kind, "r") for kind in ("keras", "tff"))
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            np.testing.assert_allclose(theirs[name], value, atol=1e-5)
        rounds = simulated.summary["rounds"]
        assert rounds[-1]["metrics"]["test_accuracy"] > rounds[0]["metrics"]["test_accuracy"]
        # The last test of TFF is Keras's evaluation of the same weights.
        central = simulated.summary["evaluation"]["central"]["metrics"]
        for metric in ("loss", "accuracy"):
            assert rounds[-1]["metrics"][f"central_{metric}"] == pytest.approx(central[metric], abs=1e-5)
        assert (tmp_path / "b" / "model.onnx").exists()

    def test_gives_the_weights_of_a_run_with_preprocessing(self, linear: Path, tmp_path: Path) -> None:
        change(linear.parent, **{"  local_epochs: 2": '  preprocessing: "repeat(2).shuffle(100, seed=3).batch(20)"'})
        change(linear.parent, **{"rounds: 5": "rounds: 2"})
        run(linear, store=f"file://{tmp_path}/keras", out=tmp_path / "a", name="r")
        run(linear, store=f"file://{tmp_path}/tff", out=tmp_path / "b", name="r", simulation=True)
        ours, theirs = (last_weights(tmp_path / kind, "r") for kind in ("keras", "tff"))
        for name, value in ours.items():
            np.testing.assert_allclose(theirs[name], value, atol=1e-5)

    def test_gives_the_weights_of_a_run_that_tff_aggregates(self, linear: Path, tmp_path: Path) -> None:
        """Runs FedAvgM, with the server's step in the aggregate step or in TFF's rounds (others: test_aggregation.py)."""
        server = "{name: sgd, learning_rate: 0.5, momentum: 0.9}"
        change(
            linear.parent,
            **{"  rule: mean": "  engine: tff\n  rule: mean", "{name: sgd, learning_rate: 1.0, momentum: 0.0}": server},
        )
        run(linear, store=f"file://{tmp_path}/keras", out=tmp_path / "a", name="r")
        run(linear, store=f"file://{tmp_path}/tff", out=tmp_path / "b", name="r", simulation=True)
        ours, theirs = (last_weights(tmp_path / kind, "r") for kind in ("keras", "tff"))
        for name, value in ours.items():
            np.testing.assert_allclose(theirs[name], value, atol=1e-5)

    def test_rehearses_the_aggregator_of_the_run(self, linear: Path, tmp_path: Path) -> None:
        """Runs single steps: a container for each training, and one with TFF that aggregates."""
        change(linear.parent, **{
            "  rule: mean": "  engine: tff\n  rule: {name: robust, zeroing: false}", "rounds: 5": "rounds: 2",
            "rounds_per_step: all": "rounds_per_step: 1",
        })  # fmt: skip
        done = run(linear, store=f"file://{tmp_path}/keras", out=tmp_path / "a", name="r")
        run(linear, store=f"file://{tmp_path}/tff", out=tmp_path / "b", name="r", simulation=True)
        ours, theirs = (last_weights(tmp_path / kind, "r") for kind in ("keras", "tff"))
        for name, value in ours.items():
            np.testing.assert_allclose(theirs[name], value, atol=1e-5)
        norms = [each["metrics"]["aggregator/clipping_norm"] for each in done.summary["rounds"]]
        assert norms[0] == 1.0
        assert norms[1] != 1.0

    def test_ends_with_its_processes_and_its_output(self, linear: Path, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "fedpipe", "simulate", str(linear), "--out", str(tmp_path / "out")]
        ours = {"STARTED_BY": str(tmp_path)}
        done = subprocess.run(
            [*command, "-p", "rounds=2"], capture_output=True, text=True, timeout=300, env=os.environ | ours
        )
        assert done.returncode == 0, done.stderr
        assert "round 2 of 2" in done.stdout
        assert "test_accuracy" in done.stdout
        assert_ended(ours)
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert [r["round"] for r in summary["rounds"]] == [1, 2]
        assert summary["rounds"][1]["seconds"] > 0
        assert len(summary["rounds"][1]["learners"]) == 5
        page = (tmp_path / "out" / "report.html").read_text()
        assert "shared model, central test set" in page

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
    def test_mistakes_in_the_file(self, old: str, new: str, message: str, linear: Path) -> None:
        change(linear.parent, **{old: new})
        result = CliRunner().invoke(app, ["simulate", str(linear)])
        assert message in str(result.exception)
        assert isinstance(result.exception, InputError)
        assert not (linear.parent / "store").exists()

    def test_a_mistake_in_the_algorithm_is_found_before_anything_is_written(self, linear: Path, tmp_path: Path) -> None:
        (linear.parent / "own.py").write_text("def build(model_fn):\n    return model_fn\n")
        change(linear.parent, **{"quorum:": "simulation: {process: own.py}\nquorum:"})
        with pytest.raises(InputError, match=r"own\.py: build\(\) returns function without .* `initialize`"):
            run(linear, store=f"file://{tmp_path}/store", simulation=True)
        assert not (tmp_path / "store").exists()


def processes(mark: dict[str, str]) -> set[str]:
    """Lists the processes with these environment variables, without zombies."""
    wanted = [f"{name}={value}".encode() for name, value in mark.items()]
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if set(wanted) <= set(path.read_bytes().split(b"\0")):
                found.add(path.parent.name)
    return found


def assert_ended(mark: dict[str, str]) -> None:
    """Waits until the kernel has ended TFF's worker after its parent, which takes a moment on a busy machine."""
    end = time.monotonic() + 5
    while (left := processes(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left


class TestThePipeline:
    def test_explores_simulates_evaluates_and_exports(self, digits: Path, tmp_path: Path) -> None:
        placement = "{node_selector: {pool: gpu}, accelerator: {count: 1}}"
        change(digits, **{"quorum:": f"simulation: {{placement: {placement}}}\nquorum:"})
        compile_pipeline(read_federation(digits / "federation.yaml"), tmp_path / "s.yaml", simulation=True)
        graph = read_graph(tmp_path / "s.yaml")
        assert [task.step for task in graph.tasks] == [
            "shard", "explore", "initialise", "simulate", "evaluate", "export", "report",
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
            ("quorum:", "privacy: {noise_multiplier: 1, l2_norm_clip: 1, microbatches: 16, delta: 1e-5, "
             "target_epsilon: 9}\nquorum:", "privacy"),
        ],
    )  # fmt: skip
    def test_federations_that_cannot_be_simulated(
        self, old: str, new: str, where: str, digits: Path, tmp_path: Path
    ) -> None:
        change(digits, **{old: new})
        with pytest.raises(InputError, match="cannot be simulated") as caught:
            compile_pipeline(read_federation(digits / "federation.yaml"), tmp_path / "s.yaml", simulation=True)
        assert caught.value.where == where
        assert caught.value.remedy
        assert not (tmp_path / "s.yaml").exists()
