"""The catalogue of components: generated, in the form that kubeflow/pipelines-components checks, with examples that compile."""

from __future__ import annotations

import runpy
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from fedpipe.steps import STEPS

ROOT = Path(__file__).parents[1]
CATALOGUE = ROOT / "docs" / "catalogue"


def test_it_is_that_of_the_faces() -> None:
    command = [sys.executable, ROOT / "docs" / "catalogue.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {folder.name for folder in CATALOGUE.iterdir()} == set(STEPS)


@pytest.mark.parametrize("name", STEPS)
def test_metadata_in_the_form_of_the_catalogue(name: str) -> None:
    """Its rules (scripts/validate_metadata): these fields in this order, a known stability, a time of verification."""
    found = yaml.safe_load((CATALOGUE / name / "metadata.yaml").read_text())
    assert [field for field in found if field != "tags"] == ["name", "stability", "dependencies", "lastVerified"]
    assert found["name"] == name
    assert found["stability"] in ("experimental", "alpha", "beta", "stable")
    (pipelines,) = found["dependencies"]["kubeflow"]
    assert pipelines["name"] == "Pipelines"
    assert [part.isdigit() for part in pipelines["version"].removeprefix(">=").split(".")] == [True] * 3
    assert isinstance(found["lastVerified"], datetime)
    assert all(isinstance(tag, str) for tag in found["tags"])
    assert len(found["tags"]) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # kfp's own
def test_every_example_compiles_to_its_step(tmp_path: Path) -> None:
    from kfp.compiler import Compiler

    for name in STEPS:
        Compiler().compile(runpy.run_path(str(CATALOGUE / name / "example.py"))["example"], str(tmp_path / "x.yaml"))
        pipeline = next(yaml.load_all((tmp_path / "x.yaml").read_text(), yaml.CSafeLoader))
        (executor,) = pipeline["deploymentSpec"]["executors"].values()
        assert executor["container"]["command"] == ["fedpipe", "step", name]
        readme = (CATALOGUE / name / "README.md").read_text()
        for part in pipeline["components"][f"comp-{name}"]["inputDefinitions"]["parameters"]:
            assert f"| `{part}` |" in readme
