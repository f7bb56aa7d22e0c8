"""Measures a server for its operator: requests, latency, batches, versions, and the drift of inputs and outputs."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from fedpipe.registry.columns import columns_in
from fedpipe.registry.prediction import classify
from fedpipe.serving.follower import Follower, Served
from fedpipe.serving.runtime import Loaded

Array = npt.NDArray[Any]
_LATENCIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOGETHER = 2**16
"""Examples that are measured together, so that little memory is needed."""
_AVERAGED_EXAMPLES = 10_000
"""Examples over which the moments of the input are averaged, with exponential weights."""


class Measures:
    """Records the Prometheus metrics of a server."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        version = ["model", "version"]
        self._requests = Counter("fedpipe_requests", "Requests by status code.", [*version, "code"], **own)
        self._seconds = Histogram(
            "fedpipe_request_seconds", "Seconds from the head of a request to its response.", ["model"],
            buckets=_LATENCIES, **own,
        )  # fmt: skip
        self._rows = Histogram("fedpipe_batch_examples", "Examples of a run.", ["model"], buckets=_BATCHES, **own)
        self._version = Gauge("fedpipe_model_version", "The version that answers.", ["model", "role"], **own)
        self._failures = Counter("fedpipe_load_failures", "Versions that could not be loaded.", version, **own)
        self._ready = Gauge("fedpipe_ready", "1 when requests are accepted.", **own)
        self._degraded = Gauge("fedpipe_degraded", "1 when the store cannot be read, or a version failed.", **own)
        self._predictions = Counter("fedpipe_predictions", "Predicted classes.", [*version, "label"], **own)
        self._mean = Gauge("fedpipe_input_mean", "Recent mean of the first input.", version, **own)
        self._deviation = Gauge(
            "fedpipe_input_deviation", "Recent standard deviation of the first input.", version, **own
        )
        self._trained = Gauge(
            "fedpipe_training_label_share", "Share of a label in the training data.", [*version, "label"], **own
        )
        self._trained_mean = Gauge("fedpipe_training_input_mean", "Mean in the central test set.", version, **own)
        self._trained_deviation = Gauge(
            "fedpipe_training_input_deviation", "Standard deviation in the central test set.", version, **own
        )
        column = [*version, "column"]
        self._unknown = Counter("fedpipe_unknown_categories", "Categories that training did not see.", column, **own)
        self._missing = Counter("fedpipe_missing_values", "Missing values of a column.", column, **own)
        self._moments: dict[tuple[str, str], InputMoments] = {}
        self._children: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()

    def _child(self, metric: Any, *labels: str) -> Any:
        """Caches `metric.labels`, which takes as long as a run of a small model."""
        key = (metric, *labels)
        return self._children.get(key) or self._children.setdefault(key, metric.labels(*labels))

    def record_request(self, model: str, version: str, code: int, seconds: float) -> None:
        """Counts an answered request."""
        self._child(self._requests, model, version, str(code)).inc()
        if model:
            self._child(self._seconds, model).observe(seconds)

    def record_run(self, model: str, rows: int) -> None:
        """Counts a run and its examples."""
        self._child(self._rows, model).observe(rows)

    def record_failure(self, model: str, version: int) -> None:
        """Counts a version that could not be loaded."""
        self._failures.labels(model, str(version)).inc()

    def record_change(self, model: str, served: Served | None) -> None:
        """Records the versions that answer now, and removes the metrics of earlier versions."""
        loaded = {str(one.entry.version): one for one in (served.loaded if served else [])}
        with self._lock:
            for role, one in (("primary", served and served.primary), ("canary", served and served.canary)):
                if one:
                    self._version.labels(model, role).set(one.entry.version)
                else:
                    self._version.remove(model, role)
            for key in [key for key in self._moments if key[0] == model and key[1] not in loaded]:
                for gauge in (self._mean, self._deviation, self._trained_mean, self._trained_deviation):
                    gauge.remove(*key)
                for label in self._moments[key].labels:
                    self._trained.remove(*key, label)
                del self._moments[key]
            self._children.clear()  # it may hold metrics that were removed above
            for version, one in loaded.items():
                if (model, version) not in self._moments:
                    self._moments[model, version] = self._record_card(model, version, one)

    def _record_card(self, model: str, version: str, loaded: Loaded) -> InputMoments:
        card = loaded.model.card
        total = sum(card.labels.values())
        names = label_names(card.labels, card.classes)
        for label, name in names.items():
            self._trained.labels(model, version, name).set(card.labels[label] / total)
        if card.spread:
            self._trained_mean.labels(model, version).set(card.spread.mean)
            self._trained_deviation.labels(model, version).set(card.spread.deviation)
        return InputMoments(sorted(names.values()))

    def record_inference(self, loaded: Loaded, feed: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Records the moments of an input, and the classes of the outputs; safe in threads."""
        rows = len(next(iter(feed.values()))) if loaded.trial.batches else 0
        with self._lock:
            for start in range(0, max(rows, 1), _TOGETHER):
                part = slice(start, start + _TOGETHER) if rows > _TOGETHER else ...
                self._record_inference(
                    loaded, {k: v[part] for k, v in feed.items()}, {k: v[part] for k, v in outputs.items()}
                )

    def _record_inference(self, loaded: Loaded, feed: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        key = loaded.entry.name, str(loaded.entry.version)
        moments = self._moments.get(key)
        if moments is None:  # it was replaced while it answered
            return
        numeric = next((feed[spec.name] for spec in loaded.model.inputs if spec.dtype.kind != "O"), None)
        if numeric is not None:
            moments.add(numeric)
        if loaded.model.card.columns:
            self._count_cells(key, loaded, feed)
        scores = outputs[loaded.model.outputs[0].name]
        if scores.dtype.kind == "O":
            return
        classes = loaded.model.card.classes
        if scores.ndim == 2 and scores.shape[1] > 1:
            found: Array | None = scores.argmax(axis=1)
        else:
            found, _, classes = classify(scores, loaded.model.card)
        if found is not None:
            for column, count in _counted(found):
                name = classes[column] if column < len(classes) else str(column)
                self._child(self._predictions, *key, name).inc(count)

    def _count_cells(self, key: tuple[str, str], loaded: Loaded, feed: Mapping[str, Array]) -> None:
        """Counts missing values and unknown categories of a table's columns."""
        for column, values in columns_in(loaded.model.card.columns, feed):
            missing = np.isnan(values) if values.dtype.kind == "f" else values == ""
            if count := int(missing.sum()):
                self._child(self._missing, *key, column.name).inc(count)
            if column.kind == "category" and column.categories:
                known = {"", *column.categories}
                if count := sum(value not in known for value in values):
                    self._child(self._unknown, *key, column.name).inc(count)

    def render(self, follower: Follower, ready: bool) -> bytes:
        """Returns all metrics in Prometheus's text format."""
        self._ready.set(ready)
        self._degraded.set(bool(follower.trouble or follower.failures))
        with self._lock:
            for key, moments in self._moments.items():
                if moments.has_values:
                    self._mean.labels(*key).set(moments.mean)
                    self._deviation.labels(*key).set(moments.deviation)
        return generate_latest(self.registry)


def _counted(found: Array) -> list[tuple[int, int]]:
    """Returns each predicted class with its count."""
    if len(found) == 1:
        return [(int(found[0]), 1)]
    counts = np.bincount(found)
    return [(column, int(counts[column])) for column in counts.nonzero()[0].tolist()]


class InputMoments:
    """Estimates recent moments of an input, weighted by exp(-age / 10 000 examples)."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self._weight = self._sum = self._squares = 0.0

    def add(self, values: Array) -> None:
        """Adds examples without missing values; adds nothing if none is left or one is infinite."""
        flat = values.reshape(-1)
        total = float(flat.sum(dtype=np.float64))
        if math.isnan(total):
            flat = flat[~np.isnan(flat)]
            total = float(flat.sum(dtype=np.float64))
        if not flat.size:
            return
        squares = float(np.dot(flat, flat)) if flat.dtype.kind == "f" else float(np.sum(np.square(flat, dtype=float)))
        if not (math.isfinite(total) and math.isfinite(squares)):
            return
        kept = math.exp(-max(1, len(values)) / _AVERAGED_EXAMPLES)
        self._weight = self._weight * kept + flat.size
        self._sum = self._sum * kept + total
        self._squares = self._squares * kept + squares

    @property
    def has_values(self) -> bool:
        """Returns whether there was any value."""
        return self._weight > 0

    @property
    def mean(self) -> float:
        """Returns the mean over all features."""
        return self._sum / self._weight

    @property
    def deviation(self) -> float:
        """Returns the standard deviation over all features."""
        return math.sqrt(max(0.0, self._squares / self._weight - self.mean**2))


def label_names(labels: Mapping[str, int], classes: Sequence[str]) -> dict[str, str]:
    """Returns the name of each label: that of its class if the label is the index of one, or the label itself."""
    return {label: classes[int(label)] if label.isdigit() and int(label) < len(classes) else label for label in labels}
