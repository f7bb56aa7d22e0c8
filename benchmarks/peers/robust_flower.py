"""Flower's rules over the same updates: what its strategies do after the answers are there."""

import json
import time

import numpy as np
from arrays import updates
from flwr.server.strategy.aggregate import aggregate_krum, aggregate_median, aggregate_trimmed_avg

RULES = {
    "median": aggregate_median,
    "trimmed_mean": lambda results: aggregate_trimmed_avg(results, 0.2),
    "krum": lambda results: aggregate_krum(results, 2, 0),
}
held = [([np.asarray(value) for value in update.values()], 1) for update in updates()]
seconds = {}
for name, rule in RULES.items():
    seconds[name] = []
    for _ in range(2):  # of seconds each, so that a warm-up changes nothing
        started = time.perf_counter()
        rule(held)
        seconds[name].append(time.perf_counter() - started)
print(json.dumps(seconds))
