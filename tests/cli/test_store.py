"""`fedpipe prune` on a terminal: dry by default, with the bytes, and every mistake a message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fedpipe
from fedpipe.cli.main import app
from fedpipe.errors import FedpipeError, InputError
from fedpipe.store import open_store
from tests.federations import change


@pytest.fixture
def runs(numpy_digits: Path) -> Path:
    file = change(numpy_digits, **{"export: {opset: 17}": "export: none"})  # it takes longer than a round
    for name in ("one", "two"):
        fedpipe.run(file, name=name, out=numpy_digits / name, parameters={"rounds": 1})
    return file


def invoked(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["prune", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_prune(runs: Path) -> None:
    store = open_store(str(runs.parent / "store")).below("digits")
    before = list(store.keys())
    assert "there is nothing to remove" in invoked("-f", str(runs))
    shown = invoked("-f", str(runs), "--keep-runs", "1")
    assert "its records and report" in shown
    assert "would remove" in shown
    assert "KiB; add --yes" in " ".join(shown.split())
    assert list(store.keys()) == before

    found = json.loads(CliRunner().invoke(app, ["prune", "-f", str(runs), "--keep-runs", "1", "--json"]).stdout)
    assert [(one["run"], one["fate"]) for one in found["runs"]] == [("one", "records")]
    assert found["objects"] > 5
    assert found["size"] > 1000
    assert found["unknown"] == 0
    assert not found["done"]

    done = fedpipe.prune(runs, keep_runs=1, yes=True)
    assert (done.objects, done.size, done.done) == (found["objects"], found["size"], True)
    assert len(list(store.keys())) == len(before) - done.objects + 2  # the mark, and the note of the run
    assert "there is nothing to remove" in invoked("-f", str(runs), "--keep-runs", "1", "--yes")

    with pytest.raises(InputError, match="run 'one' was pruned: only its records are there"):
        fedpipe.run(runs, name="one", parameters={"rounds": 1})
    page = runs.parent / "again.html"
    assert CliRunner().invoke(app, ["report", "one", "-f", str(runs), "-o", str(page)]).exit_code == 0
    assert page.stat().st_size > 1000
    assert "one" in CliRunner().invoke(app, ["runs", "-f", str(runs)]).output
    summary = fedpipe.run(runs, name="three", parameters={"rounds": 1}, out=runs.parent / "three").summary
    assert summary["rounds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--older-than", "30"], "'30' is not an age.* Write minutes, hours, days or weeks"),
        (["--older-than", "-1d"], "'-1d' is not an age"),
        (["--older-than", ""], "'' is not an age"),
        (["--abandoned", "ten"], "there is no run 'ten'"),
    ],
)
def test_mistakes(numpy_digits: Path, arguments: list[str], message: str) -> None:
    file = numpy_digits / "federation.yaml"
    open_store(str(numpy_digits / "store")).below("digits").create("enrolled", b"{}")
    with pytest.raises(FedpipeError, match=message):
        invoked("-f", str(file), *arguments)


def test_mistakes_in_python(numpy_digits: Path) -> None:
    for rules in ({"keep_runs": -1}, {"older_than": -1.0}, {"older_than": float("nan")}):
        with pytest.raises(InputError):
            fedpipe.prune(numpy_digits / "federation.yaml", **rules)  # type: ignore[arg-type]


def test_a_store_that_does_not_exist_yet(numpy_digits: Path) -> None:
    assert "there is nothing to remove" in invoked("-f", str(numpy_digits / "federation.yaml"), "--yes")
    assert not (numpy_digits / "store").exists()
