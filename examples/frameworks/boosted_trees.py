"""A learner in XGBoost: trees for the digits. Each proposal adds some to those that were accepted."""

from typing import Any

import numpy as np
import xgboost
from sklearn.metrics import log_loss

CLASSES, FEATURES = 10, 64
ROOM = 2**20
"""Bytes for the trees: an array has the same shape in all rounds."""


class learner:  # noqa: N801  (it is called like a function)
    """The functions that fedpipe calls, the names of the metrics, and the purpose of the output."""

    metrics = ("loss", "accuracy")
    task = "multiclass"

    def initial_weights(self, seed: int) -> dict[str, Any]:
        """Return no trees: eight bytes with their length, and room for them."""
        return {"trees": np.zeros(ROOM, np.uint8)}

    def train(
        self, weights: Any, x: Any, y: Any, *, epochs: int, seed: int, depth: int = 4, rate: float = 0.3
    ) -> dict[str, Any]:
        """Return the trees with one more of each class for each epoch."""
        settings = {
            "objective": "multi:softprob", "num_class": CLASSES, "max_depth": depth, "eta": rate, "seed": seed,
            "nthread": 1,
        }  # fmt: skip
        model = xgboost.train(settings, xgboost.DMatrix(x, y), epochs, xgb_model=_restored(weights))
        data = np.frombuffer(model.save_raw("ubj"), np.uint8)
        if 8 + len(data) > ROOM:
            raise ValueError(f"the trees have {len(data)} bytes: raise ROOM")
        trees = np.zeros(ROOM, np.uint8)
        trees[:8] = np.frombuffer(len(data).to_bytes(8, "little"), np.uint8)
        trees[8 : 8 + len(data)] = data
        return {"trees": trees}

    def evaluate(self, weights: Any, x: Any, y: Any) -> dict[str, float]:
        """Return means over the examples."""
        shares = self.predict(weights, x)
        right = shares.argmax(axis=1) == y
        return {"loss": log_loss(y, shares, labels=range(CLASSES)), "accuracy": float(right.mean())}

    def predict(self, weights: Any, x: Any) -> Any:
        """Return the probability of each class, (examples, 10)."""
        model = _restored(weights)
        if model is None:
            return np.full((len(x), CLASSES), 1 / CLASSES, np.float32)
        return model.predict(xgboost.DMatrix(x))


def _restored(weights: Any) -> Any:
    length = int.from_bytes(weights["trees"][:8].tobytes(), "little")
    if not length:
        return None
    model = xgboost.Booster({"nthread": 1})
    model.load_model(bytearray(weights["trees"][8 : 8 + length].tobytes()))
    return model
