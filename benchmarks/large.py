"""A large model, exchange only: what a session's round takes through MinIO, and what its coordinator needs.

    python -m benchmarks.large [--megabytes 3350] [--learners 6] [--rounds 10]

Learners download the global weights, change a value and upload them, one after the other: they share this machine with
the server. Objects of earlier rounds are deleted, so the disk has to hold about twenty-two models.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import binaries, servers

from benchmarks.measure import MIB, ROOT, Row, at_most, median, quiet, timed

MEGABYTES, LEARNERS, ROUNDS = 3350, 6, 10
_MODELS = 22
"""Models on the disk at once: of the store, a learner's file, and what the coordinator reads and writes."""
_PROMPT = {"MINIO_API_DELETE_CLEANUP_INTERVAL": "2s"}
"""By default a MinIO keeps the bytes of deleted objects for five minutes, which is 13 models a round."""


def transfers(folder: Path, host: str, size: int) -> tuple[float, float]:
    """Median seconds of a bare upload and of a bare download of so many bytes, by `mc cp`."""
    mc, file, copy = str(binaries.find_binary("mc")), folder / "file", folder / "copy"
    environment = {
        **os.environ,
        "MC_HOST_bench": f"http://{servers.ACCESS_KEY}:{servers.SECRET_KEY}@{host}",
        "MC_CONFIG_DIR": str(folder / "mc"),
    }
    with file.open("wb") as out:
        for _ in range(size // MIB):
            out.write(os.urandom(MIB))

    def run(*arguments: str) -> None:
        subprocess.run([mc, "--quiet", *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)

    up, down = [], []
    for _ in range(3):
        up.append(timed(lambda: run("cp", str(file), "bench/tests/mc")))
        down.append(timed(lambda: run("cp", "bench/tests/mc", str(copy))))
        copy.unlink()
    run("rm", "bench/tests/mc")
    file.unlink()
    return median(up), median(down)


def measure(megabytes: int = MEGABYTES, learners: int = LEARNERS, rounds: int = ROUNDS) -> list[Row]:
    """Seconds of a round and of the bare transfer, and the coordinator's memory and early sums.

    Raises:
        RuntimeError: the disk is too small, or a process failed.
    """
    size = megabytes * 1_000_000
    with (
        tempfile.TemporaryDirectory() as name,
        servers.running("minio", Path(name) / "minio", settings=_PROMPT) as server,
    ):
        if (free := shutil.disk_usage(name).free) < _MODELS * size:
            raise RuntimeError(f"{name} has {free / 1e9:.0f} GB, and {_MODELS * size / 1e9:.0f} GB are needed")
        up, down = transfers(Path(name), server.endpoint.removeprefix("http://"), size)
        bare = 2 * learners * down + (learners + 1) * up
        found = _session(Path(name), server.uri, size, learners, rounds)
    what = f"a round of {learners} x {megabytes / 1000:g} GB, exchange only, MinIO"
    ours, peak = median(found["seconds"]), found["resident"] / MIB
    files = found["files"] / size
    return [
        Row(what, f"{ours:.1f} s", f"bare transfer {bare:.1f} s", round(ours / bare, 3), "stated", True),
        at_most("the same: the coordinator's memory", peak, 512, "bound", 1, "MiB"),
        at_most("the same: files of early sums", files, learners, "all updates", 1, "models"),
    ]


def _session(folder: Path, uri: str, size: int, learners: int, rounds: int) -> dict[str, list[float] | float]:
    """Run a session, each side in a process of its own; return what the coordinator measured."""
    environment = quiet() | {
        "AWS_ACCESS_KEY_ID": servers.ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": servers.SECRET_KEY
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.large_parties"]
    more = [uri, str(size), str(learners), str(rounds)]

    def started(role: str) -> subprocess.Popen[str]:
        (folder / role).mkdir()
        own = environment | {"TMPDIR": str(folder / role)}
        return subprocess.Popen([*command, role, *more], env=own, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    sides: list[subprocess.Popen[str]] = []
    try:
        beginning = started("begin")
        sides.append(beginning)
        if beginning.wait():
            raise RuntimeError("the session cannot begin")
        sides += [started("coordinator"), started("learners")]
        said, _ = sides[1].communicate()
        if sides[1].returncode or sides[2].wait():
            raise RuntimeError("the session failed")
        return dict(json.loads(said.strip().splitlines()[-1]))
    finally:
        for side in sides:
            side.kill()
            side.wait()


def run() -> list[Row]:
    """6 learners with 3.35 GB each, 10 rounds."""
    return measure()


def main() -> None:
    """Print the rows for a size of one's own."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stopped benchmark ends its processes
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=int, default=MEGABYTES)
    parser.add_argument("--learners", type=int, default=LEARNERS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    for row in measure(**vars(parser.parse_args())):
        print(*row, sep=" | ")


if __name__ == "__main__":
    main()
