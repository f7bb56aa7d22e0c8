"""Functions that tests call in the tff environment, where there is no pytest. Plain numbers go in and out."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from fedpipe.data.examples import Examples
from fedpipe.data.parts import load_examples
from fedpipe.data.trees import leaves
from fedpipe.federation.optimizers import OptimizerSettings
from fedpipe.federation.training import Training
from fedpipe.frameworks import frameworks
from fedpipe.learners.user_code import load_code
from fedpipe.rounds.plan import RunPlace
from fedpipe.store.objects import digest_of


def stepped(
    settings: dict[str, Any], start: list[float], gradients: list[list[float]], pull: float = 0.0
) -> list[list[float]]:
    """Weights after each gradient, by TFF's optimizer of these settings; with `pull`, by its proximal form."""
    from fedpipe.tff.optimizers import make_optimizer, make_proximal

    tensorflow, _ = frameworks()
    optimizer = make_optimizer(msgspec.convert(settings, OptimizerSettings))
    if pull:
        optimizer = make_proximal(optimizer, pull)
    weights = tensorflow.constant(start)
    state = optimizer.initialize(tensorflow.TensorSpec(weights.shape, weights.dtype))
    found = []
    for gradient in gradients:
        state, weights = optimizer.next(state, weights, tensorflow.constant(gradient))
        found.append(weights.numpy().tolist())
    return found


def settings_of(name: str, config: dict[str, Any], rate: float) -> dict[str, Any]:
    """Settings that stand for a Keras optimizer, which is given by its name and configuration."""
    from fedpipe.tff.optimizers import compiled_optimizer

    _, keras = frameworks()
    optimizer = keras.optimizers.deserialize({"class_name": name, "config": config})
    found: dict[str, Any] = msgspec.to_builtins(compiled_optimizer(optimizer, rate))
    return found


def batches_of(code: str, training: dict[str, Any], x: list[Any], y: list[int], seed: int) -> list[list[int]]:
    """Labels of the batches on which a client trains."""
    from fedpipe.tff.datasets import Client, train_batches

    module = load_code(code.encode(), digest_of(code.encode()))
    part = Examples(np.array(x, np.float32), np.array(y))
    made = train_batches(Client(part), msgspec.convert(training, Training), seed, module)
    return [batch["y"].tolist() for batch in made.as_numpy_iterator()]


def divided(code: str, examples: bytes) -> tuple[dict[str, tuple[str, list[int]]], list[float], list[float]]:
    """Dtype and shape of what TFF gets, and the predictions of its part of a model and of the whole model."""
    from fedpipe.tff.inputs import Entry

    _, keras = frameworks()
    model = load_code(code.encode(), digest_of(code.encode())).build()
    entry, x = Entry(model), load_examples(examples).x
    given = entry.arrays(x)
    whole, part = model(entry.packed(x)), keras.models.clone_model(entry.body)
    part.set_weights(model.get_weights())
    forms = {name: (leaf.dtype.name, list(leaf.shape)) for name, leaf in leaves(given)}
    return forms, part(given).numpy().reshape(-1).tolist(), whole.numpy().reshape(-1).tolist()


def clients_of(place: RunPlace, part: str) -> list[tuple[str, int, bytes]]:
    """Keys, sizes and first features of a run's shards, as TFF reads them."""
    from fedpipe.tff.datasets import client_data

    source = client_data(place, part)
    rows = {key: list(source.create_tf_dataset_for_client(key).as_numpy_iterator()) for key in source.client_ids}
    return [(key, len(found), found[0]["x"].tobytes()) for key, found in rows.items()]


def patients_of(place: RunPlace, part: str) -> dict[str, list[tuple[list[Any], int]]]:
    """Categories and labels of a run's shards of a table, as TFF reads them."""
    from fedpipe.tff.datasets import client_data

    source = client_data(place, part)
    return {
        key: [
            ([text.decode() for text in row["x"]["categories"]], int(row["y"]))
            for row in source.create_tf_dataset_for_client(key).as_numpy_iterator()
        ]
        for key in source.client_ids
    }
