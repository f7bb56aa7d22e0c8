"""Imports TensorFlow Federated, silently, with a runtime that ends together with this process.

TFF executes computations in a separate process, `worker_binary`. If TFF starts it, it inherits our output, which keeps
pipes open, and survives when this process is killed. So it is started here.
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
"""Most bytes of a model or of a client's data in a message to the worker: the limit of gRPC."""
_START_SECONDS = 60.0


@functools.cache
def federated() -> Any:
    """Returns the module `tensorflow_federated`, with its runtime set. Raises MissingExtraError and StepError."""
    frameworks()
    with uncollected():
        try:
            import tensorflow_federated as tff
        except ImportError as error:
            raise MissingExtraError("TensorFlow Federated", "tff") from error
    stub = _connect(tff)

    def stack(cardinalities: dict[Any, int]) -> Any:
        cardinalities.setdefault(tff.CLIENTS, 0)
        executor = tff.framework.RemoteExecutor(stub)
        executor.set_cardinalities(cardinalities)
        return executor

    context = tff.framework.SyncExecutionContext(
        executor_fn=tff.framework.ResourceManagingExecutorFactory(executor_stack_fn=stack),
        compiler_fn=functools.partial(_compile, tff),
        transform_args=tff.tensorflow.transform_args,
        transform_result=tff.tensorflow.transform_result,
    )
    tff.framework.set_default_context(context)
    return tff


def _compile(tff: Any, computation: Any) -> Any:
    """Compiles for the worker, which has no secure sums: they are computed in the clear, with their checks."""
    bodies = tff.backends.test.replace_secure_intrinsics_with_bodies(computation)
    return tff.backends.native.desugar_and_transform_to_native(bodies)


def _connect(tff: Any) -> Any:
    """Starts a worker, and returns its stub once it answers."""
    import grpc
    import portpicker

    port = portpicker.pick_unused_port()
    process = _start_worker(Path(tff.__file__).parent / "data" / "worker_binary", port)
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


def _start_worker(binary: Path, port: int) -> subprocess.Popen[bytes]:
    """Starts the worker such that the kernel ends it together with this process, even if that is killed."""
    setpriv = shutil.which("setpriv")  # of util-linux; a preexec_fn would run Python between fork and exec
    prefix = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
    return subprocess.Popen(  # noqa: S603  (TFF's own program)
        [*prefix, str(binary), f"--port={port}", "--max_concurrent_computation_calls=-1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
