"""A site: what a round costs there beyond one without it, and what its agent costs while it waits."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from tests import servers
from tests.sites.hospitals import LOCAL, SITES, Federation, until

import fedpipe
from benchmarks.measure import MIB, Row, at_most, median
from fedpipe.commands.init import Framework, init
from fedpipe.rounds.timings import find_timing
from fedpipe.store import keys

ROUNDS = 20
BOUND = 0.3
"""Seconds that a round may take longer with a site."""
WAIT = 120.0
"""Seconds in which an idle agent is watched."""
CORE, MEMORY = 0.005, 150.0
"""The share of a core and the MiB that an idle agent may use."""


def run() -> list[Row]:
    """The rows: a round with one learner at a site, and an idle agent."""
    os.environ.update(AWS_ACCESS_KEY_ID=servers.ACCESS_KEY, AWS_SECRET_ACCESS_KEY=servers.SECRET_KEY)
    with tempfile.TemporaryDirectory() as name, servers.running("minio", Path(name) / "minio") as server:
        folder = Path(name) / "digits"
        init(folder, framework=Framework.numpy)
        here = round_of(Federation(folder, f"{server.uri.replace('tests?', 'tests/here?')}"), ())
        there = Federation(folder, f"{server.uri.replace('tests?', 'tests/there?')}")
        try:
            away = round_of(there, SITES[:1])
            cores, memory = idle(there)
        finally:
            for process in there.agents.values():
                process.kill()
                process.wait()
    what = f"a round of {len(LOCAL) + len(SITES)} learners on MinIO, "
    return [
        at_most(f"{what}seconds more with one at a site", away - here, BOUND, "bound", 1.0),
        at_most("an idle agent: share of a core", cores, CORE, "bound", 1.0, "cores"),
        at_most("an idle agent: memory", memory, MEMORY, "bound", 1.0, "MiB"),
    ]


def round_of(federation: Federation, sites: tuple[str, ...]) -> float:
    """Median seconds in which the learners of a round are awaited; the first rounds, in which processes start, apart."""
    file = federation.write(sites=sites, rounds=ROUNDS)
    for site in sites:
        federation.join(site)
        federation.start(site)
    fedpipe.run(file, out=federation.folder / "out", name="r1", export="none")
    found = [find_timing(federation.store, "r1", number, "await-train") for number in range(4, ROUNDS + 1)]
    return median([timing.seconds for timing in found if timing])


def idle(federation: Federation) -> tuple[float, float]:
    """The share of a core and the MiB of an agent that waits."""
    process = federation.agents[SITES[0]]
    until(lambda: federation.store.size(keys.presence(SITES[0])))
    time.sleep(90)  # shortly after a session it looks more often
    started, begun = seconds_of(process.pid), time.monotonic()
    time.sleep(WAIT)
    share = (seconds_of(process.pid) - started) / (time.monotonic() - begun)
    memory = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
    return share, memory


def seconds_of(process: int) -> float:
    """Seconds of processors that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
