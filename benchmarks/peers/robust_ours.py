"""A robust rule of fedpipe over the same updates: median, trimmed_mean or krum."""

import json
import sys
import time

from arrays import updates

from fedpipe.aggregation import combine_arrays, make_rule
from fedpipe.federation.rules import Krum, Median, TrimmedMean

rule = make_rule({"median": Median(), "trimmed_mean": TrimmedMean(share=0.2), "krum": Krum(byzantine=2)}[sys.argv[1]])
held = updates()
times = []
for _ in range(4):
    started = time.perf_counter()
    combine_arrays(held, [1.0] * len(held), rule=rule)
    times.append(time.perf_counter() - started)
print(json.dumps({"seconds": times[1:]}))
