"""The masking step of Flower's SecAgg+ (`secaggplus_mod._collect_masked_vectors`), with its utilities and defaults."""

import json
import os
import time

from arrays import UPDATES, WEIGHTS, updates
from flwr.common import ndarray_to_bytes
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

CLIPPING, TARGET, MODULUS = 8.0, 2**22, 2**32
SEEDS = [os.urandom(32) for _ in range(UPDATES)]


def masked(arrays):
    """The packed vector of one client of ten: its own mask and nine of pairs."""
    ratio = round(WEIGHTS[0] / max(WEIGHTS) * TARGET)
    parameters = quantize(parameters_multiply(arrays, ratio / TARGET), CLIPPING, TARGET)
    parameters = factor_combine(ratio, parameters)
    shapes = [array.shape for array in parameters]
    parameters = parameters_addition(parameters, pseudo_rand_gen(SEEDS[0], MODULUS, shapes))
    for place, seed in enumerate(SEEDS[1:]):
        combine = parameters_addition if place % 2 else parameters_subtraction
        parameters = combine(parameters, pseudo_rand_gen(seed, MODULUS, shapes))
    return [ndarray_to_bytes(array) for array in parameters_mod(parameters, MODULUS)]


arrays = list(updates(1)[0].values())
times, work = [], []
for _ in range(3):
    started, used = time.perf_counter(), time.process_time()
    size = sum(map(len, masked(arrays)))
    times.append(time.perf_counter() - started)
    work.append(time.process_time() - used)
print(json.dumps({"seconds": times, "processor": work, "mebibytes": size / 2**20}))
