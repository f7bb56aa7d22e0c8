"""Writes small files of clients with TensorFlow Federated; also imported in the tff environment."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedpipe.rounds.plan import RunPlace


def writers() -> dict[str, dict[str, np.ndarray]]:
    """Returns six writers with a few pictures each."""
    random = np.random.default_rng(2)
    return {
        f"f{k:04d}": {
            "pixels": random.random((k + 2, 4, 4), np.float32),
            "label": random.integers(0, 10, k + 2, np.int32),
        }
        for k in range(6)
    }


def write_sqlite(path: str) -> None:
    """Writes the writers with TFF itself."""
    from collections import OrderedDict

    import tensorflow as tf
    import tensorflow_federated as tff

    found = writers()

    def dataset(key: str) -> Any:
        return tf.data.Dataset.from_tensor_slices(OrderedDict(found[key]))

    tff.simulation.datasets.save_to_sql_client_data(list(found), dataset, path)


def clients_of(place: RunPlace, part: str) -> list[tuple[str, int, bytes]]:
    """Returns keys, sizes and first features of a run's shards, read by TFF."""
    from fedpipe.tff.datasets import client_data

    source = client_data(place, part)
    rows = {key: list(source.create_tf_dataset_for_client(key).as_numpy_iterator()) for key in source.client_ids}
    return [(key, len(found), found[0]["x"].tobytes()) for key, found in rows.items()]
