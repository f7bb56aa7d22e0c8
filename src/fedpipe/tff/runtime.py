"""Start TensorFlow Federated, with few log lines and a runtime that ends with this process.

TFF executes computations in a worker process of its own, `worker_binary`. Started by TFF, it inherits our output, which
keeps pipes open, and survives when this process is killed. So it is started here.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from fedpipe.errors import MissingExtraError, StepError
from fedpipe.frameworks import frameworks, uncollected

_LARGEST_MESSAGE = 2**31 - 1
"""Largest model or client's data that can be sent to the worker, in bytes: gRPC's limit."""
_START_SECONDS = 60.0


@functools.cache
def federated() -> Any:
    """Return the module `tensorflow_federated`, with the runtime set. Raises MissingExtraError and StepError."""
    frameworks()
    with uncollected():
        try:
            import tensorflow_federated as tff
        except ImportError as error:
            raise MissingExtraError("TensorFlow Federated", "tff") from error
    stub = _connected(tff)

    def stack(cardinalities: dict[Any, int]) -> Any:
        cardinalities.setdefault(tff.CLIENTS, 0)
        executor = tff.framework.RemoteExecutor(stub)
        executor.set_cardinalities(cardinalities)
        return executor

    context = tff.framework.SyncExecutionContext(
        executor_fn=tff.framework.ResourceManagingExecutorFactory(executor_stack_fn=stack),
        compiler_fn=functools.partial(_native, tff),
        transform_args=tff.tensorflow.transform_args,
        transform_result=tff.tensorflow.transform_result,
    )
    tff.framework.set_default_context(context)
    return tff


def _native(tff: Any, computation: Any) -> Any:
    """Convert a computation for the worker, which has no secure sums: they are made in the clear, with their checks."""
    bodies = tff.backends.test.replace_secure_intrinsics_with_bodies(computation)
    return tff.backends.native.desugar_and_transform_to_native(bodies)


def _connected(tff: Any) -> Any:
    """Return a stub of a worker that answers."""
    import grpc
    import portpicker

    port = portpicker.pick_unused_port()
    process = _started(Path(tff.__file__).parent / "data" / "worker_binary", port)
    atexit.register(process.kill)
    options = [("grpc.max_message_length", _LARGEST_MESSAGE), ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
               ("grpc.max_send_message_length", _LARGEST_MESSAGE)]  # fmt: skip
    stub = tff.framework.RemoteExecutorGrpcStub(grpc.insecure_channel(f"localhost:{port}", options))
    end = time.monotonic() + _START_SECONDS
    while not stub.is_ready:
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise StepError("the worker of TensorFlow Federated did not start")
        time.sleep(0.01)
    return stub


def _started(binary: Path, port: int) -> subprocess.Popen[bytes]:
    """Start the worker; the kernel ends it when this process ends in any way."""
    setpriv = shutil.which("setpriv")  # of util-linux: no Python runs between fork and exec of a threaded process
    leash = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
    return subprocess.Popen(  # noqa: S603  (TFF's own program)
        [*leash, str(binary), f"--port={port}", "--max_concurrent_computation_calls=-1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
