"""One aggregate step in a process of its own: `step_memory.py STORE BASE PLAN` prints its extra peak memory."""

import json
import resource
import sys

from fedpipe.plan import read_plan
from fedpipe.steps.aggregate import close_round
from fedpipe.store import open_store


def peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


store = open_store(sys.argv[1])
plan = read_plan(store, sys.argv[3])
before = peak()
close_round(store, plan, 1, sys.argv[2])
print(json.dumps({"extra": peak() - before}))
