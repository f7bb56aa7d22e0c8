"""A learner in scikit-learn: logistic regression for the digits, trained by stochastic gradient descent."""

from typing import Any

import numpy as np
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

CLASSES = np.arange(10)
FEATURES = 64


class learner:  # noqa: N801  (it is called like a function)
    """The functions that fedpipe calls, the names of the metrics, and the purpose of the output."""

    metrics = ("loss", "accuracy")
    task = "multiclass"

    def initial_weights(self, seed: int) -> dict[str, Any]:
        """Return the weights before the first round. Their names, shapes and dtypes are those of all rounds."""
        return {"coef": np.zeros((len(CLASSES), FEATURES), np.float32), "intercept": np.zeros(len(CLASSES), np.float32)}

    def train(self, weights: Any, x: Any, y: Any, *, epochs: int, seed: int, l2: float = 0.0001) -> dict[str, Any]:
        """Return the weights after some passes over a learner's examples."""
        model = _restored(weights, alpha=l2, random_state=seed)
        for _ in range(epochs):
            model.partial_fit(x.astype(np.float64), y, CLASSES)
        return {"coef": model.coef_, "intercept": model.intercept_}

    def evaluate(self, weights: Any, x: Any, y: Any) -> dict[str, float]:
        """Return means over the examples."""
        shares = self.predict(weights, x)
        right = shares.argmax(axis=1) == y
        return {"loss": log_loss(y, shares, labels=CLASSES), "accuracy": float(right.mean())}

    def predict(self, weights: Any, x: Any) -> Any:
        """Return the probability of each class, (examples, 10)."""
        return _restored(weights).predict_proba(x.astype(np.float64)).astype(np.float32)

    def convert(self, weights: Any, opset: int) -> Any:
        """Return the model as ONNX, with the output of `predict`."""
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType

        model = _restored(weights)
        found = convert_sklearn(
            model, name="digits", initial_types=[("pixels", FloatTensorType([None, FEATURES]))],
            options={id(model): {"zipmap": False}}, target_opset=opset,
        )  # fmt: skip
        del found.graph.output[0]  # the predicted class
        return found


def _restored(weights: Any, **settings: Any) -> Any:
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.01, **settings)
    model.classes_, model.n_features_in_ = CLASSES, FEATURES
    model.coef_ = weights["coef"].astype(np.float64)
    model.intercept_ = weights["intercept"].astype(np.float64)
    return model
