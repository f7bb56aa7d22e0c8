"""The example of a federation with hostile learners, and the same with the mean."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

import fedpipe
from fedpipe.federation.file import read_federation
from tests.commands.runs import ROOT

FOLDER = ROOT / "examples/attacked"


def test_its_files_are_those_that_make_writes(tmp_path: Path) -> None:
    runpy.run_path(str(FOLDER / "write_data.py"))["make"](tmp_path)
    for path in FOLDER.glob("*.npz"):
        with np.load(path) as kept, np.load(tmp_path / path.name) as made:
            assert all(np.array_equal(kept[name], made[name]) for name in ("x", "y"))


def test_both_files_pass_the_checks_and_differ_in_the_algorithm_alone() -> None:
    guarded, plain = (read_federation(FOLDER / f"{name}.yaml") for name in ("federation", "mean"))
    assert guarded.algorithm != plain.algorithm
    fields = [name for name in guarded.__struct_fields__ if getattr(guarded, name) != getattr(plain, name)]
    assert fields == ["algorithm"]


@pytest.mark.heavy
def test_the_guarded_model_is_good_and_the_mean_is_not(tmp_path: Path) -> None:
    """Compared as docs/aggregation.md says: two runs of one federation, neither of which continues the other."""
    shutil.copytree(FOLDER, tmp_path / "attacked")
    for run, name in (("mean", "mean"), ("guarded", "federation")):
        fedpipe.run(tmp_path / f"attacked/{name}.yaml", name=run, out=tmp_path / run, parameters={"rounds": 25})
    file = tmp_path / "attacked/federation.yaml"
    found = fedpipe.compare(file, "guarded", "mean")
    guarded, mean = found.results["central: accuracy"]
    assert guarded > 0.9
    assert mean < guarded - 0.25
    assert found.settings["algorithm.rule.name"] == ["trimmed_mean", "mean"]
    assert "begins from" not in found.settings
    page = fedpipe.report(file, "guarded", beside=["mean"])
    assert "<td>algorithm.rule.name</td><td>trimmed_mean</td><td>mean</td>" in page
