"""Whole runs on tables with learners in NumPy: kinds, federated statistics, names of classes, raw rows at the end."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fedpipe
from fedpipe.commands.check import check
from fedpipe.commands.predict import predict_file
from fedpipe.data.disclosure import schema_of
from fedpipe.data.shards import deal, holdout, split
from fedpipe.errors import DataError
from fedpipe.federation.file import read_federation
from fedpipe.rounds.history import read_record
from fedpipe.rounds.plan import read_plan
from fedpipe.store import keys, open_store

MODEL = """
from fedpipe.learners.numpy import Linear

def build(table):
    return Linear(features=table.width, outputs=len(table.classes), learning_rate=0.5)
"""


def rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Patients whose diagnosis depends on two columns of very different scales; one value in ten is missing."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        age, pressure = generator.normal(60, 10), generator.normal(1e6, 3e4)
        sick = (age - 60) / 10 + (pressure - 1e6) / 3e4 + generator.normal(0, 0.3) > 0
        missing = generator.random() < 0.1
        found.append({
            "id": f"P{number}", "age": "" if missing else round(age, 2), "pressure": round(pressure, 1),
            "smokes": ["yes", "no"][number % 2], "diagnosis": "malignant" if sick else "benign",
        })  # fmt: skip
    return found


def write(path: Path, table: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return federation(tmp_path)


def federation(folder: Path, **more: Any) -> Path:
    """Two learners with a shard, and one with a file of its own whose columns are in another order."""
    (folder / "model.py").write_text(MODEL)
    write(folder / "d.csv", rows(0, 300))
    write(folder / "own.csv", [dict(reversed(row.items())) for row in rows(1, 120)])
    content = {
        "name": "tab",
        "framework": "numpy",
        "data": {"uri": "d.csv", "features": "auto", "ignore": ["id"], "labels": "diagnosis"},
        "learners": [{"name": "a"}, {"name": "b"}, {"name": "c", "data": "own.csv"}],
        "training": {"rounds": 4, "batch_size": 16, "seed": 1},
        **more,
    }
    path = folder / "federation.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def stored(folder: Path, run: str = "run-1") -> Any:
    store = open_store(f"file://{folder}/store").below("tab")
    record = read_record(store, run, 0)
    assert record is not None
    return store, record, schema_of(store, read_plan(store, record.plan))


def test_from_raw_rows_to_raw_rows(file: Path, tmp_path: Path) -> None:
    summary = fedpipe.run(file, out=tmp_path / "out").summary
    assert summary["evaluation"]["central"]["metrics"]["accuracy"] > 0.75
    assert summary["evaluation"]["federated"]["metrics"]["accuracy"] > 0.8
    assert summary["onnx"]["max_abs_difference"] < 1e-4
    found = predict_file(str(tmp_path / "out" / "model.onnx"), tmp_path / "own.csv").prediction
    truth = [row["diagnosis"] for row in rows(1, 120)]
    assert np.mean([name == true for name, true in zip(names_of(found), truth, strict=True)]) > 0.8


def test_without_features_the_order_of_the_columns_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "from fedpipe.learners.numpy import Linear\n\ndef build():\n    return Linear(features=2, outputs=2)\n"
    )
    random = np.random.default_rng(0)
    age, dose = random.normal(50, 20, 300), random.normal(1, 0.5, 300)
    found = [{"age": a, "dose": d, "y": int(a + 40 * d > 90)} for a, d in zip(age, dose, strict=True)]
    other = [dict(reversed(row.items())) for row in found]
    write(tmp_path / "own.csv", found[:150])
    write(tmp_path / "other.csv", other[150:])
    learners = [{"name": "a", "data": "own.csv"}, {"name": "b", "data": "other.csv"}]
    content = {"name": "tab", "framework": "numpy", "learners": learners, "training": {"rounds": 5, "batch_size": 8}}
    path = tmp_path / "federation.yaml"
    path.write_text(yaml.safe_dump(content))
    assert fedpipe.run(path, out=tmp_path / "out").metrics["accuracy"] > 0.9
    write(tmp_path / "all.csv", found)
    write(tmp_path / "turned.csv", other)
    one, two = (
        predict_file(str(tmp_path / "out" / "model.onnx"), tmp_path / name).prediction.classes
        for name in ("all.csv", "turned.csv")
    )
    assert (one == two).all()
    assert np.mean(one == [row["y"] for row in found]) > 0.9


def test_a_table_of_another_country(tmp_path: Path) -> None:
    """Decimal commas, and days first: the same model as with points, and `check` and the schema say what was taken."""
    random = np.random.default_rng(3)
    found = [(value, int(day), int(value + day / 100 > 3)) for value, day in zip(
        random.uniform(1, 5, 200).round(3), random.integers(1, 29, 200), strict=True)]  # fmt: skip
    metrics = []
    for name, forms in (("de", ("{}", ",", "{1:02}/02/2024")), ("iso", ("{}", ".", "2024-02-{1:02}"))):
        (tmp_path / name).mkdir()
        lines = [f"{str(v).replace('.', forms[1])};{forms[2].format(v, day)};{y}" for v, day, y in found]
        (tmp_path / name / "d.csv").write_text("\n".join(["dose;admitted;diagnosis", *lines]))
        (tmp_path / name / "model.py").write_text(MODEL.replace("len(table.classes)", "2"))
        content = {
            "name": "tab", "framework": "numpy", "data": {"uri": "d.csv", "labels": "diagnosis"},
            "learners": [{"name": "a"}, {"name": "b"}], "training": {"rounds": 3, "batch_size": 8},
        }  # fmt: skip
        path = tmp_path / name / "federation.yaml"
        path.write_text(yaml.safe_dump(content))
        metrics.append(fedpipe.run(path, out=tmp_path / name / "out").metrics)
    assert metrics[0] == metrics[1]
    table = next(what for subject, what in check(tmp_path / "de" / "federation.yaml") if subject == "table")
    assert table == "1 number, 1 date, decimal comma in 'dose', day first in 'admitted'"
    styles = [column.style for column in stored(tmp_path / "de")[2].columns]
    assert styles == ["decimal comma", "day first"]
    explored = fedpipe.explore(tmp_path / "de" / "federation.yaml")
    assert "number, decimal comma" in explored.page
    assert "date, day first" in explored.page
    (tmp_path / "new.csv").write_text("admitted;dose\n03/02/2024;1,234\n")  # a row that can be read in several ways
    (tmp_path / "iso.csv").write_text("dose,admitted\n1.234,2024-02-03\n")
    answers = [predict_file(tmp_path / name / "out" / "model.onnx", tmp_path / new).prediction.outputs
               for name, new in (("de", "new.csv"), ("iso", "iso.csv"))]  # fmt: skip
    np.testing.assert_array_equal(*answers)
    with pytest.raises(DataError, match=r"new.csv: column 'dose', row 1 \(line 2\): '1,234' is not a number"):
        predict_file(tmp_path / "iso" / "out" / "model.onnx", tmp_path / "new.csv")


def test_matrices_without_names_are_normalised_too(tmp_path: Path) -> None:
    """From an .npz file and from `load`, with columns of very different scales."""
    random = np.random.default_rng(0)
    x = np.stack([random.normal(60, 10, 400), random.normal(1e6, 3e4, 400)], axis=1)
    y = ((x[:, 0] - 60) / 10 + (x[:, 1] - 1e6) / 3e4 > 0).astype(int)
    np.savez(tmp_path / "d.npz", scans=x[:300], y=y[:300])
    np.savez(tmp_path / "own.npz", a=x[300:], b=y[300:])
    loading = "\n\ndef load(uri):\n    import numpy as np\n    file = np.load(uri)\n    return file['a'], file['b']\n"
    (tmp_path / "model.py").write_text(MODEL.replace("len(table.classes)", "2") + loading)
    content = {
        "name": "tab", "framework": "numpy", "data": {"uri": "d.npz", "features": "auto"},
        "learners": [{"name": "a"}, {"name": "b"}], "training": {"rounds": 4, "batch_size": 16},
    }  # fmt: skip
    path = tmp_path / "federation.yaml"
    path.write_text(yaml.safe_dump(content))
    assert fedpipe.run(path, out=tmp_path / "out").metrics["accuracy"] > 0.9
    columns = stored(tmp_path)[2].columns
    assert [column.name for column in columns] == ["scans[0]", "scans[1]"]
    assert columns[1].mean == pytest.approx(1e6, rel=0.01)
    found = predict_file(tmp_path / "out" / "model.onnx", tmp_path / "d.npz")
    assert found.accuracy is not None
    assert found.accuracy > 0.9
    alone = {
        "learners": [{"name": "c", "data": str(tmp_path / "own.npz")}],
        "training": {"rounds": 8, "start": "fresh"},
    }
    assert fedpipe.run(path, name="run-2", **alone).metrics["accuracy"] >= 0.8
    assert [column.name for column in stored(tmp_path, "run-2")[2].columns] == ["x[0]", "x[1]"]


def test_values_that_are_missing_in_no_train_part(tmp_path: Path) -> None:
    """The schema has no missing values then, but the model takes them in its tests, in votes and in predictions."""
    vote = {"name": "averaging", "vote": {"criterion": "loss"}}
    data = {"uri": "d.csv", "features": "auto", "ignore": ["id"], "labels": "diagnosis",
            "parts": {"train": 0.6, "vote": 0.2, "test": 0.2}}  # fmt: skip
    file = federation(tmp_path, algorithm=vote, evaluation={"holdout": 0.2}, data=data)
    for name, count in (("d.csv", 300), ("own.csv", 120)):
        write(tmp_path / name, [{**row, "age": row["age"] or 60} for row in rows(0, count)])
    settings = read_federation(file)
    rest, held_out = holdout(300, 0.2, settings.training.seed)
    shard = rest[deal(settings.data.shards, 2, labels=np.zeros(len(rest)))[0]]
    parts = split(len(shard), settings.data.parts, [1, 2, 0])
    lacking = {*held_out[:5].tolist(), *shard[parts["vote"]].tolist(), *shard[parts["test"]][:2].tolist()}
    write(tmp_path / "d.csv", [
        {**row, "age": "" if number in lacking else row["age"] or 60} for number, row in enumerate(rows(0, 300))
    ])  # fmt: skip
    summary = fedpipe.run(file, out=tmp_path / "out").summary
    assert [column.missing for column in stored(tmp_path)[2].columns] == [False, False, False]
    assert summary["evaluation"]["left_out"] == {}
    assert summary["evaluation"]["central"]["examples"] == 60
    assert summary["rounds"][1]["vote"]["voters"] == 3
    new = [{"age": "", "pressure": 1e6, "smokes": "yes"}, {"age": "60", "pressure": "", "smokes": ""}]
    write(tmp_path / "new.csv", new)
    answers = predict_file(tmp_path / "out" / "model.onnx", tmp_path / "new.csv")
    assert np.isfinite(answers.prediction.outputs).all()
    assert answers.remarks == ()
    write(tmp_path / "new.csv", new[:1])
    remarks = predict_file(tmp_path / "out" / "model.onnx", tmp_path / "new.csv").remarks
    assert remarks == (f"all values of 'age' in {tmp_path / 'new.csv'} are missing",)


def names_of(found: Any) -> list[str]:
    return [["benign", "malignant"][number] for number in found.classes]


def test_the_schema_is_pinned_and_its_moments_are_those_of_all_train_parts(file: Path, tmp_path: Path) -> None:
    fedpipe.run(file, out=tmp_path / "out")
    store, record, schema = stored(tmp_path)
    assert store.size(keys.content(record.schema)) is not None
    assert [(c.name, c.kind, c.missing) for c in schema.columns] == [
        ("age", "number", True), ("pressure", "number", False), ("smokes", "boolean", False)
    ]  # fmt: skip
    assert schema.classes == ("benign", "malignant")
    assert schema.columns[1].mean == pytest.approx(1e6, rel=0.01)
    assert schema.columns[1].deviation == pytest.approx(3e4, rel=0.1)
    reports = [json.loads(store.read(keys.statistics(name, "run-1")).data) for name in "abc"]
    assert sum(report["examples"] for report in reports) == 108 * 2 + 96


def test_single_steps_make_the_same_model_as_a_session(tmp_path: Path) -> None:
    weights = []
    for name, each in (("session", "all"), ("steps", 1)):
        (tmp_path / name).mkdir()
        training = {"rounds": 2, "batch_size": 16, "rounds_per_step": each}
        fedpipe.run(federation(tmp_path / name, training=training), out=tmp_path / name / "out")
        record = read_record(stored(tmp_path / name)[0], "run-1", 2)
        assert record is not None
        weights.append(record.weights)
    assert weights[0] == weights[1]


def test_a_second_run_takes_the_schema_of_the_first(file: Path, tmp_path: Path) -> None:
    fedpipe.run(file, out=tmp_path / "out")
    write(tmp_path / "d.csv", rows(7, 300))
    fedpipe.run(file, out=tmp_path / "again", name="run-2")
    assert stored(tmp_path, "run-2")[2] == stored(tmp_path)[2]


def test_check_shows_kinds_and_classes(file: Path) -> None:
    found = {finding.subject: finding.what for finding in check(file)}
    assert found["table"] == "2 number, 1 boolean, classes benign, malignant"


def test_a_learner_with_a_mistake_is_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    path = federation(tmp_path, quorum={"min_learners": 2})
    (tmp_path / "own.csv").write_text("id,age,pressure,smokes,diagnosis\n" + "x,old,1,yes,benign\n" * 40)
    summary = fedpipe.run(path, out=tmp_path / "out").summary
    assert len(summary["rounds"]) == 4
    store = stored(tmp_path)[0]
    report = json.loads(store.read(keys.statistics("c", "run-1")).data)
    assert report["examples"] == 32  # "old" is a category there
    record = read_record(store, "run-1", 1)
    assert record is not None
    (dropped,) = record.dropped
    assert dropped.learner == "c"
    assert "'old' is not a number" in dropped.why


def test_kinds_that_numpy_does_not_take(tmp_path: Path) -> None:
    path = federation(tmp_path, data={
        "uri": "d.csv", "features": {"age": "number", "smokes": "category"}, "labels": "diagnosis"
    })  # fmt: skip
    with pytest.raises(fedpipe.FedpipeError, match="takes columns of numbers, but 'smokes' is of the kind category"):
        check(path)


def test_a_regression(tmp_path: Path) -> None:
    """Labels are numbers with fractions, and the statistics describe the target too."""
    model = MODEL.replace("len(table.classes)", "1, loss='squared'").replace("0.5)", "0.1)")
    path = federation(tmp_path, data={
        "uri": "d.csv", "features": {"age": "number", "smokes": "boolean"}, "labels": "pressure"
    }, learners=[{"name": "a"}, {"name": "b"}])  # fmt: skip
    (tmp_path / "model.py").write_text(model)
    table = [{**row, "pressure": row["pressure"] / 1e6} for row in rows(0, 300)]
    write(tmp_path / "d.csv", table)
    fedpipe.run(path, out=tmp_path / "out")
    assert stored(tmp_path)[2].labels == "quantity"


def test_check_names_a_cell_that_is_no_number(tmp_path: Path) -> None:
    path = federation(tmp_path, data={"uri": "d.csv", "features": {"id": "number"}, "labels": "diagnosis"})
    with pytest.raises(DataError, match=r"d.csv: column 'id', row 1 \(line 2\): 'P0' is not a number"):
        check(path)


def test_a_session_that_cannot_settle_ends_with_the_reason(tmp_path: Path) -> None:
    """The check is left out: a learner's data may change after it."""
    from fedpipe.compiled.compiler import compile_pipeline
    from fedpipe.engine.workers import Workers
    from fedpipe.federation.file import read_federation
    from fedpipe.sessions.board import poll_board
    from tests.tff.runs import finished

    path = federation(tmp_path, data={
        "uri": "d.csv", "features": {"age": "number"}, "labels": "diagnosis", "statistics": {"floor": 10_000},
    })  # fmt: skip
    assert compile_pipeline(read_federation(path), tmp_path / "p.yaml")
    with (
        Workers(preload=False) as processes,
        pytest.raises(fedpipe.FedpipeError, match="nobody discloses names of classes"),
    ):
        finished(path, tmp_path / "out", processes)
    board, _ = poll_board(open_store(f"file://{tmp_path}/out/store").below("tab"), "r") or (None, "")
    assert board is not None
    assert (board.phase, board.ending) == ("ended", "failed")
    assert "Name the classes in export.classes" in board.why


