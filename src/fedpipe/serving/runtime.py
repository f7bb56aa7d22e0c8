"""Loads a version in onnxruntime, after a trial in a separate process."""

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

from fedpipe.codec import from_json
from fedpipe.errors import CorruptError, FedpipeError, one_line
from fedpipe.registry.prediction import OnnxModel, open_model, runtime
from fedpipe.registry.publication import ModelVersion
from fedpipe.serving.tensors import RequestError

Array = npt.NDArray[Any]
TRIAL_SECONDS = 120.0
"""Time limit of a trial, which loads the model and runs it."""
_TRIAL_BYTES = 4 * 2**30
"""Bytes of address space that a trial may use in addition to four times the model."""
_SLICE_ROWS = 2**13
_SLICE_BYTES = 2**23
"""Most examples, and about how many bytes of them, that run at once."""
_SIZES = (1, 8, 64)
"""Sizes that a trial tries for free dimensions other than the batch."""


class Trial(Struct, frozen=True, kw_only=True):
    """Holds the result of a trial: whether the first dimension counts examples."""

    batches: bool


class Loaded(NamedTuple):
    """Holds a version that can answer."""

    entry: ModelVersion
    model: OnnxModel
    trial: Trial

    def run(self, feed: Mapping[str, Array], options: Any = None, *, most: int = 2**62) -> dict[str, Array]:
        """Returns all outputs by name; many examples run in slices, so that the model's own arrays stay small.

        Args:
            feed: inputs by name.
            options: of onnxruntime.
            most: bytes that the outputs may have.

        Raises:
            RequestError: the outputs have more bytes.
        """
        rows = len(next(iter(feed.values()))) if self.trial.batches else 1
        step = max(1, min(_SLICE_ROWS, _SLICE_BYTES * rows // max(1, sum(array.nbytes for array in feed.values()))))
        outputs: list[Array] = []
        for start in range(0, max(rows, 1), step):
            part = feed if rows <= step else {name: array[start : start + step] for name, array in feed.items()}
            found = self.model.run(dict(part), options)
            if sum(array.nbytes for array in found) * rows // min(rows or 1, step) > most:
                raise RequestError(413, f"the answer has more than {most} bytes: send fewer examples")
            if rows <= step:
                outputs = found
                break
            outputs = outputs or [np.empty((rows, *array.shape[1:]), array.dtype) for array in found]
            for whole, array in zip(outputs, found, strict=True):
                whole[start : start + step] = array
        return {spec.name: array for spec, array in zip(self.model.outputs, outputs, strict=True)}


def load(entry: ModelVersion, data: bytes, *, threads: int) -> Loaded:
    """Tries a model in a separate process, then loads it here: so a hostile model cannot end the server.

    Args:
        entry: the version.
        data: the ONNX model.
        threads: threads of one run.

    Raises:
        CorruptError: it cannot be loaded or run, needs too much time or memory, or ends the trial's process.
    """
    trial = _run_trial(entry, data)
    try:
        return Loaded(entry, open_model(data, threads=threads, accelerated=True), trial)
    except FedpipeError as error:
        raise CorruptError(error.what, where=str(entry)) from error
    finally:
        _release_memory()


def _release_memory() -> None:
    """Returns the memory of earlier versions to the system: glibc keeps it, and a server would grow for weeks."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _run_trial(entry: ModelVersion, data: bytes) -> Trial:
    command = [sys.executable, "-m", "fedpipe.serving.runtime", str(4 * len(data) + _TRIAL_BYTES)]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=TRIAL_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise CorruptError(f"the model does not answer within {TRIAL_SECONDS:g} s", where=str(entry)) from error
    if done.returncode == 0:
        return from_json(done.stdout, Trial)
    reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:300]
    raise CorruptError(
        reason if done.returncode == 1 and reason else f"the model ended its trial (exit code {done.returncode})",
        where=str(entry),
    )


def try_model(model: OnnxModel) -> Trial:
    """Runs a model on zeros, for one example and for two. Passes on the exceptions of onnxruntime."""
    size = next(_working_sizes(model))
    free = all(spec.shape and spec.shape[0] is None for spec in (*model.inputs, *model.outputs))
    return Trial(batches=free and _takes_pairs(model, size))


def _working_sizes(model: OnnxModel) -> Iterator[int]:
    for size in _SIZES:
        try:
            model.run(_zeros(model, 1, size))
        except Exception:
            if size == _SIZES[-1]:
                raise
        else:
            yield size


def _takes_pairs(model: OnnxModel, size: int) -> bool:
    """Returns whether two examples give two rows in every output."""
    return all(array.ndim and len(array) == 2 for array in model.run(_zeros(model, 2, size)))


def _zeros(model: OnnxModel, batch: int, size: int) -> dict[str, Array]:
    def shape(given: tuple[int | None, ...]) -> list[int]:
        return [
            (batch if axis == 0 else size) if length is None else length
            for axis, length in zip(itertools.count(), given, strict=False)
        ]

    return {
        spec.name: np.full(shape(spec.shape), "" if spec.dtype == object else 0, spec.dtype) for spec in model.inputs
    }


def main() -> int:
    """Runs a trial: reads a model from standard input, and writes a Trial to standard output.

    A failure is one line on standard error, and exit code 1.
    """
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
        print("the model needs too much memory", file=sys.stderr)
        return 1
    except Exception as error:
        print(f"the model fails on zeros: {one_line(error)}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(trial))
    return 0


if __name__ == "__main__":
    sys.exit(main())
