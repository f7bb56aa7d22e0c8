"""Mistakes on the command line: numbers without bounds, names that are markup, folders that cannot be."""

from __future__ import annotations

import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from fedpipe.cli.main import app
from tests.cli.conftest import Result, files

ROOT: Any = typer.main.get_command(app)
ODD = "proj#1 50% é?;[/red] x%20y:smile:"
HOSTILE = ["[/x]", "[bold]x[/bold]", ":smile:", "\x1b[31mred\x1b[0m", "[link=http://x]y", "\\[x]", "\x9b31m"]


def numbers() -> Iterator[Any]:
    for name, command in ROOT.commands.items():
        for parameter in command.params:
            if (kinds := numbers_in(parameter.type_descriptor.annotation)) and parameter.name != "help":
                yield pytest.param(command, parameter, kinds, id=f"{name} {parameter.opts[0]}")


def numbers_in(kind: Any) -> set[Any]:
    """The number types that a type is or contains."""
    inner = get_args(kind)
    return set().union(*map(numbers_in, inner)) if inner else {kind} & {int, float}


def test_the_walk_finds_the_numbers() -> None:
    assert {"serve --poll", "run --workers", "sign VERSION", "predict --rows"} <= {
        str(case.id).replace("versions", "VERSION") for case in numbers()
    }


@pytest.mark.parametrize(("command", "parameter", "kinds"), list(numbers()))
def test_a_number_has_two_finite_bounds(command: Any, parameter: Any, kinds: set[Any], fedpipe: Any) -> None:
    assert math.isfinite(parameter.min)
    assert math.isfinite(parameter.max)
    for wrong in ("nan", "inf", "-inf", "1e300", "9" * 30, "", "[/red]"):
        option = parameter.opts[0]
        given = [f"{option}={wrong}"] if option.startswith("-") else ["m", wrong]
        done = fedpipe(command.name, *given)
        assert done.code == 2
        assert "Traceback" not in done.err
        assert "Invalid value for" in done.err or "No such option" in done.err or "Missing argument" in done.err


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
@pytest.mark.parametrize(
    "line",
    [
        "{}", "run {}", "check {}", "run x {}", "run --workers {} x", "init demo --algorithm {}", "run x --{}", "run x -p {}",
        "export {}", "compile {} -o x.yaml", "predict {} {}", "serve --models {}", "watch {} -f {}", "schedule {}",
        "enroll {} -f {}", "explore {} -o {}", "policy -f {}", "serve -f {}", "plot {} -f {}", "runs --store {} -f {}",
    ],
)  # fmt: skip
def test_text_that_is_not_ours_is_no_markup(line: str, text: str, fedpipe: Callable[..., Result]) -> None:
    done = fedpipe(*(part.format(text) for part in line.split(" ")))
    assert done.code == 2
    assert "\x1b" not in done.err + done.out
    assert "\x9b" not in done.err + done.out
    assert "😄" not in done.err + done.out
    assert "Traceback" not in done.err


class TestInit:
    @pytest.mark.parametrize("name", ["", " "])
    def test_without_a_name(self, fedpipe: Callable[..., Result], name: str) -> None:
        done = fedpipe("init", name)
        assert (done.code, files(Path())) == (2, {})
        assert "the folder's name is empty. Name a folder; `.` is the current one." in done.err

    def test_below_a_file(self, fedpipe: Callable[..., Result]) -> None:
        Path("file").write_text("")
        for name in ("file", "file/x"):
            assert "file is a file, not a folder. Choose another folder" in fedpipe("init", name).err

    def test_where_nothing_can_be_written(self, fedpipe: Callable[..., Result]) -> None:
        for name in ("/proc/nope", "x" * 300):
            done = fedpipe("init", name)
            assert done.code == 2
            assert "the folder cannot be written: " in done.err

    def test_parents_are_made(self, fedpipe: Callable[..., Result]) -> None:
        assert fedpipe("init", "a/b/c", "--framework", "numpy").code == 0
        assert Path("a/b/c/federation.yaml").is_file()

    def test_in_this_folder(self, fedpipe: Callable[..., Result]) -> None:
        assert fedpipe("init", ".", "--framework", "numpy").code == 0
        assert Path("federation.yaml").is_file()


@pytest.fixture
def project(fedpipe: Callable[..., Result]) -> Path:
    """A federation that needs no TensorFlow, in a folder with an odd name."""
    folder = Path(ODD).absolute()
    assert fedpipe("init", folder, "--framework", "numpy").code == 0
    return folder


