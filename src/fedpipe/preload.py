"""Imported once by the server from which workers are forked."""

import contextlib

with contextlib.suppress(Exception):  # a worker that needs TensorFlow says what is missing
    from fedpipe.keras_model import frameworks

    frameworks()
