"""A federation as a trial of Katib: the objective is printed as Katib's collector reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpipe.cli.main import app
from tests.cli.conftest import Result

EXPERIMENT = Path(__file__).parents[2] / "examples" / "katib" / "experiment.yaml"
FILTER = r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)"
"""The filter of Katib's StdOut collector where an experiment names none (pkg/metricscollector/v1beta1/common/const.go)."""


@pytest.fixture(scope="module")
def experiment() -> Any:
    return yaml.safe_load(EXPERIMENT.read_text())["spec"]


def test_the_trial_of_the_example(
    experiment: Any, fedpipe: Callable[..., Result], numpy_digits: Path, tmp_path: Path
) -> None:
    """Its command, with the values that Katib would choose and this machine's folders; the line is found by the filter."""
    template = experiment["trialTemplate"]
    (container,) = template["trialSpec"]["spec"]["template"]["spec"]["containers"]
    assert container["name"] == template["primaryContainerName"]
    chosen = {"learning_rate": "0.1", "local_epochs": "1", "${trialSpec.Name}": "digits-x7k2"}
    names = {one["name"]: chosen[one["reference"]] for one in template["trialParameters"]}
    command = [
        re.sub(r"\$\{trialParameters\.(\w+)\}", lambda found: names[found[1]], part) for part in container["command"]
    ]
    here = {
        "/federation/": f"{numpy_digits}/",
        "/tmp/store": str(tmp_path / "store"),
        "/tmp/out": str(tmp_path / "out"),
    }
    for there, place in here.items():
        command = [part.replace(there, place) for part in command]
    assert command[0] == "fedpipe"
    done = fedpipe(*command[1:], "-p", "rounds=1")
    assert done.code == 0, done.err
    metric = experiment["objective"]["objectiveMetricName"]
    last = done.out.splitlines()[-1]
    found = re.fullmatch(FILTER, last)
    assert found is not None, last
    assert found[1] == metric
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert float(found[2]) == summary["evaluation"]["central"]["metrics"][metric]
    assert (tmp_path / "store" / "digits" / "runs" / "digits-x7k2").is_dir()


def test_parameters_of_the_example_are_those_of_the_form(experiment: Any) -> None:
    references = {one["reference"] for one in experiment["trialTemplate"]["trialParameters"]}
    assert {one["name"] for one in experiment["parameters"]} < references


def test_an_objective_that_is_unknown(fedpipe: Callable[..., Result], numpy_digits: Path, tmp_path: Path) -> None:
    done = fedpipe(
        "run", numpy_digits / "federation.yaml", "--out", tmp_path / "out", "-p", "rounds=1", "--objective", "acuracy"
    )
    assert done.code == 2
    assert "--objective: the final model has no metric 'acuracy'. Did you mean 'accuracy'?" in done.err


def test_only_runs_have_an_objective() -> None:
    from typer.main import get_command

    having = {
        name for name, command in get_command(app).commands.items()  # type: ignore[attr-defined]
        if any("--objective" in option.opts for option in command.params)
    }  # fmt: skip
    assert having == {"run"}
