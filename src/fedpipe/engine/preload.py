"""Imports the frameworks once, in the server from which workers are forked.

The server looks whether its parent lives only after the imports, which take seconds, so a thread looks meanwhile.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import threading

_USED = (
    "fedpipe.learners.keras.model",
    "fedpipe.registry.rehearsal",
    "fedpipe.steps.initialise",
    "fedpipe.steps.learn",
)
"""Modules that every worker would import itself."""
_LOOKS = 0.2
"""Seconds between two looks at the parent."""


def _end_without(parent: int, imported: threading.Event) -> None:
    while not imported.wait(_LOOKS):
        if os.getppid() != parent:
            os._exit(1)


_imported = threading.Event()
_watch = threading.Thread(target=_end_without, args=(os.getppid(), _imported))
_watch.start()
try:
    with contextlib.suppress(Exception):  # a worker that needs TensorFlow reports what is missing
        from fedpipe.frameworks import frameworks

        frameworks()
        for module in _USED:
            importlib.import_module(f"fedpipe.{module}")
finally:
    _imported.set()
    _watch.join()  # workers are forked from a process of one thread
atexit.register(os._exit, 0)  # when the parent is gone, the frameworks need not end in order, which takes long
