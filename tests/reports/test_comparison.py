"""Tests the list and the comparison of a federation's runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fedpipe.cli.main import app
from fedpipe.reports.comparison import compare, list_runs
from fedpipe.reports.story import read_story
from fedpipe.rounds.beginning import begin
from fedpipe.store import LocalStore, Store
from tests.federations import fresh, make_federation, make_plan, play


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
        assert compare([read_story(opened(file), name) for name in ("first", "third")]).settings == {}


class TestTheCommands:
    def output(self, *arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.exception
        return result.output

    def test_runs(self, file: Path) -> None:
        lines = self.output("runs", "-f", str(file)).splitlines()
        assert lines[0].split() == ["run", "rounds", "state", "last", "round", "ago"]
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
