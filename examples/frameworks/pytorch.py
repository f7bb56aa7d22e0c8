"""A learner in PyTorch: a network with one hidden layer for the digits."""

import io
from typing import Any

import numpy as np
import torch
from torch import nn

torch.use_deterministic_algorithms(True)


def network() -> Any:
    """Return the network; its outputs are logits, (examples, 10)."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


class learner:  # noqa: N801  (it is called like a function)
    """The functions that fedpipe calls, the names of the metrics, and the purpose of the output."""

    metrics = ("loss", "accuracy")
    task = "multiclass"

    def initial_weights(self, seed: int) -> dict[str, Any]:
        """Return the weights before the first round. Their names, shapes and dtypes are those of all rounds."""
        torch.manual_seed(seed)
        return _arrays(network())

    def train(
        self, weights: Any, x: Any, y: Any, *, epochs: int, batch_size: int, seed: int,
        learning_rate: float | None = None, l2: float = 0.0001,
    ) -> tuple[dict[str, Any], list[dict[str, float]]]:  # fmt: skip
        """Return the weights after some passes over a learner's examples, and the metrics of each."""
        model, order = _restored(weights), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate or 0.1, momentum=0.9, weight_decay=l2)
        inputs, labels, found = torch.from_numpy(x), torch.from_numpy(y).long(), []
        for _ in range(epochs):
            total = right = 0.0
            for batch in torch.randperm(len(x), generator=order).split(batch_size):
                outputs = model(inputs[batch])
                loss = nn.functional.cross_entropy(outputs, labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(batch)
                right += (outputs.argmax(dim=1) == labels[batch]).sum().item()
            found.append({"loss": total / len(x), "accuracy": right / len(x)})
        return _arrays(model), found

    def evaluate(self, weights: Any, x: Any, y: Any) -> dict[str, float]:
        """Return means over the examples."""
        with torch.no_grad():
            outputs, labels = _restored(weights)(torch.from_numpy(x)), torch.from_numpy(y).long()
            right = (outputs.argmax(dim=1) == labels).double().mean()
            return {"loss": nn.functional.cross_entropy(outputs, labels).item(), "accuracy": right.item()}

    def predict(self, weights: Any, x: Any) -> Any:
        """Return the probability of each class, (examples, 10)."""
        with torch.no_grad():
            return _restored(weights)(torch.from_numpy(x)).softmax(dim=1)

    def convert(self, weights: Any, opset: int) -> bytes:
        """Return the model as ONNX, with the output of `predict`."""
        model, file = nn.Sequential(_restored(weights), nn.Softmax(dim=1)).eval(), io.BytesIO()
        torch.onnx.export(
            model, (torch.zeros(2, 64),), file, input_names=["pixels"], output_names=["probabilities"],
            dynamic_shapes=({0: "batch"},), opset_version=opset, dynamo=True, verbose=False,
        )  # fmt: skip
        return file.getvalue()


def _arrays(model: Any) -> dict[str, Any]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def _restored(weights: Any) -> Any:
    model = network()
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return model
