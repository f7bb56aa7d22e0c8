"""The tutorials of TensorFlow Federated as our examples."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedpipe.commands.explore import explore
from fedpipe.data.client_files import read_clients
from fedpipe.engine.workers import Workers
from fedpipe.frameworks import find_python
from tests.tff.runs import finished

EXAMPLES = Path(__file__).parents[2] / "examples" / "tff"

pytestmark = pytest.mark.heavy


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


def write_sqlite(folder: Path) -> None:
    """The same as `emnist_all.sqlite`, where a picture is a list of 784 numbers."""
    write_emnist(folder)
    rows = []
    for part in ("train", "test"):
        for writer, columns in read_clients(folder / f"fed_emnist_digitsonly_{part}.h5").items():
            for pixels, label in zip(columns["pixels"], columns["label"], strict=True):
                rows.append((f"digits_only_{part}", writer, serialized(pixels, int(label))))
        (folder / f"fed_emnist_digitsonly_{part}.h5").unlink()
    with contextlib.closing(sqlite3.connect(folder / "emnist_all.sqlite")) as database, database:
        database.execute("CREATE TABLE examples (split_name TEXT, client_id TEXT, serialized_example_proto BLOB)")
        database.executemany("INSERT INTO examples VALUES (?, ?, ?)", rows)


def serialized(pixels: np.ndarray, label: int) -> bytes:
    """A `tf.train.Example`, by the wire format of Protocol Buffers: tag, length, content."""

    def wrapped(tag: int, content: bytes) -> bytes:
        length, size = b"", len(content)
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([tag << 3 | 2]) + length + bytes([size]) + content

    columns = {
        b"pixels": wrapped(2, wrapped(1, pixels.astype("<f4").tobytes())),
        b"label": wrapped(3, bytes([8, label])),
    }
    return wrapped(1, b"".join(wrapped(1, wrapped(1, name) + wrapped(2, value)) for name, value in columns.items()))


def example(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, str(EXAMPLES / "emnist.py"), *arguments], capture_output=True, text=True, timeout=200,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.xdist_group("tff")
def test_image_classification_on_files_of_emnists_formats(tmp_path: Path, processes: Workers) -> None:
    """Both formats give the same federation. It is explored and simulated."""
    write_emnist(tmp_path / "hdf5")
    write_sqlite(tmp_path / "sqlite")
    for kind in ("hdf5", "sqlite"):
        done = example(str(tmp_path / f"of-{kind}"), "--emnist", str(tmp_path / kind))
        assert done.returncode == 0, done.stderr
    for number in range(10):
        first, second = (np.load(tmp_path / f"of-{kind}" / f"writer-{number}.npz") for kind in ("hdf5", "sqlite"))
        for name in first.files:
            np.testing.assert_array_equal(first[name], second[name])
    file = tmp_path / "of-hdf5" / "federation.yaml"
    looked = explore(file, tmp_path / "data.html")
    assert [view.parts for view in looked.views] == [{"train": 100, "test": 12}] * 10
    rounds = finished(file, tmp_path / "out", processes, simulation=True).summary["rounds"]
    assert len(rounds) == 10
    assert rounds[-1]["loss"] < rounds[0]["loss"]
    assert rounds[-1]["metrics"]["accuracy"] > rounds[0]["metrics"]["accuracy"] + 0.2
    assert rounds[-1]["metrics"]["test_accuracy"] > 0.6


@pytest.mark.xdist_group("tff")
def test_tffs_synthetic_emnist(tmp_path: Path, processes: Workers) -> None:
    done = example(str(tmp_path / "emnist"), python=str(find_python("tff")))
    assert done.returncode == 0, done.stderr
    found = finished(tmp_path / "emnist" / "federation.yaml", tmp_path / "out", processes, simulation=True)
    rounds = found.summary["rounds"]
    assert rounds[-1]["loss"] < rounds[0]["loss"]
    assert rounds[-1]["metrics"]["accuracy"] > rounds[0]["metrics"]["accuracy"]


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "fed_emnist_digitsonly_train.h5").write_text("nonsense")
    done = example(str(tmp_path / "out"), "--emnist", str(tmp_path))
    assert done.returncode == 1
    assert "the file is not an HDF5 file of federated data" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_perceptron_has_the_boundary_of_the_centrally_trained_one(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "perceptron.py"), str(tmp_path / "p"), "--rounds", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    numbers = [[float(v) for v in re.findall(r"-?\d+\.\d+", told[who])] for who in ("federated", "central")]
    np.testing.assert_allclose(numbers[0], numbers[1], atol=2e-3)
    assert numbers[0][-1] > 0.9
