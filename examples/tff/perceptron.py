"""Federated SGD of a perceptron, and the centrally trained one: two classes, ten parties with 32 examples each.

    python examples/tff/perceptron.py perceptron

A round of federated SGD is one step along the gradient of all parties' examples: the same step as in central training
on all of them. So both end with the same boundary, which is printed with both accuracies.
"""

import argparse
from pathlib import Path

import numpy as np

import fedpipe

PARTIES, EXAMPLES, ROUNDS, RATE = 10, 32, 40, 0.5

MODEL = '''"""A perceptron: one unit with a sigmoid."""

import keras


def build():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(1, "sigmoid", kernel_initializer="zeros", name="unit")]
    )
    model.compile(keras.optimizers.SGD(0.5), "binary_crossentropy", metrics=["accuracy"])
    return model
'''

FEDERATION = f"""name: perceptron
store: store
model: model.py:build
data: {{uri: data.npz, shards: {{by: iid, seed: 1}}, parts: {{train: 1.0, vote: 0.0, test: 0.0}}}}
learners: [{", ".join(f"{{name: party-{k}}}" for k in range(PARTIES))}]
training: {{rounds: {ROUNDS}, batch_size: {EXAMPLES}}}
evaluation: {{holdout: 0.0, every_round: false}}
simulation:
  algorithm: fedsgd
  server_optimizer: {{name: sgd, learning_rate: {RATE}}}
  test_every: 0
"""


def two_classes() -> tuple[np.ndarray, np.ndarray]:
    """Draw two clouds in the plane that overlap a little."""
    random = np.random.default_rng(0)
    y = np.arange(PARTIES * EXAMPLES) % 2
    x = random.normal(size=(len(y), 2)) + np.where(y[:, None], [1.2, 0.8], [-1.2, -0.8])
    return x.astype(np.float32), y.astype(np.float32)[:, None]


def central(x: np.ndarray, y: np.ndarray, rounds: int) -> tuple[np.ndarray, float]:
    """Train the perceptron on all examples at once: as many steps along their gradient."""
    w, b = np.zeros((2, 1)), 0.0
    for _ in range(rounds):
        error = 1 / (1 + np.exp(-(x @ w + b))) - y
        w, b = w - RATE * x.T @ error / len(y), b - RATE * error.mean()
    return w[:, 0], float(b)


def simulated(folder: Path, rounds: int) -> tuple[np.ndarray, float]:
    """Train the perceptron of the federation."""
    fedpipe.run(folder / "federation.yaml", out=folder / "out", parameters={"rounds": rounds}, simulation=True)
    at = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    odds = fedpipe.predict(folder / "out" / "model.onnx", np.array(at, np.float32)).outputs[:, 0].astype(np.float64)
    scores = np.log(odds / (1 - odds))  # the sum of the unit, before the sigmoid
    return scores[1:] - scores[0], float(scores[0])


def accuracy(w: np.ndarray, b: float, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean((x @ w + b > 0) == (y[:, 0] > 0.5)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the federation is written")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="steps along the gradient (%(default)s)")
    given = parser.parse_args()
    folder, rounds = given.folder, given.rounds
    folder.mkdir(parents=True, exist_ok=True)
    x, y = two_classes()
    np.savez(folder / "data.npz", x=x, y=y)
    (folder / "model.py").write_text(MODEL)
    (folder / "federation.yaml").write_text(FEDERATION)
    for who, (w, b) in (("federated", simulated(folder, rounds)), ("central", central(x, y, rounds))):
        print(f"{who}: {w[0]:.4f} x + {w[1]:.4f} y + {b:.4f} = 0, accuracy {accuracy(w, b, x, y):.4f}")
    print(f"report: {folder / 'out' / 'report.html'}")


if __name__ == "__main__":
    main()
