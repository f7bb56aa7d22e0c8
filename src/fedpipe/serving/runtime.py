"""A version that answers: loaded in onnxruntime after it was tried in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from fedpipe.errors import CorruptError, FedpipeError
from fedpipe.registry.prediction import OnnxModel, open_model, runtime
from fedpipe.registry.publication import ModelVersion

Array = npt.NDArray[Any]
TRIAL_SECONDS = 120.0
"""What loading and one inference may take."""
_ROOM = 4 * 2**30
"""Bytes of address space that a trial may take beyond four times the model."""
_SIZES = (1, 8, 64)
"""Sizes that are tried for dimensions that are free, other than the batch."""


class Trial(Struct, frozen=True, kw_only=True):
    """What a trial showed: whether the first dimension is that of the examples."""

    batches: bool


class Loaded(NamedTuple):
    """A version that can answer."""

    entry: ModelVersion
    model: OnnxModel
    trial: Trial

    def run(self, feed: Mapping[str, Array], options: Any = None) -> dict[str, Array]:
        """All outputs by name."""
        found = self.model.run(dict(feed), options)
        return {spec.name: array for spec, array in zip(self.model.outputs, found, strict=True)}


def load(entry: ModelVersion, data: bytes, *, threads: int) -> Loaded:
    """Tries a model in a process of its own, then loads it here: a hostile one takes nobody along.

    Raises:
        CorruptError: it cannot be loaded or run, takes too long or too much memory, or ends the process.
    """
    trial = _tried(entry, data)
    try:
        return Loaded(entry, open_model(data, threads=threads, accelerated=True), trial)
    except FedpipeError as error:
        raise CorruptError(error.what, where=str(entry)) from error
    finally:
        _give_back_memory()


def _give_back_memory() -> None:
    """Returns to the system what earlier versions held: glibc keeps it, and a server would grow for weeks."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _tried(entry: ModelVersion, data: bytes) -> Trial:
    command = [sys.executable, "-m", "fedpipe.serving.runtime", str(4 * len(data) + _ROOM)]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=TRIAL_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise CorruptError(f"the model does not answer within {TRIAL_SECONDS:g} s", where=str(entry)) from error
    if done.returncode == 0:
        return msgspec.json.decode(done.stdout, type=Trial)
    told = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:300]
    raise CorruptError(
        told if done.returncode == 1 and told else f"the model ended its trial (exit code {done.returncode})",
        where=str(entry),
    )


def try_model(model: OnnxModel) -> Trial:
    """Runs a model on zeros, for one example and for two. Raises what onnxruntime raises."""
    size = next(_sizes_that_work(model))
    free = all(spec.shape and spec.shape[0] is None for spec in (*model.inputs, *model.outputs))
    return Trial(batches=free and _pairs(model, size))


def _sizes_that_work(model: OnnxModel) -> Iterator[int]:
    for size in _SIZES:
        try:
            model.run(_zeros(model, 1, size))
        except Exception:
            if size == _SIZES[-1]:
                raise
        else:
            yield size


def _pairs(model: OnnxModel, size: int) -> bool:
    """Whether two examples give two answers."""
    return all(array.ndim and len(array) == 2 for array in model.run(_zeros(model, 2, size)))


def _zeros(model: OnnxModel, batch: int, size: int) -> dict[str, Array]:
    def shape(given: tuple[int | None, ...]) -> list[int]:
        return [
            (batch if axis == 0 else size) if length is None else length
            for axis, length in zip(itertools.count(), given, strict=False)
        ]

    return {spec.name: np.zeros(shape(spec.shape), spec.dtype) for spec in model.inputs}


def cores() -> int:
    """Cores that this process may use: of its affinity, and of its container's limit.

    Source: the Linux kernel's documentation, cgroup-v2, interface file `cpu.max`.
    """
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return allowed if quota == "max" else max(1, min(allowed, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return allowed


def main() -> int:
    """The trial: a model on standard input, what it showed on standard output, one line on why it failed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = sys.stdin.buffer.read()
    try:
        runtime()  # before memory is limited
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limit = used + int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        trial = try_model(open_model(data, threads=1))
    except FedpipeError as error:
        print(error.what, file=sys.stderr)
        return 1
    except MemoryError:
        print("the model takes too much memory", file=sys.stderr)
        return 1
    except Exception as error:
        print(f"the model fails on zeros: {' '.join(str(error).split())[:200]}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(trial))
    return 0


if __name__ == "__main__":
    sys.exit(main())
