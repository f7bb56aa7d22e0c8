"""Secure sums of 25 million values by 10 learners, compared with the bare cipher that they cannot do without."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from Crypto.Cipher import AES

from benchmarks.measure import Row, at_most, median, repeated, script
from fedpipe.secure.masks import BLOCK, CHUNK, SPAN, Masks, Term, fresh_seed
from fedpipe.secure.numbers import Grid, Words, packed_size
from fedpipe.secure.vector import Counts, Vector
from fedpipe.weights import layout_of

LEARNERS, VALUES = 10, 25_000_000
GRID = Grid(16, 1.0, LEARNERS)
REPEATS = 3
FLOWER = "Flower's SecAgg+"


def run() -> list[Row]:
    """Seconds on all cores, bytes, and the peak of memory in a process of its own."""
    pairs = [Term(fresh_seed(), minus=bool(k % 2)) for k in range(LEARNERS - 1)]
    masks = Masks([Term(fresh_seed()), *pairs], GRID.width, GRID.dtype)
    left = [Term(fresh_seed()) for _ in range(LEARNERS - 1)]
    remaining = Masks([*left, *pairs], GRID.width, GRID.dtype)
    words = np.arange(VALUES, dtype=GRID.dtype) & GRID.dtype.type(2**16 - 1)
    total = words.copy()

    masking, stream, unmasking, streams = repeated(
        lambda: masks.write(_chunks(words), len), lambda: _bare(LEARNERS - 1), lambda: remaining.remove(total), lambda: _bare(2 * (LEARNERS - 1)),
        repeats=REPEATS,
    )  # fmt: skip
    ours, flower = (script(name, f"peers/secure_{peer}.py") for name, peer in (("ours", "ours"), ("bench", "flower")))
    peak = script("ours", "secure.py")["mebibytes"]
    model = 4 * VALUES / 2**20
    return [
        at_most("masking 25 M values for 10 learners, without rounding", masking, stream, "bare AES of 9 masks", 1.3),
        at_most("the same", masking, 0.5, "bound", 1.0),
        at_most("removing the masks after one dropout", unmasking, streams, "bare AES of its 18 masks", 1.3),
        at_most("a masked vector", packed_size(VALUES, GRID.width) / 2**20, model, "float32", 0.66, "MiB"),
        at_most(
            "rounding and masking the same update", median(ours["seconds"]), median(flower["seconds"]), FLOWER, 1.0
        ),
        at_most(
            "the same, time of all processors", median(ours["processor"]), median(flower["processor"]), FLOWER, 1.0
        ),
        at_most("its upload", ours["mebibytes"], flower["mebibytes"], FLOWER, 1.0, "MiB"),
        at_most("rounding and masking: memory beyond both models", peak, model, "a model", 0.5, "MiB"),
    ]


def _chunks(words: Words) -> Iterator[Words]:
    for start in range(0, words.size, CHUNK):
        yield words[start : start + CHUNK]


def _bare(count: int) -> None:
    """Make the streams of so many masks by the library's CTR mode, and drop them.

    It works on all cores, in pieces that stay in the cache.
    """
    size, total = CHUNK * GRID.dtype.itemsize, VALUES * GRID.dtype.itemsize
    zeros = memoryview(bytes(size))

    def stream(start: int) -> None:
        out, stop = memoryview(bytearray(size)), min(start + SPAN * size, total)
        for _ in range(count):
            made = AES.new(bytes(32), AES.MODE_CTR, nonce=b"", initial_value=start // BLOCK)
            for place in range(start, stop, size):
                made.encrypt(zeros[: stop - place], output=out[: stop - place])

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(stream, range(0, total, SPAN * size)):
            pass


def main() -> None:
    """Rounds and masks a model once, and prints by how much memory grew beyond the two models that training holds."""
    base = {"w": np.zeros(VALUES, np.float32)}
    new = {"w": np.full(VALUES, 0.25, np.float32)}
    vector = Vector(GRID, layout_of(base), ("loss",))
    masks = Masks([Term(fresh_seed()) for _ in range(LEARNERS)], GRID.width, GRID.dtype)
    before = _peak()
    chunks = vector.encode(base, new, 1.0, Counts(1, 0, 0, {"loss": 1.0}), np.random.default_rng(0))
    sizes = list[int]()
    masks.write(chunks, lambda data: sizes.append(len(data)))
    assert sum(sizes) == vector.bytes
    json.dump({"mebibytes": _peak() - before}, sys.stdout)


def _peak() -> float:
    """The most memory of this process so far, in MiB; that of getrusage may be its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
