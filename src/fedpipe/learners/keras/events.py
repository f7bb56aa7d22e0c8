"""Writes TensorBoard's event files."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from fedpipe.frameworks import frameworks


def event_file(points: Iterable[tuple[int, Mapping[str, float]]]) -> bytes:
    """A TensorBoard event file with one scalar per metric and step."""
    tensorflow, _ = frameworks()
    from tensorflow.core.framework.summary_pb2 import Summary
    from tensorflow.core.util.event_pb2 import Event

    now = time.time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events"
        with tensorflow.io.TFRecordWriter(str(path)) as writer:
            writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
            for step, metrics in points:
                values = [Summary.Value(tag=k, simple_value=float(v)) for k, v in metrics.items()]
                writer.write(Event(wall_time=now, step=step, summary=Summary(value=values)).SerializeToString())
        return path.read_bytes()
