"""Our mean over updates in memory."""

import json
import time

from arrays import WEIGHTS, updates

from fedpipe.aggregation.rule import average

held, times = updates(), []
for _ in range(6):
    started = time.perf_counter()
    average(held, WEIGHTS)
    times.append(time.perf_counter() - started)
print(json.dumps({"seconds": times[1:]}))
