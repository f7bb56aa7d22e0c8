"""The tutorials of TensorFlow Federated as our examples."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedpipe.runs import run
from fedpipe.views import explore
from fedpipe.workers import find_python

EXAMPLES = Path(__file__).parents[2] / "examples" / "tff"

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("tff")]


def write_emnist(folder: Path) -> None:
    """Small files in federated EMNIST's format, of scikit-learn's digits: 12 writers."""
    digits = load_digits()
    pixels = np.kron(digits.images / 16, np.ones((3, 3)))  # 24 x 24
    pixels = np.pad(1 - pixels, ((0, 0), (2, 2), (2, 2)), constant_values=1.0).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(pixels))
    folder.mkdir()
    for part, begin, size in (("train", 0, 100), ("test", 1200, 12)):
        with h5py.File(folder / f"fed_emnist_digitsonly_{part}.h5", "w") as file:
            for writer in range(12):
                chosen = order[begin + writer * size : begin + (writer + 1) * size]
                group = file.create_group(f"examples/f{writer:04d}_00")
                group["pixels"], group["label"] = pixels[chosen], digits.target[chosen].astype(np.int32)


def example(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, str(EXAMPLES / "emnist.py"), *arguments], capture_output=True, text=True, timeout=200,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_image_classification_on_files_of_emnists_format(tmp_path: Path) -> None:
    write_emnist(tmp_path / "files")
    done = example(str(tmp_path / "emnist"), "--emnist", str(tmp_path / "files"))
    assert done.returncode == 0, done.stderr
    looked = explore(tmp_path / "emnist" / "federation.yaml", tmp_path / "data.html")
    assert [view.parts for view in looked.views] == [{"train": 100, "test": 12}] * 10
    found = run(tmp_path / "emnist" / "federation.yaml", out=tmp_path / "out", simulation=True)
    rounds = found.summary["rounds"]
    assert len(rounds) == 10
    assert rounds[-1]["loss"] < rounds[0]["loss"]
    assert rounds[-1]["metrics"]["accuracy"] > rounds[0]["metrics"]["accuracy"] + 0.2
    assert rounds[-1]["metrics"]["test_accuracy"] > 0.6


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "fed_emnist_digitsonly_train.h5").write_text("nonsense")
    done = example(str(tmp_path / "out"), "--emnist", str(tmp_path))
    assert done.returncode == 1
    assert "is no HDF5 file of federated EMNIST" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_tffs_synthetic_emnist(tmp_path: Path) -> None:
    done = example(str(tmp_path / "emnist"), python=str(find_python("tff")))
    assert done.returncode == 0, done.stderr
    found = run(tmp_path / "emnist" / "federation.yaml", out=tmp_path / "out", simulation=True)
    rounds = found.summary["rounds"]
    assert rounds[-1]["loss"] < rounds[0]["loss"]
    assert rounds[-1]["metrics"]["accuracy"] > rounds[0]["metrics"]["accuracy"]


def test_a_perceptron_has_the_boundary_of_the_centrally_trained_one(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "perceptron.py"), str(tmp_path / "p")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    numbers = [[float(v) for v in re.findall(r"-?\d+\.\d+", told[who])] for who in ("federated", "central")]
    np.testing.assert_allclose(numbers[0], numbers[1], atol=2e-3)
    assert numbers[0][-1] > 0.9
