"""Parties whose files have other rows, as users run them: the model of the joined table, and the numbers of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import fedpipe
from fedpipe.cli.main import app
from fedpipe.commands.watch import round_line
from fedpipe.errors import CorruptError
from fedpipe.federation.sources import read_source
from fedpipe.rounds.history import history
from fedpipe.store import keys, open_store

MODEL = """
import keras

def bottom(party):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="tanh")])
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    return model

def top():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="binary_crossentropy", metrics=["accuracy"])
    return model
"""
PATIENTS, ALICE, BOB = 130, range(100), range(10, 130)
"""Patients 10 to 99 are common."""


def sheet(path: Path, head: str, lines: list[str]) -> None:
    path.write_text("\n".join([head, *lines]) + "\n")


def federation(folder: Path, align: str, alice: Any, bob: Any) -> Path:
    """Writes a federation whose parties hold these patients, in this order."""
    folder.mkdir()
    values = np.random.default_rng(3).normal(size=(PATIENTS, 2)).round(4)
    sheet(folder / "alice.csv", "patient,age,dose", [f"{k},{values[k, 0]},{values[k, 1]}" for k in alice])
    sheet(folder / "bob.csv", "ill,patient", [f"{int(values[k].sum() > 0)}, {k}.0" for k in bob])
    content = {
        "name": "rows", "model": "model.py", "store": "store",
        "learners": [{"name": "alice", "data": "alice.csv"}, {"name": "bob", "data": "bob.csv"}],
        "algorithm": {"name": "split", "label_party": "bob", "ids": "patient", "align": align, "batch_size": 16},
        "data": {"labels": "ill"}, "training": {"rounds": 3}, "evaluation": {"every_round": True},
        "export": {"choose": "best", "metric": "loss", "publish_if": {"better_by": 0.0}},
    }  # fmt: skip
    (folder / "federation.yaml").write_text(yaml.safe_dump(content))
    (folder / "model.py").write_text(MODEL)
    return folder / "federation.yaml"


@pytest.mark.heavy
def test_rows_are_aligned_before_they_are_learned_from(tmp_path: Path) -> None:
    """The parts are those of the joined table, to the last bit; the best of three models is published."""
    random = np.random.default_rng(4)
    file = federation(tmp_path / "apart", "intersection", random.permutation(ALICE), random.permutation(BOB))
    summary = fedpipe.run(file, out=tmp_path / "out", name="r1").summary
    rows = {"alice": (100, 90, 10), "bob": (120, 90, 30)}
    assert summary["rows"] == {
        name: dict(zip(("rows", "common", "dropped"), n, strict=True)) for name, n in rows.items()
    }
    assert summary["evaluation"]["federated"]["examples"] == 9
    assert summary["choice"]["metric"] == "loss"
    assert summary["choice"]["values"].keys() >= {"3"}
    assert summary["onnx"]["max_abs_difference"] < 1e-5

    for name in rows:
        phases = summary["traffic"][name]["phases"]
        assert list(phases) == ["align", "exchange", "score"]
        assert phases["align"]["sent"] > 32 * 90, "points and tables of the search for common rows"

    report = (tmp_path / "out" / "report.html").read_text()
    assert "<td>alice</td><td>common rows</td>" in report
    assert '<td>bob</td><td class="n">120</td><td class="n">90</td><td class="n">30</td>' in report
    done = CliRunner().invoke(app, ["verify", "r1", "-f", str(file)])
    assert done.exit_code == 0, done.output
    assert "the statements of all parties agree" in done.output
    assert [line.split() for line in done.output.splitlines() if line.split()[:1] == ["alice"]] == [
        ["alice", "100", "90", "10"]
    ]
    store = open_store(f"file://{file.parent}/store").below("rows")
    records = history(store, "r1")
    loaded = read_source(file)
    assert "90 common rows (dropped: 10 of alice, 30 of bob)" in round_line(store, loaded, records[1])
    assert "common rows" not in round_line(store, loaded, records[2])

    common = sorted(range(10, 100), key=str)
    joined = federation(tmp_path / "joined", "same", common, common)
    fedpipe.run(joined, out=tmp_path / "central", name="r1")
    central = history(open_store(f"file://{joined.parent}/store").below("rows"), "r1")
    assert [record.weights for record in records] == [record.weights for record in central]

    file.write_text(file.read_text().replace("better_by: 0.0", "better_by: 10.0").replace("rounds: 3", "rounds: 1"))
    again = fedpipe.run(file, out=tmp_path / "again", name="r2").summary
    assert again["rows"] == summary["rows"], "another run aligns its rows again"
    assert "not better than" in again["rejected"]

    statement = store.read(keys.record("r1", 1)).data
    store.replace(keys.record("r1", 1), statement.replace(b'"common":90,', b'"common":89,', 1))
    with pytest.raises(CorruptError):
        fedpipe.verify(file, "r1")
