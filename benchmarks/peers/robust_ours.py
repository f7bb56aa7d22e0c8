"""Robust rules of fedpipe over the same updates."""

import json
import time

from arrays import updates

from fedpipe.aggregation import combine_arrays, make_rule
from fedpipe.federation.rules import Krum, Median, TrimmedMean

RULES = {"median": Median(), "trimmed_mean": TrimmedMean(share=0.2), "krum": Krum(byzantine=2)}
held, seconds = updates(), {}
for name, settings in RULES.items():
    times = []
    for _ in range(4):
        started = time.perf_counter()
        combine_arrays(held, [1.0] * len(held), rule=make_rule(settings))
        times.append(time.perf_counter() - started)
    seconds[name] = times[1:]
print(json.dumps(seconds))
