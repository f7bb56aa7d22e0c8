"""The tutorial "Federated Learning for Image Classification" of TensorFlow Federated, as a federation.

    python examples/tff/emnist.py emnist --emnist DIR     # DIR has emnist_all.sqlite, or fed_emnist_digitsonly_train.h5
                                                          # and fed_emnist_digitsonly_test.h5
    .venv-tff/bin/python examples/tff/emnist.py emnist    # or TFF's synthetic EMNIST, which needs no files
    fedpipe explore emnist/federation.yaml
    fedpipe simulate emnist/federation.yaml

Ten writers are ten learners, with the tutorial's own settings: five passes, shuffled with seed 1, batches of 20, SGD
0.02 at the clients and 1.0 at the server, ten rounds of all ten. With the real files the tutorial reports training
metrics from the first to the tenth round: accuracy 0.123 to 0.325 and loss 3.119 to 2.073.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from fedpipe.data.client_files import read_clients
from fedpipe.errors import FedpipeError

CLIENTS = 10

MODEL = '''"""Softmax regression of 28 x 28 pixels, as in the tutorial; it begins with zeros."""

import keras
import numpy as np


def build():
    model = keras.Sequential(
        [keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax", kernel_initializer="zeros")]
    )
    model.compile(keras.optimizers.SGD(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def load(uri):
    """A writer's own pictures, with the test part that EMNIST gives."""
    with np.load(uri) as file:
        return {part: (file[f"{part}_x"], file[f"{part}_y"]) for part in ("train", "test")}
'''

FEDERATION = """# Written by examples/tff/emnist.py: each writer is a learner.
name: emnist
store: store
learners:
{learners}
training:
  rounds: 10
  batch_size: 20
  preprocessing: repeat(5).shuffle(100, seed=1).batch(20).prefetch(10)
simulation:
  algorithm: fedavg
  client_optimizer: {{name: sgd, learning_rate: 0.02}}
  server_optimizer: {{name: sgd, learning_rate: 1.0}}
"""


def read_files(folder: Path) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Writer to part to pixels and label, from TFF's files: `emnist_all.sqlite`, or an HDF5 file for each part."""
    whole = folder / "emnist_all.sqlite"
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    try:
        for part in ("train", "test"):
            path = whole if whole.exists() else folder / f"fed_emnist_digitsonly_{part}.h5"
            clients = read_clients(path, split=f"digits_only_{part}", columns=("pixels", "label"), most=CLIENTS)
            for writer, columns in clients.items():
                pixels = columns["pixels"].reshape(-1, 28, 28)  # SQLite keeps no shape
                found.setdefault(writer, {})[part] = {"pixels": pixels, "label": columns["label"]}
    except (FedpipeError, OSError) as error:
        sys.exit(f"{error} TFF's own loader downloads these files.")
    return found


def read_synthetic() -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """The same of TFF's synthetic EMNIST."""
    try:
        import tensorflow_federated as tff
    except ImportError:
        sys.exit("TensorFlow Federated is not installed here: use .venv-tff/bin/python, or --emnist DIR.")
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    source = tff.simulation.datasets.emnist.get_synthetic()
    for writer in source.client_ids[:CLIENTS]:
        examples = list(source.create_tf_dataset_for_client(writer).as_numpy_iterator())
        columns = {name: np.stack([example[name] for example in examples]) for name in ("pixels", "label")}
        found[writer] = {"train": columns, "test": columns}
    return found


def write_federation(writers: dict[str, dict[str, dict[str, np.ndarray]]], folder: Path) -> Path:
    """A folder with a federation file, model.py and a file for each writer."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, parts in enumerate(writers.values()):
        arrays = {}
        for part, columns in parts.items():
            arrays |= {
                f"{part}_x": columns["pixels"].astype(np.float32),
                f"{part}_y": columns["label"].astype(np.int64),
            }
        np.savez_compressed(folder / f"writer-{number}.npz", **arrays)
    (folder / "model.py").write_text(MODEL)
    learners = "\n".join(f"  - {{name: writer-{n}, data: writer-{n}.npz}}" for n in range(len(writers)))
    (folder / "federation.yaml").write_text(FEDERATION.format(learners=learners))
    return folder / "federation.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the federation is written")
    parser.add_argument("--emnist", type=Path, metavar="DIR", help="folder with TFF's files; without: synthetic")
    given = parser.parse_args()
    path = write_federation(read_files(given.emnist) if given.emnist else read_synthetic(), given.folder)
    print(f"next: fedpipe simulate {path}")


if __name__ == "__main__":
    main()
