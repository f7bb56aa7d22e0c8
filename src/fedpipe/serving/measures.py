"""What an operator watches: requests, latency, batches, versions, and how far inputs and answers drift."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from fedpipe.serving.follower import Follower, Served
from fedpipe.serving.runtime import Loaded

Array = npt.NDArray[Any]
_LATENCIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_MEMORY = 10_000
"""Examples over which the moments of the input are averaged, with exponential weights."""


class Measures:
    """Prometheus metrics of a server."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        one: dict[str, Any] = {"registry": self.registry}
        version = ["model", "version"]
        self._requests = Counter("fedpipe_requests", "Requests by status code.", [*version, "code"], **one)
        self._seconds = Histogram(
            "fedpipe_request_seconds", "From the last byte of a request to its answer.", ["model"],
            buckets=_LATENCIES, **one,
        )  # fmt: skip
        self._rows = Histogram("fedpipe_batch_examples", "Examples of a run.", ["model"], buckets=_BATCHES, **one)
        self._version = Gauge("fedpipe_model_version", "The version that answers.", ["model", "role"], **one)
        self._failures = Counter("fedpipe_load_failures", "Versions that could not be loaded.", version, **one)
        self._ready = Gauge("fedpipe_ready", "1 when requests are taken.", **one)
        self._degraded = Gauge("fedpipe_degraded", "1 when the store cannot be read, or a version failed.", **one)
        self._predictions = Counter("fedpipe_predictions", "Predicted classes.", [*version, "label"], **one)
        self._mean = Gauge("fedpipe_input_mean", "Recent mean of the first input.", version, **one)
        self._deviation = Gauge("fedpipe_input_deviation", "Recent standard deviation of it.", version, **one)
        self._trained = Gauge(
            "fedpipe_training_label_share", "Share of a label in the training data.", [*version, "label"], **one
        )
        self._trained_mean = Gauge("fedpipe_training_input_mean", "Mean in the central test set.", version, **one)
        self._trained_deviation = Gauge(
            "fedpipe_training_input_deviation", "Standard deviation in the central test set.", version, **one
        )
        self._watches: dict[tuple[str, str], Watch] = {}
        self._known: dict[tuple[Any, ...], Any] = {}

    def _of(self, metric: Any, *labels: str) -> Any:
        """`metric.labels`, which takes as long as a small model's run, once for each."""
        key = (metric, *labels)
        return self._known.get(key) or self._known.setdefault(key, metric.labels(*labels))

    def answered(self, model: str, version: str, code: int, seconds: float) -> None:
        """A request has its answer."""
        self._of(self._requests, model, version, str(code)).inc()
        if model:
            self._of(self._seconds, model).observe(seconds)

    def batched(self, model: str, rows: int) -> None:
        """A run of so many examples."""
        self._of(self._rows, model).observe(rows)

    def failed(self, model: str, version: int) -> None:
        """A version could not be loaded."""
        self._failures.labels(model, str(version)).inc()

    def changed(self, model: str, served: Served | None) -> None:
        """Other versions answer; what is known of those before them is forgotten."""
        there = {str(one.entry.version): one for one in (served.loaded if served else [])}
        for role, one in (("primary", served and served.primary), ("canary", served and served.canary)):
            if one:
                self._version.labels(model, role).set(one.entry.version)
            else:
                self._version.remove(model, role)
        for key in [key for key in self._watches if key[0] == model and key[1] not in there]:
            for gauge in (self._mean, self._deviation, self._trained_mean, self._trained_deviation):
                gauge.remove(*key)
            for label in self._watches[key].labels:
                self._trained.remove(*key, label)
            del self._watches[key]
        self._known.clear()  # what was removed above must not be counted on
        for version, one in there.items():
            if (model, version) not in self._watches:
                self._watches[model, version] = self._watched(model, version, one)

    def _watched(self, model: str, version: str, loaded: Loaded) -> Watch:
        signature = loaded.model.signature
        total = sum(signature.labels.values())
        names = label_names(signature.labels, signature.classes)
        for label, name in names.items():
            self._trained.labels(model, version, name).set(signature.labels[label] / total)
        if signature.spread:
            self._trained_mean.labels(model, version).set(signature.spread.mean)
            self._trained_deviation.labels(model, version).set(signature.spread.deviation)
        return Watch(sorted(names.values()))

    def saw(self, loaded: Loaded, feed: Mapping[str, Array], found: Mapping[str, Array]) -> None:
        """An input and its answer."""
        entry = loaded.entry
        key = entry.name, str(entry.version)
        watch = self._watches.get(key)
        if watch is None:  # it was replaced while it answered
            return
        values = feed[loaded.model.inputs[0].name]
        if watch.add(values):
            self._of(self._mean, *key).set(watch.mean)
            self._of(self._deviation, *key).set(watch.deviation)
        outputs = found[loaded.model.outputs[0].name]
        if outputs.ndim == 2 and outputs.shape[1] > 1:
            classes = loaded.model.signature.classes
            counts = np.bincount(outputs.argmax(axis=1))
            for column in counts.nonzero()[0].tolist():
                name = classes[column] if column < len(classes) else str(column)
                self._of(self._predictions, *key, name).inc(int(counts[column]))

    def page(self, follower: Follower, ready: bool) -> bytes:
        """All metrics in Prometheus's text format."""
        self._ready.set(ready)
        self._degraded.set(bool(follower.trouble or follower.failures))
        return generate_latest(self.registry)


class Watch:
    """Recent moments of an input, weighted by exp(-age / 10 000 examples)."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self._weight = self._sum = self._squares = 0.0

    def add(self, values: Array) -> bool:
        """Counts examples; False when they hold NaN or infinity."""
        flat = values.reshape(-1)
        total = float(flat.sum(dtype=np.float64))
        squares = float(np.dot(flat, flat)) if flat.dtype.kind == "f" else float(np.sum(np.square(flat, dtype=float)))
        if not (math.isfinite(total) and math.isfinite(squares)):
            return False
        kept = math.exp(-max(1, len(values)) / _MEMORY)
        self._weight = self._weight * kept + flat.size
        self._sum = self._sum * kept + total
        self._squares = self._squares * kept + squares
        return True

    @property
    def mean(self) -> float:
        """Of all values of all features."""
        return self._sum / self._weight

    @property
    def deviation(self) -> float:
        """The standard deviation of them."""
        return math.sqrt(max(0.0, self._squares / self._weight - self.mean**2))


def label_names(labels: Mapping[str, int], classes: Sequence[str]) -> dict[str, str]:
    """The names of labels that count columns: of classes where they have one."""
    return {label: classes[int(label)] if label.isdigit() and int(label) < len(classes) else label for label in labels}
