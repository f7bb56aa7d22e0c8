"""Small files of clients, written by TensorFlow Federated itself; imported in the tff environment too."""

from __future__ import annotations

from typing import Any

import numpy as np


def writers() -> dict[str, dict[str, np.ndarray]]:
    """Six writers with a few pictures each."""
    random = np.random.default_rng(2)
    return {
        f"f{k:04d}": {
            "pixels": random.random((k + 2, 4, 4), np.float32),
            "label": random.integers(0, 10, k + 2, np.int32),
        }
        for k in range(6)
    }


def write_sqlite(path: str) -> None:
    """The writers by TFF's own writer."""
    from collections import OrderedDict

    import tensorflow as tf
    import tensorflow_federated as tff

    found = writers()

    def dataset(key: str) -> Any:
        return tf.data.Dataset.from_tensor_slices(OrderedDict(found[key]))

    tff.simulation.datasets.save_to_sql_client_data(list(found), dataset, path)