def edited(folder: Path, **lines: str) -> Path:
    """The federation file with other lines."""
    file = folder / "federation.yaml"
    kept = [line for line in file.read_text().splitlines() if not line.startswith(tuple(f"{key}:" for key in lines))]
    file.write_text("\n".join([*kept, *(f"{key}: {value}" for key, value in lines.items())]))
    return file


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("/proc/nope", "file:///proc/nope: the folder cannot be written: No such file"),
        ("model.py", "model.py is a file, not a folder. Choose another folder for the store"),
        ("model.py/store", "model.py is a file, not a folder"),
        ("x" * 300, "the folder cannot be written: File name too long"),
    ],
)
def test_check_and_run_open_the_stores_folder_first(
    project: Path, fedpipe: Callable[..., Result], store: str, message: str
) -> None:
    file = edited(project, store=store)
    before = files(project)
    for command in ("check", "run"):
        done = fedpipe(command, file)
        assert done.code == 2
        assert message in done.err
    assert files(project) == before


def test_check_leaves_nothing_in_the_stores_folder(project: Path, fedpipe: Callable[..., Result]) -> None:
    before = files(project)
    done = fedpipe("check", project / "federation.yaml")
    assert done.code == 0
    assert files(project) == before
    (project / "store").mkdir()
    assert fedpipe("check", project / "federation.yaml").code == 0
    assert files(project / "store") == {}


def test_the_folder_of_results_is_opened_first(project: Path, fedpipe: Callable[..., Result]) -> None:
    Path("file").write_text("")
    for out in ("file", "file/x", "/proc/nope"):
        done = fedpipe("run", project / "federation.yaml", "--out", out)
        assert done.code == 2
        assert "Choose another folder for the results with --out." in done.err
    assert "the folder's name is empty" in fedpipe("run", project / "federation.yaml", "--out", "").err
    assert not (project / "store").exists()


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("lr=0.1", "unknown parameter 'lr'. Choose one of: batch_size, data, "),
        ("lr=0.1", "Did you mean 'learning_rate'?"),
        ("epochs=1", "Did you mean 'local_epochs'?"),
        ("zzz=1", "unknown parameter 'zzz'. Choose one of: batch_size, data"),
        ("deadline=inf", "parameter deadline: 'inf' is not a number. Write a finite number"),
        ("deadline=nan", "parameter deadline: 'nan' is not a number"),
        ("deadline=1e12", "parameter deadline: 1000000000000.0: Expected `float` <= 31622400.0"),
        ("rounds=1e99", "parameter rounds: '1e99' is not a number. Write a whole number"),
        ("rounds=2.5", "parameter rounds: '2.5' is not a number. Write a whole number"),
        ("rounds=99999999999999999999", "parameter rounds: 99999999999999999999: Expected `int` <= 1000000"),
        ("learning_rate=-1", "parameter learning_rate: -1.0 is negative. Write a number >= 0."),
        ("rounds=1_0", "parameter rounds: '1_0' is not a number. Write a whole number"),
        ("deadline=1_0", "parameter deadline: '1_0' is not a number. Write a finite number"),
        ("rounds", "--parameter: 'rounds' is not NAME=VALUE"),
        ("run=", "run: '' is not a safe name"),
        ("run=a/b", "run: 'a/b' is not a safe name"),
        ("=1", "unknown parameter ''"),
        ("store=", "the store has no name"),
    ],
)
def test_parameters(project: Path, fedpipe: Callable[..., Result], parameter: str, message: str) -> None:
    done = fedpipe("run", project / "federation.yaml", "-p", parameter)
    assert done.code == 2
    assert message in done.err


def test_run_and_store_as_parameters(project: Path, fedpipe: Callable[..., Result]) -> None:
    file = project / "federation.yaml"
    done = fedpipe("run", file, "--run", "a", "-p", "run=b")
    assert (done.code, "the run has two names, 'a' and 'b'. Keep one." in done.err) == (2, True)
    done = fedpipe("run", file, "--store", "a", "-p", "store=b")
    assert (done.code, "two stores are given, 'a' and 'b'. Keep one." in done.err) == (2, True)
    done = fedpipe("run", file, "-p", "run=b", "-p", f"store={project / 'other'}", "-p", "rounds=1")
    assert done.code == 0, done.err
    assert "b (HEAD)" in fedpipe("runs", "-f", file, "--store", project / "other").out
    file.write_text(file.read_text().replace("  seed: 1", "  seed: 7"))
    done = fedpipe("run", file, "--run", "b", "--store", project / "other", "-p", "rounds=1")
    assert "made with other data or shards (training.seed: 1 -> 7)." in done.err


