"""One aggregate step in a process of its own: `step_memory.py STORE BASE PLAN` prints its extra peak memory."""

import json
import sys
from pathlib import Path

from benchmarks.measure import resident
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.plan import read_plan
from fedpipe.store import open_store

store = open_store(sys.argv[1])
plan = read_plan(store, sys.argv[3])
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = resident("VmRSS")
close_round(store, plan, 1, sys.argv[2])
print(json.dumps({"extra": resident("VmHWM") - before}))
