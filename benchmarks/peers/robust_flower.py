"""Flower's rule over the same updates: what its strategies do after the answers are there."""

import json
import sys
import time

import numpy as np
from arrays import updates
from flwr.server.strategy.aggregate import aggregate_krum, aggregate_median, aggregate_trimmed_avg

rule = {
    "median": aggregate_median,
    "trimmed_mean": lambda results: aggregate_trimmed_avg(results, 0.2),
    "krum": lambda results: aggregate_krum(results, 2, 0),
}[sys.argv[1]]
held = [([np.asarray(value) for value in update.values()], 1) for update in updates()]
times = []
for _ in range(3):
    started = time.perf_counter()
    rule(held)
    times.append(time.perf_counter() - started)
print(json.dumps({"seconds": times[1:]}))
