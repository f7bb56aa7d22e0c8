"""Flower's aggregate_arrayrecords over the same updates."""

import json
import time

from arrays import WEIGHTS, updates
from flwr.common import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

records = [
    RecordDict(
        {"arrays": ArrayRecord({k: Array(v) for k, v in u.items()}), "metrics": MetricRecord({"num-examples": w})}
    )
    for u, w in zip(updates(), WEIGHTS, strict=True)
]
times = []
for _ in range(6):
    started = time.perf_counter()
    aggregate_arrayrecords(records, "num-examples")
    times.append(time.perf_counter() - started)
print(json.dumps({"seconds": times[1:]}))
