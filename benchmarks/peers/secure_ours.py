"""Rounds and masks the same update as a learner of ten does, with masks of the full protocol."""

import io
import json
import time

import numpy as np
from arrays import UPDATES, WEIGHTS, updates

from fedpipe.secure.masks import Masks, Term, fresh_seed
from fedpipe.secure.numbers import Grid
from fedpipe.secure.vector import Counts, Vector
from fedpipe.weights import layout_of

TERMS = [Term(fresh_seed(), minus=bool(place % 2)) for place in range(UPDATES)]


def masked(base, new):
    """The packed vector of one learner of ten: its own mask and nine of pairs; its size."""
    vector = Vector(Grid(16, 8.0, UPDATES), layout_of(base), ("loss",))
    counts, random = Counts(WEIGHTS[0], 0, 0, {"loss": 1.0}), np.random.Generator(np.random.SFC64())
    chunks = vector.encode(base, new, WEIGHTS[0] / max(WEIGHTS), counts, random)
    file = io.BytesIO()
    Masks(TERMS, vector.grid.width, vector.grid.dtype).write(chunks, file.write)
    return file.tell()


new = updates(1)[0]
base = {name: np.zeros_like(array) for name, array in new.items()}
times, work = [], []
for _ in range(3):
    started, used = time.perf_counter(), time.process_time()
    size = masked(base, new)
    times.append(time.perf_counter() - started)
    work.append(time.process_time() - used)
print(json.dumps({"seconds": times, "processor": work, "mebibytes": size / 2**20}))
