"""Our mean over updates in memory."""

import json
import time

from arrays import WEIGHTS, updates

from fedpipe.aggregation import combine_arrays, make_rule
from fedpipe.federation.rules import Mean

held, times = updates(), []
for _ in range(6):
    started = time.perf_counter()
    combine_arrays(held, WEIGHTS, rule=make_rule(Mean()))
    times.append(time.perf_counter() - started)
print(json.dumps({"seconds": times[1:]}))
