"""Decodes each Struct type of fedpipe in a fresh process, by threads that start almost at once; prints the names.

A process that has decoded nothing is forked for each type and each distance in time between the threads.
"""

import contextlib
import importlib
import os
import pkgutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

import fedpipe
from fedpipe import codec

THREADS = 6
DISTANCES = (0.0003, 0.001)
"""Seconds between the starts of two threads: a type takes 0.1 to 25 ms to be described."""
_FORBIDDEN = ("fedpipe.tff", "fedpipe.pipelines", "fedpipe.components", "fedpipe.__main__", "fedpipe.engine.preload")


def struct_types() -> list[type[msgspec.Struct]]:
    """Return all Struct types of the package that can be decoded."""
    for module in pkgutil.walk_packages(fedpipe.__path__, "fedpipe."):
        if not module.name.startswith(_FORBIDDEN):
            with contextlib.suppress(ImportError):  # a framework that this environment lacks
                importlib.import_module(module.name)
    found, left = [], [msgspec.Struct]
    while left:
        kinds = [kind for kind in left.pop().__subclasses__() if kind not in found]
        found += [kind for kind in kinds if kind.__module__.startswith("fedpipe.")]
        left += kinds
    return found


def in_threads(work: Callable[[], Any], distance: float) -> None:
    """Call a function by threads that pass a barrier and then start some seconds apart."""
    sys.setswitchinterval(1e-6)
    barrier = threading.Barrier(THREADS)

    def start(position: int) -> None:
        barrier.wait()
        time.sleep(position * distance)
        with contextlib.suppress(msgspec.ValidationError):
            work()

    threads = [threading.Thread(target=start, args=(position,)) for position in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def survives(work: Callable[[], Any], distance: float) -> bool:
    """Return whether a forked process survives."""
    child = os.fork()
    if not child:
        in_threads(work, distance)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main() -> int:
    """Try all types; return 1 when a process died."""
    code = 0
    for kind in struct_types():
        content = {field.name: None for field in msgspec.structs.fields(kind)}
        data = msgspec.json.encode(content)
        ways = (lambda: codec.from_json(data, kind), lambda: codec.converted(content, kind))  # noqa: B023
        for distance in DISTANCES:
            for way in ways:
                if not survives(way, distance):
                    print(f"died: {kind.__module__}.{kind.__name__}, {distance} s apart", file=sys.stderr)
                    code = 1
        print(kind.__name__)
    return code


if __name__ == "__main__":
    sys.exit(main())
