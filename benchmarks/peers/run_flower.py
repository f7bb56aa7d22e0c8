"""Flower's simulation of the same, with the same Keras model in its clients."""

import json
import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from softmax import BATCH, EPOCHS, EXAMPLES, LEARNERS, RATE, ROUNDS, data

client_app, server_app = ClientApp(), ServerApp()
_kept = {}


def model():
    """Built once per worker, as ours is."""
    if not _kept:
        import keras

        made = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10, activation="softmax")])
        made.compile(keras.optimizers.SGD(RATE), "sparse_categorical_crossentropy", metrics=["accuracy"])
        _kept["model"], _kept["data"] = made, data()
    return _kept["model"], _kept["data"]


@client_app.train()
def train(message: Message, context: Context) -> Message:
    made, (x, y) = model()
    part = slice(
        int(context.node_config["partition-id"]) * EXAMPLES, (int(context.node_config["partition-id"]) + 1) * EXAMPLES
    )
    made.set_weights(message.content["arrays"].to_numpy_ndarrays())
    history = made.fit(x[part], y[part], epochs=EPOCHS, batch_size=BATCH, verbose=0).history
    metrics = MetricRecord({"num-examples": EXAMPLES, "accuracy": float(history["accuracy"][-1])})
    return Message(
        content=RecordDict({"arrays": ArrayRecord(made.get_weights()), "metrics": metrics}), reply_to=message
    )


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    initial = ArrayRecord([np.zeros((784, 10), np.float32), np.zeros(10, np.float32)])
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=LEARNERS)
    result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=ROUNDS)
    accuracy = result.train_metrics_clientapp[ROUNDS]["accuracy"]
    print(json.dumps({"accuracy": accuracy, "end": time.time()}), flush=True)


run_simulation(
    server_app=server_app, client_app=client_app, num_supernodes=LEARNERS,
    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
)  # fmt: skip
