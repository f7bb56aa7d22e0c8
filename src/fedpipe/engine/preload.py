"""Imports the frameworks once, in the server from which workers are forked."""

from __future__ import annotations

import contextlib

with contextlib.suppress(Exception):  # a worker that needs TensorFlow reports what is missing
    from fedpipe.frameworks import frameworks

    frameworks()