def test_a_session_asks_for_statistics_and_single_steps_have_steps_for_them(tmp_path: Path) -> None:
    from fedpipe.compiled.compiler import compile_pipeline
    from fedpipe.compiled.graph import read_graph
    from fedpipe.federation.file import read_federation

    for each, found in (("all", set()), (1, {"describe"})):
        path = federation(tmp_path, training={"rounds": 2, "batch_size": 16, "rounds_per_step": each})
        compile_pipeline(read_federation(path), tmp_path / "p.yaml")
        assert {task.step for task in read_graph(tmp_path / "p.yaml").tasks} & {"describe"} == found


def test_check_names_the_cell_that_will_drop_a_learner(tmp_path: Path) -> None:
    path = federation(tmp_path, data={"uri": "d.csv", "features": {"age": "number"}, "labels": "diagnosis"})
    (tmp_path / "own.csv").write_text("id,age,pressure,smokes,diagnosis\n" + "x,old,1,yes,benign\n" * 40)
    with pytest.raises(DataError, match=r"own.csv: column 'age', row 1 \(line 2\): 'old' is not a number"):
        check(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"features": {"agee": "number"}},
            r"there is no column 'agee', which data\.features names\. Did you mean 'age'",
        ),
        ({"features": {"id": "number"}}, r"column 'id', row 1 \(line 2\): 'P0' is not a number"),
        ({"features": "auto", "ignore": ["idd"]}, r"there is no column 'idd', which data\.ignore names"),
        ({"features": "auto", "labels": "diagnoses"}, r"there is no column 'diagnoses', which data\.labels names"),
    ],
)
def test_a_table_that_no_learner_can_read_is_found_before_the_run(
    tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    learners = [{"name": "a", "data": "own.csv"}, {"name": "b", "data": "own.csv"}]
    path = federation(tmp_path, data={"labels": "diagnosis", **data}, learners=learners)
    for command in (check, fedpipe.run):
        with pytest.raises(DataError, match=rf"learners\[0\]\.data, a: the data cannot be used: .*own\.csv: {message}"):
            command(path)
    assert not (tmp_path / "store").exists()
