"""A federation from a table: what is guessed, what is written, and what cannot be used. With NumPy, without TensorFlow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedpipe
from fedpipe.commands.check import check
from fedpipe.commands.init import Framework
from fedpipe.commands.init_table import init_table
from fedpipe.commands.predict import predict_file
from fedpipe.data.tables import read_table
from fedpipe.errors import DataError, FedpipeError, InputError
from fedpipe.federation.file import read_federation
from tests.commands.test_table_run import rows, write


def made(folder: Path, **more: Any) -> dict[str, Any]:
    """Returns federation.yaml of one file, as a dict."""
    write(folder / "patients.csv", more.pop("rows", rows(0, 200)))
    framework = more.pop("framework", Framework.numpy)
    init_table(folder / "demo", [folder / "patients.csv"], more.pop("label", "diagnosis"), framework=framework, **more)
    content: dict[str, Any] = yaml.safe_load((folder / "demo" / "federation.yaml").read_text())
    return content


def test_guesses_are_in_the_file_with_their_reasons(tmp_path: Path) -> None:
    content = made(tmp_path)
    text = (tmp_path / "demo" / "federation.yaml").read_text()
    assert content["data"]["features"] == {"id": "ignore", "age": "number", "pressure": "number", "smokes": "boolean"}
    assert "id: ignore        # a different value in each row" in text
    assert "missing" in next(line for line in text.splitlines() if " age: number" in line)
    assert content["data"]["uri"] == "../patients.csv"
    assert content["export"]["classes"] == ["benign", "malignant"]
    assert [learner["name"] for learner in content["learners"]] == ["learner-1", "learner-2", "learner-3"]


@pytest.mark.parametrize("label", ["diagnosis", "pressure", "stage"])
def test_every_task_checks_and_runs(tmp_path: Path, label: str) -> None:
    """Two classes, a regression, and three classes that are numbers from 1."""
    table = [{**row, "pressure": row["pressure"] / 1e6, "stage": 1 + k % 3} for k, row in enumerate(rows(0, 200))]
    made(tmp_path, rows=table, label=label)
    file = tmp_path / "demo" / "federation.yaml"
    assert any(finding.subject == "model" for finding in check(file))
    summary = fedpipe.run(file, out=tmp_path / "out", parameters={"rounds": 2}).summary
    assert len(summary["rounds"]) == 2
    found = predict_file(str(tmp_path / "out" / "model.onnx"), tmp_path / "patients.csv").prediction
    assert found.outputs.shape == (200, {"diagnosis": 2, "pressure": 1, "stage": 3}[label])


def test_several_files_are_one_for_each_learner(tmp_path: Path) -> None:
    for number, name in enumerate(("North ward", "south", "East")):
        write(tmp_path / f"{name}.csv", rows(number, 80))
    files = [tmp_path / f"{name}.csv" for name in ("North ward", "south", "East")]
    init_table(tmp_path / "demo", files, "diagnosis", framework=Framework.numpy)
    federation = read_federation(tmp_path / "demo" / "federation.yaml")
    assert [learner.name for learner in federation.learners] == ["north-ward", "south", "east"]
    assert Path(federation.learners[0].data) == tmp_path / "North ward.csv"
    fedpipe.run(tmp_path / "demo" / "federation.yaml", out=tmp_path / "out", parameters={"rounds": 1})


def test_a_column_decides_who_gets_what(tmp_path: Path) -> None:
    table = [{"hospital": "ABCD"[k % 4], **row} for k, row in enumerate(rows(0, 200))]
    content = made(tmp_path, rows=table, by="hospital")
    assert content["data"]["shards"] == {"by": "key", "column": "hospital", "seed": 1}
    assert "hospital" not in content["data"]["features"]
    assert len(content["learners"]) == 4
    found = {finding.subject: finding.what for finding in check(tmp_path / "demo" / "federation.yaml")}
    assert sum(int(found[f"learner-{k}"].split()[0]) for k in range(1, 5)) == pytest.approx(
        144, abs=2
    )  # 80 % of 90 % of 200


def test_names_that_yaml_would_misread_are_quoted(tmp_path: Path) -> None:
    odd = ["no", "1", "a: b", "#x", "Straße", 'q"', "x'y"]
    table = [{**dict.fromkeys(odd, k), "y": k % 2} for k in range(40)]
    content = made(tmp_path, rows=table, label="y", learners=2)
    assert set(content["data"]["features"]) == set(odd)
    assert content["export"]["classes"] == ["0", "1"]
    read_federation(tmp_path / "demo" / "federation.yaml")


def test_columns_that_are_left_out_say_why(tmp_path: Path) -> None:
    table = [
        {"same": 1, "empty": "", "note": f"patient {k} is well", "ward": "ab"[k % 2], "x": k / 7, "y": k % 2}
        for k in range(60)
    ]
    content = made(tmp_path, rows=table, label="y", framework=Framework.keras)
    text = (tmp_path / "demo" / "federation.yaml").read_text()
    assert content["data"]["features"] == {
        "same": "ignore", "empty": "ignore", "note": "ignore", "ward": "category", "x": "number"
    }  # fmt: skip
    for reason in ("always 1", "no values", "60 different texts; table.encoded leaves texts out", "a, b"):
        assert f"# {reason}" in text
    assert "# a category (a, b), which framework numpy does not take" not in text


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no such label": ({"label": "diagnosiss"}, "no column 'diagnosiss', which --label names. Did you mean 'diagnosis'"),
    "no such key": ({"by": "ward"}, "no column 'ward', which --by names"),
    "a constant label": ({"rows": [{"a": k, "diagnosis": "x"} for k in range(40)]}, "all labels are 'x'.*Name another"),
    "names of patients": (
        {"rows": [{"a": k, "diagnosis": f"name {k}"} for k in range(200)]}, "200 different names.*Name another column",
    ),
    "dates as labels": (
        {"rows": [{"a": k, "diagnosis": f"2024-01-{1 + k % 9:02}"} for k in range(60)]},
        "the labels are dates, such as 2024-01-01. Name another column",
    ),
    "no rows": ({"rows": [{"a": 1, "diagnosis": "x"}] * 3}, "has 3 rows. Use at least 10"),
    "too many learners": ({"learners": 50}, "200 rows are too few for 50 learners. Use at most 20"),
    "one key": ({"rows": [{"k": 1, "a": k, "diagnosis": k % 2} for k in range(40)], "by": "k"}, "'k' has 1 values"),
    "no features": ({"rows": [{"a": 1, "diagnosis": k % 2} for k in range(40)]}, "no column can be used as a feature"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_used(tmp_path: Path, name: str) -> None:
    more, message = MISTAKES[name]
    with pytest.raises(DataError, match=message) as caught:
        made(tmp_path, **more)
    assert caught.value.remedy
    assert not (tmp_path / "demo").exists()


def test_the_function_writes_what_the_command_writes(tmp_path: Path) -> None:
    write(tmp_path / "d.csv", rows(0, 60))
    files = fedpipe.init(
        tmp_path / "demo", framework="numpy", tables=[tmp_path / "d.csv"], label="diagnosis", learners=2
    )
    assert files == ("federation.yaml", "model.py")
    assert len(read_federation(tmp_path / "demo" / "federation.yaml").learners) == 2
    for wrong, message in (
        ({"label": "y"}, "a table needs --from and --label"),
        ({"tables": [tmp_path / "d.csv"]}, "a table needs --from and --label"),
        ({"tables": str(tmp_path / "d.csv"), "label": "y"}, "argument 'tables': .* has the type str. Pass a list"),
        ({"tables": ["d.csv"], "label": "y", "algorithm": "collective"}, "a table begins with averaging"),
    ):
        with pytest.raises(InputError, match=message):
            fedpipe.init(tmp_path / "other", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    made(tmp_path)
    with pytest.raises(InputError, match=r"federation.yaml already exists"):
        made(tmp_path)
    made(tmp_path, force=True)
    with pytest.raises(InputError, match="several files are one for each learner"):
        init_table(tmp_path / "x", ["a.csv", "b.csv"], "y", learners=3)
    with pytest.raises(FedpipeError, match=r"unsupported format. Use one of .csv"):
        init_table(tmp_path / "x", [tmp_path / "a.doc"], "y")
    with pytest.raises(FedpipeError, match=r"is a folder, not a file. Name the files in it: .*/\*.csv"):
        init_table(tmp_path / "x", [tmp_path], "y")
    with pytest.raises(InputError, match="the folder's name is empty"):
        init_table("", [tmp_path / "a.csv"], "y")


DOUBTS: dict[str, tuple[list[str], str]] = {
    "decimal commas": ([f"{k},5" for k in range(60)], ""),
    "decimal commas and points": (
        [f"{k},5" for k in range(59)] + ["1.5"], "'0,5' is not a number, so the column is left out. Write decimals",
    ),
    "commas for decimals or thousands": (
        [f"{1 + k},125" for k in range(60)], "'1,125' is not a number, so the column is left out. Write thousands",
    ),
    "dates of another country": ([f"{1 + k % 28:02}.{1 + k % 12:02}.{2000 + k}" for k in range(60)], ""),
    "dates of two countries": (
        [f"{1 + k % 12:02}/{1 + k % 11:02}/{2000 + k}" for k in range(60)],
        "'01/01/2000' is not a date, so the column is left out. Write dates as YYYY-MM-DD",
    ),
    "a limit of detection": (
        ["<0.1", *(f"{k / 7:.3f}" for k in range(59))], "'<0.1' is not a number, so the column is left out. Correct",
    ),
    "units": ([f"{k} mg" for k in range(60)], "'0 mg' is not a number, so the column is left out. Write the number without"),
    "huge numbers": ([f"{k}e300" for k in range(1, 61)], "6e+301 is too large for a model, so the column is left out. Scale"),
    "few numbers with commas": (["1,125", "2,125"] * 30, "'1,125' is not a number, so the column is a category"),
    "spellings": (["m", "M ", "f"] * 20, "column 'c': the categories 'M' and 'm' may be the same. Write them alike."),
    "words": (["ward", "home"] * 30, ""),
    "codes": (["007", "012"] * 30, ""),
    "texts": ([f"patient {k} is well" for k in range(60)], ""),
}  # fmt: skip


def test_the_file_says_how_numbers_and_dates_are_written(tmp_path: Path) -> None:
    lines = [f"{k % 7},{k};{1 + k % 28}.{1 + k % 12}.2024;{k}/{k}/2024;{k % 2}" for k in range(60)]
    (tmp_path / "d.csv").write_text("\n".join(["dose;admitted;seen;y", *lines]))
    init_table(tmp_path / "demo", [tmp_path / "d.csv"], "y")
    text = (tmp_path / "demo" / "federation.yaml").read_text()
    assert re.search(r"dose: number +# 0 to 6\.6, decimal comma\n", text)
    assert re.search(r"admitted: date +# such as 1\.1\.2024, day first\n", text)


@pytest.mark.parametrize(
    ("file", "remedy"),
    [("d.xlsx", "Save the sheet as CSV in UTF-8"), ("d.csv.gz", "Unpack it"), ("d.txt", "Rename it to .csv if")],
)
def test_a_format_of_other_programs_has_a_remedy_of_its_own(tmp_path: Path, file: str, remedy: str) -> None:
    (tmp_path / file).write_bytes(b"PK")
    with pytest.raises(DataError, match=f"unsupported format. {remedy}"):
        init_table(tmp_path / "demo", [tmp_path / file], "y")
    path = tmp_path / "federation.yaml"
    for features in ("auto", "x"):
        content = {"name": "t", "framework": "numpy", "data": {"uri": file, "features": features},
                   "learners": [{"name": "a"}], "training": {"rounds": 1, "batch_size": 8}}  # fmt: skip
        path.write_text(yaml.safe_dump(content))
        (tmp_path / "model.py").write_text("")
        with pytest.raises(DataError, match=f"unsupported format. {remedy}"):
            check(path)


def test_numbers_of_patients_are_left_out_and_learners_have_the_names_of_files(tmp_path: Path) -> None:
    for name, start in (("süd", 0), ("Île de Ré", 50)):
        table = [{"Patienten-Nr.": start + k, "Case ID:": f"C{start + k}", "a": k / 7, "y": k % 2} for k in range(30)]
        write(tmp_path / f"{name}.csv", table)
    init_table(tmp_path / "demo", [tmp_path / "süd.csv", tmp_path / "Île de Ré.csv"], "y")
    content = yaml.safe_load((tmp_path / "demo" / "federation.yaml").read_text())
    assert content["data"]["features"] == {"Patienten-Nr.": "ignore", "Case ID:": "ignore", "a": "number"}
    assert [learner["name"] for learner in content["learners"]] == ["sud", "ile-de-re"]


def test_why_no_column_can_be_used(tmp_path: Path) -> None:
    write(tmp_path / "d.csv", [{"a": "inf" if k == 3 else k, "y": k % 2} for k in range(60)])
    with pytest.raises(DataError, match=r"no column can be used as a feature: .*column 'a', row 4 .*'inf' is infinite"):
        init_table(tmp_path / "demo", [tmp_path / "d.csv"], "y")


def test_columns_without_a_name_are_mentioned(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("\n".join([",a,,y", *(f"{k},{k / 7},x,{k % 2}" for k in range(60))]))
    doubts = init_table(tmp_path / "demo", [tmp_path / "d.csv"], "y").doubts
    assert doubts == (f"{tmp_path / 'd.csv'} has 2 columns without a name, which are left out.",)


def test_files_of_learners_that_write_booleans_in_different_ways(tmp_path: Path) -> None:
    for name, (yes, no) in {"a": ("yes", "no"), "b": ("1", "0"), "c": ("true", "")}.items():
        write(tmp_path / f"{name}.csv", [{"a": k / 7, "c": (yes, no)[k % 2], "y": k % 2} for k in range(20)])
    init_table(tmp_path / "demo", [tmp_path / f"{name}.csv" for name in "abc"], "y")
    assert "c: boolean" in (tmp_path / "demo" / "federation.yaml").read_text()


@pytest.mark.parametrize("name", DOUBTS)
def test_doubts_about_columns_are_told(tmp_path: Path, name: str) -> None:
    cells, doubt = DOUBTS[name]
    write(tmp_path / "d.csv", [{"a": k / 7, "c": cell, "y": k % 2} for k, cell in enumerate(cells)])
    told = init_table(tmp_path / "demo", [tmp_path / "d.csv"], "y").doubts
    assert [doubt in line for line in told] == ([True] if doubt else [])


def test_doubts_about_labels_and_columns_that_a_file_lacks(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [{"a": k / 7, "b": k, "y": "no" if k % 2 else "yes"} for k in range(60)])
    write(tmp_path / "b.csv", [{"a": k / 7, "y": k % 2} for k in range(60)])
    told = init_table(tmp_path / "demo", [tmp_path / "a.csv", tmp_path / "b.csv"], "y").doubts
    assert told[0] == "column 'y': the classes '0' and 'no' may be the same. Write them alike."
    assert told[1] == f"{tmp_path / 'b.csv'} lacks the column 'b', so it is left out."
    content = (
        (tmp_path / "demo" / "federation.yaml").read_text().replace('"0", "1", "no", "yes"', '"no", "yes", "0", "1"')
    )
    (tmp_path / "demo" / "federation.yaml").write_text(content)
    (found,) = (finding.what for finding in check(tmp_path / "demo" / "federation.yaml") if finding.subject == "table")
    assert "; note: the classes 'no' and '0' may be the same" in found


def test_long_names_of_columns_do_not_move_all_remarks(tmp_path: Path) -> None:
    made(tmp_path, rows=[{"long " * 30: k / 7, "b": k, "diagnosis": k % 2} for k in range(40)])
    lines = (tmp_path / "demo" / "federation.yaml").read_text().splitlines()
    assert max(len(line) for line in lines if line.startswith("    b:")) < 80


def test_a_column_whose_name_is_too_long_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "d.csv", [{"n" * 201: k, "a": k / 7, "y": k % 2} for k in range(60)])
    told = init_table(tmp_path / "demo", [tmp_path / "d.csv"], "y", framework=Framework.numpy).doubts
    assert len(told) == 1
    assert "is too long, so the column is left out" in told[0]
    check(tmp_path / "demo" / "federation.yaml")
    with pytest.raises(DataError, match=r"has 201 characters. Shorten it to 200, or add it to data.ignore"):
        read_table(tmp_path / "d.csv", "auto", "y")


@pytest.mark.parametrize(
    ("odd", "message"),
    [("inf", "'inf' is infinite"), ("12 kg", "'12 kg' is not a number"), ("<5", "'<5' is not a number"),
     ("12,5", "'12,5' is not a number")],
)  # fmt: skip
def test_a_number_to_predict_that_is_none_is_named(tmp_path: Path, odd: str, message: str) -> None:
    lines = [f"{k};{odd if k == 40 else k / 7:}" for k in range(200)]
    (tmp_path / "d.csv").write_text("\n".join(["a;y", *lines]))
    where = r"d\.csv: column 'y', row 41 \(line 42\): "
    with pytest.raises(DataError, match=f"{where}{message}. Correct the label, or remove the row"):
        init_table(tmp_path / "demo", [tmp_path / "d.csv"], "y")
