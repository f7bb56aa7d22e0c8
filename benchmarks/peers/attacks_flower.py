"""Accuracy under attack with Flower's rules, in the simulation of `benchmarks/attacks.py`."""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.attacks import ATTACKS, HOSTILE, accuracy, loaded
from flwr.server.strategy.aggregate import aggregate_krum, aggregate_median, aggregate_trimmed_avg

RULES = {
    "Flower's median": aggregate_median,
    "Flower's trimmed mean": lambda results: aggregate_trimmed_avg(results, 0.2),
    "Flower's Krum": lambda results: aggregate_krum(results, HOSTILE, 0),
}


def theirs(rule):
    def combined(updates, _base):
        found = rule([([update["w"], update["b"]], 1) for update in updates])
        return {"w": np.asarray(found[0], np.float32), "b": np.asarray(found[1], np.float32)}

    return combined


data = loaded(Path(sys.argv[1]))
print(json.dumps({name: {a: accuracy(theirs(rule), data, a) for a in ATTACKS} for name, rule in RULES.items()}))
