"""Secure sums of 25 million values by 10 learners, compared with the bare cipher that they cannot do without.

Arguments: learner | coordinator, whose memory is measured in a process of its own.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from Crypto.Cipher import AES

from benchmarks.measure import Row, at_most, median, repeated, script
from fedpipe.rounds.masked import add_vectors, digest_of_file, write_mean
from fedpipe.secure.masks import BLOCK, CHUNK, SPAN, WINDOW, Masks, Term, fresh_seed
from fedpipe.secure.numbers import Grid, Words, packed_size
from fedpipe.secure.party import Form
from fedpipe.secure.vector import Counts, Vector
from fedpipe.store import open_store
from fedpipe.store.objects import put_file
from fedpipe.weights import head_bytes, layout_of

LEARNERS, VALUES = 10, 25_000_000
GRID = Grid(16, 1.0, LEARNERS)
REPEATS = 3
FLOWER = "Flower's SecAgg+"
PARTIES = ("learner", "coordinator")


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
    learner, coordinator = (script("ours", "secure.py", party)["mebibytes"] for party in PARTIES)
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
        at_most("rounding and masking: memory beyond both models", learner, model, "a model", 0.5, "MiB"),
        at_most("adding and opening the sum: memory of the coordinator", coordinator, model, "a model", 2.5, "MiB"),
    ]


def _chunks(words: Words) -> Iterator[Words]:
    for start in range(0, words.size, CHUNK):
        yield words[start : start + CHUNK]


def _bare(count: int) -> None:
    """Make the streams of so many masks by the library's CTR mode, and drop them.

    It works on all cores, in pieces that stay in the cache.
    """
    span, total = SPAN * CHUNK * GRID.dtype.itemsize, VALUES * GRID.dtype.itemsize
    zeros = memoryview(bytes(WINDOW))

    def stream(start: int) -> None:
        out, stop = memoryview(bytearray(WINDOW)), min(start + span, total)
        for _ in range(count):
            made = AES.new(bytes(32), AES.MODE_CTR, nonce=b"", initial_value=start // BLOCK)
            for place in range(start, stop, WINDOW):
                made.encrypt(zeros[: stop - place], output=out[: stop - place])

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(stream, range(0, total, span)):
            pass


def main() -> None:
    """Does one party's work once, and prints by how much memory grew."""
    with tempfile.TemporaryDirectory() as folder:
        grown = _learner() if sys.argv[1] == "learner" else _coordinator(Path(folder))
    json.dump({"mebibytes": grown}, sys.stdout)


def _learner() -> float:
    """Round and mask a model, beyond the two models that training holds."""
    base = {"w": np.zeros(VALUES, np.float32)}
    new = {"w": np.full(VALUES, 0.25, np.float32)}
    vector = Vector(GRID, layout_of(base), ("loss",))
    masks = Masks([Term(fresh_seed()) for _ in range(LEARNERS)], GRID.width, GRID.dtype)
    before = _peak()
    chunks = vector.encode(base, new, 1.0, Counts(1, 0, 0, {"loss": 1.0}), np.random.default_rng(0))
    sizes = list[int]()
    masks.write(chunks, lambda data: sizes.append(len(data)))
    assert sum(sizes) == vector.bytes
    return _peak() - before


def _coordinator(folder: Path) -> float:
    """Add three masked vectors, remove the masks, and write the mean."""
    layout = layout_of({"w": np.broadcast_to(np.float32(0), VALUES)})
    vector, form = Vector(GRID, layout, ("loss",)), Form(("a", "b", "c"))
    store, vectors = open_store(f"file://{folder}/store"), dict[str, str]()
    size = form.size + vector.bytes
    before = _peak()
    for name in form.names:
        path = folder / name
        with path.open("wb") as file:
            for start in range(0, size, 2**20):
                file.write(os.urandom(min(2**20, size - start)))
        vectors[name] = digest_of_file(path)
        put_file(store, path, vectors[name], name)
    with (folder / "base").open("wb") as file:
        file.write(head_bytes(layout))
        for _ in range(VALUES // 2**15 + 1):
            file.write(bytes(2**17))
    found, refused = add_vectors(store, "run", form, vector, vectors)
    assert not refused
    Masks([Term(fresh_seed()) for _ in range(LEARNERS)], GRID.width, GRID.dtype).remove(found.total)
    write_mean(vector, found.total, len(vectors), 0.1, folder / "base", folder / "mean")
    return _peak() - before


def _peak() -> float:
    """The most memory of this process so far, in MiB; that of getrusage may be its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
