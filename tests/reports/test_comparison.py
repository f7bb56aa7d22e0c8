"""Tests the list and the comparison of a federation's runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fedpipe.cli.main import app
from fedpipe.commands.opened import full_name
from fedpipe.commands.watch import round_line
from fedpipe.errors import InputError
from fedpipe.reports.comparison import compare, list_runs
from fedpipe.reports.story import read_story
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.history import history
from fedpipe.store import LocalStore, Store
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan, play, play_collective


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Creates a federation with three runs: two that differ in their settings, and one that has only started."""
    content = {
        "name": "tiny", "store": "store", "learners": [{"name": n} for n in "abc"], "data": {"uri": "x.npz"},
        "training": {"rounds": 3, "batch_size": 1},
    }  # fmt: skip
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(content))
    store = LocalStore(tmp_path / "store").below("tiny")
    play(store, make_plan(run="first"))
    other = make_federation(training={"rounds": 2, "batch_size": 1, "learning_rate": 0.5, "start": "fresh"})
    play(store, make_plan(other, run="second"))
    begin(store, make_plan(run="third"), fresh)
    store.create("runs/first/summary.json", b"{}")
    return tmp_path / "federation.yaml"


def opened(file: Path) -> Store:
    return LocalStore(file.parent / "store").below("tiny")


class TestTheList:
    def test_shows_the_progress_of_each(self, file: Path) -> None:
        found = {line.name: line for line in list_runs(opened(file))}
        assert {name: (line.rounds, line.planned) for name, line in found.items()} == {
            "first": (3, 3), "second": (2, 2), "third": (0, 3),
        }  # fmt: skip
        assert {name: line.state for name, line in found.items()} == {
            "first": "ended", "second": "running", "third": "running",
        }  # fmt: skip
        assert found["first"].metrics == {"loss": pytest.approx(2.333333)}
        assert [name for name, line in found.items() if line.at_head] == ["second"]
        assert all(0 <= line.age < 600 for line in found.values())

    def test_a_plan_of_another_version_does_not_hide_the_others(self, file: Path) -> None:
        store = opened(file)
        for key in list(store.keys("objects/")):
            if b'"learning_rate":0.5' in store.read(key).data:
                store.delete(key)
                store.create(key, b"{}")
        found = {line.name: line.planned for line in list_runs(store)}
        assert found == {"first": 3, "second": None, "third": 3}

    def test_no_runs(self, tmp_path: Path) -> None:
        assert list_runs(LocalStore(tmp_path)) == []


class TestTheComparison:
    def test_shows_different_settings_and_results(self, file: Path) -> None:
        found = compare([read_story(opened(file), name) for name in ("first", "second")])
        assert found.runs == ("first", "second")
        assert found.settings == {
            "training.learning_rate": ["0.0", "0.5"], "training.rounds": ["3", "2"], "training.start": ["head", "fresh"],
        }  # fmt: skip
        assert found.results["rounds"] == [3, 2]
        assert found.results["last round: loss"] == [pytest.approx(2.333333)] * 2
        assert found.results["learners dropped"] == [0, 0]

    def test_of_three_each_has_its_value(self, file: Path) -> None:
        found = compare([read_story(opened(file), name) for name in ("third", "first", "second")])
        assert found.settings["training.rounds"] == ["3", "3", "2"]
        assert found.results["last round: loss"] == [None, *[pytest.approx(2.333333)] * 2]

    def test_equal_settings(self, file: Path) -> None:
        """Runs with the same settings still differ in the models that they began from."""
        found = compare([read_story(opened(file), name) for name in ("first", "third")])
        assert found.settings == {"begins from": ["fresh weights", "second, round 2"]}
        assert compare([read_story(opened(file), name) for name in ("first", "first")]).settings == {}


class TestTheCommands:
    def output(self, *arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.exception
        return result.output

    def test_runs(self, file: Path) -> None:
        lines = self.output("runs", "-f", str(file)).splitlines()
        assert lines[0].split() == ["run", "rounds", "state", "last", "accepted", "ago"]
        assert any("second (HEAD)" in line and "2 of 2" in line for line in lines)
        assert {line["name"] for line in json.loads(self.output("runs", "-f", str(file), "--json"))} == {
            "first", "second", "third",
        }  # fmt: skip

    def test_compare(self, file: Path) -> None:
        text = self.output("compare", "first", "second", "-f", str(file))
        assert "training.learning_rate" in text
        assert json.loads(self.output("compare", "first", "second", "-f", str(file), "--json"))["runs"] == [
            "first",
            "second",
        ]

    @pytest.mark.parametrize(
        ("names", "message"),
        [(["first"], "compare needs at least two runs"), (["first", "secnod"], "there is no run 'secnod'")],
    )
    def test_mistakes(self, names: list[str], message: str, file: Path) -> None:
        result = CliRunner().invoke(app, ["compare", *names, "-f", str(file)])
        assert message in str(result.exception)


def test_runs_that_began_from_different_models_differ(tmp_path: Path) -> None:
    store = LocalStore(tmp_path).below("tiny")
    for name in ("first", "second", "third"):
        play(store, make_plan(run=name))
    found = compare([read_story(store, name, str(tmp_path)) for name in ("first", "second", "third")])
    assert found.settings == {"begins from": ["fresh weights", "first, round 3", "second, round 3"]}


def test_a_rejected_proposal_does_not_describe_the_model(tmp_path: Path) -> None:
    """The list has the metrics of the last accepted round."""
    store = LocalStore(tmp_path).below("tiny")
    training = {"rounds": 2, "batch_size": 1}
    plan = make_plan(make_federation(("a", "b", "c"), algorithm={"name": "collective"}, training=training), "votes")
    wanted = {name: PlusOneLearner(number, wants=30.0) for name, number in zip("abc", (1.0, -1.0, 2.0), strict=True)}
    play_collective(store, plan, wanted)
    records = history(store, "votes")
    assert [record.accepted for record in records] == [True, True, False]
    assert records[2].metrics != records[1].metrics
    (line,) = list_runs(store)
    assert line.metrics == records[1].metrics
    assert "rejected: 0 of 2 approve" in round_line(store, plan.federation, records[2])


def test_the_start_of_a_name_names_a_run(tmp_path: Path) -> None:
    store = LocalStore(tmp_path).below("tiny")
    for name in ("3f2a9c1e-6f0c-4f7e-9a53-0d4a1f0c7b11", "3f2a9c1f-6f0c-4f7e-9a53-0d4a1f0c7b11", "run", "run-2"):
        begin(store, make_plan(run=name), fresh)
    assert full_name(store, "3f2a9c1e") == "3f2a9c1e-6f0c-4f7e-9a53-0d4a1f0c7b11"
    assert (full_name(store, "run"), full_name(store, "3f2"), full_name(store, "other")) == ("run", "3f2", "other")
    with pytest.raises(InputError, match="2 runs begin with '3f2a9c1'"):
        full_name(store, "3f2a9c1")


def test_names_of_runs_are_whole_on_a_narrow_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "3f2a9c1e-6f0c-4f7e-9a53-0d4a1f0c7b11"
    (tmp_path / "federation.yaml").write_text(
        "{name: tiny, store: store, learners: [{name: a}, {name: b}, {name: c}], data: {uri: x.npz}, training: {rounds: 3, batch_size: 1}}"
    )
    play(LocalStore(tmp_path / "store").below("tiny"), make_plan(run=name))
    monkeypatch.setenv("COLUMNS", "60")
    file = tmp_path / "federation.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "fedpipe", "runs", "-f", str(file)], capture_output=True, text=True, check=False
    )
    assert name in done.stdout, done.stderr
