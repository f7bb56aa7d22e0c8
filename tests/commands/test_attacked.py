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
    assert set(fields) == {"name", "algorithm"}


@pytest.mark.heavy
def test_the_guarded_model_is_good_and_the_mean_is_not(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "attacked")
    accuracy = {}
    for name in ("federation", "mean"):
        run = fedpipe.run(tmp_path / f"attacked/{name}.yaml", out=tmp_path / name, parameters={"rounds": 25})
        accuracy[name] = run.summary["evaluation"]["central"]["metrics"]["accuracy"]
    assert accuracy["federation"] > 0.9
    assert accuracy["mean"] < accuracy["federation"] - 0.25
