"""NVFlare's WeightedAggregationHelper over the same updates."""

import json
import time

from arrays import WEIGHTS, updates
from nvflare.app_common.aggregators.weighted_aggregation_helper import WeightedAggregationHelper

held, times = updates(), []
for _ in range(6):
    started = time.perf_counter()
    helper = WeightedAggregationHelper()
    for number, (update, weight) in enumerate(zip(held, WEIGHTS, strict=True)):
        helper.add(update, weight, f"site-{number}", 1)
    helper.get_result()
    times.append(time.perf_counter() - started)
print(json.dumps({"seconds": times[1:]}))