def test_a_whole_run_in_a_folder_with_an_odd_name(project: Path, fedpipe: Callable[..., Result]) -> None:
    here = files(Path())
    (project / "digits.npz").rename(project / "d#1?.npz")
    file = edited(project, store="'sto#re ?'")
    file.write_text(file.read_text().replace("digits.npz", "d#1?.npz"))
    assert fedpipe("check", file).code == 0
    done = fedpipe("run", file, "--out", project / "out#1", "-p", "rounds=1")
    assert done.code == 0, done.err
    assert {"summary.json", "report.html", "model.onnx"} <= set(files(project / "out#1"))
    assert (project / "sto#re ?" / "digits" / "HEAD").is_file()
    assert "run-1" in fedpipe("runs", "-f", file).out
    assert "run-1" in fedpipe("runs", "-f", file, "--store", project / "sto#re ?").out
    assert "run-1" in fedpipe("runs", "-f", file, "--store", (project / "sto#re ?").as_uri()).out
    assert "ended" in fedpipe("watch", "run-1", "-f", file).out
    assert fedpipe("export", file, "-o", "m#1.onnx").code == 0
    predicted = fedpipe("predict", "m#1.onnx", project / "d#1?.npz")
    assert "accuracy" in predicted.out
    assert set(files(Path())) - set(here) - {str(path) for path in files(Path()) if path.startswith(ODD)} == {
        "m#1.onnx"
    }


def test_the_next_command_can_be_copied(fedpipe: Callable[..., Result]) -> None:
    done = fedpipe("init", ODD, "--framework", "numpy")
    line = done.out.splitlines()[-1].removeprefix("next: ")
    assert shlex.split(line) == ["fedpipe", "run", f"{ODD}/federation.yaml"]


class TestKeys:
    """Written by `enroll`, they are found by all commands."""

    def enrolled(self, project: Path, fedpipe: Callable[..., Result], *options: Any) -> Path:
        file = project / "federation.yaml"
        assert fedpipe("enroll", "hospital-a", "-f", file, *options).code == 0
        assert fedpipe("enroll", "--coordinator", "-f", file, *options).code == 0
        return file

    def test_next_to_the_file(
        self, project: Path, fedpipe: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("FEDPIPE_KEYS", raising=False)
        before = dict(os.environ)
        file = self.enrolled(project, fedpipe)
        done = fedpipe("run", file, "-p", "rounds=1")
        assert done.code == 0, done.err
        assert dict(os.environ) == before
        signed = list((project / "store" / "digits").rglob("updates/*hospital-a*"))
        assert all(b'"signature"' in path.read_bytes() for path in signed)
        assert "is signed by the coordinator" in fedpipe("sign", "digits", 1, "-f", file).out

    def test_elsewhere(self, project: Path, fedpipe: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FEDPIPE_KEYS", raising=False)
        file = self.enrolled(project, fedpipe, "--keys", project / "away")
        done = fedpipe("run", file)
        assert done.code == 2
        assert "hospital-a is enrolled and must sign its updates, but its key is missing." in done.err
        assert not (project / "store" / "digits" / "runs").exists()
        assert fedpipe("run", file, "-p", "rounds=1", "--keys", project / "away").code == 0
        assert "is signed" in fedpipe("sign", "digits", 1, "-f", file, "--keys", project / "away").out

    def test_of_another_time(
        self, project: Path, fedpipe: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("FEDPIPE_KEYS", raising=False)
        file = self.enrolled(project, fedpipe)
        assert fedpipe("rotate", "hospital-a", "-f", file, "--keys", project / "new").code == 0
        assert "but its key is not the enrolled one" in fedpipe("run", file).err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_characters(project: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "200"}
    for arguments in (["check", str(project / "federation.yaml")], ["--help"], ["check", "漢"]):
        done = subprocess.run([sys.executable, "-m", "fedpipe", *arguments], capture_output=True, env=environment)
        assert b"Traceback" not in done.stderr
        assert done.returncode == (2 if arguments[-1] == "漢" else 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--models", ""], ["serve", "--cache", " "], ["tensorboard", "r", "--copy", ""],
        ["promote", "m", "1", "--models", ""], ["prepare", "s3://x", "--server", ""], ["prepare", "s3://x", "--coordinator", ""],
        ["enroll", "a", "--keys", ""], ["sign", "m", "1", "--keys", ""], ["run", "f.yaml", "--out", ""],
        ["simulate", "f.yaml", "--out", ""], ["run", "f.yaml", "--keys", ""],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_folder_without_a_name_is_not_this_one(fedpipe: Callable[..., Result], arguments: list[str]) -> None:
    done = fedpipe(*arguments)
    assert (done.code, files(Path())) == (2, {})
    assert "the folder's name is empty. Name a folder; `.` is the current one." in done.err


def test_no_option_takes_a_folder_without_checking_its_name() -> None:
    """`Path("")` is the current folder, so a folder is read from its text."""
    for command in ROOT.commands.values():
        for parameter in command.params:
            if parameter.metavar == "DIR":
                assert parameter.type_descriptor.parameter_info.parser is not None, (command.name, parameter.name)
