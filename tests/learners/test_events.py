from __future__ import annotations

from pathlib import Path

import numpy as np

from fedpipe.frameworks import frameworks
from fedpipe.learners.events import event_file


def test_event_files_are_read_by_tensorflow(tmp_path: Path) -> None:
    """It checks both checksums of each record."""
    tensorflow, _ = frameworks()
    from tensorflow.core.util.event_pb2 import Event

    (tmp_path / "events").write_bytes(event_file([(0, {"epoch_loss": 2.0, "épôque": 0.5}), (300, {"epoch_loss": 1.0})]))
    events = [Event.FromString(r.numpy()) for r in tensorflow.data.TFRecordDataset(str(tmp_path / "events"))]
    assert events[0].file_version == "brain.Event:2"
    assert len({event.wall_time for event in events}) == 1
    assert events[0].wall_time > 1.7e9
    assert [(e.step, [(v.tag, v.simple_value) for v in e.summary.value]) for e in events[1:]] == [
        (0, [("epoch_loss", 2.0), ("épôque", 0.5)]),
        (300, [("epoch_loss", 1.0)]),
    ]


def test_numbers_of_any_size_are_written() -> None:
    """Infinity stands for those that do not fit: a learner is not dropped for a large loss."""
    huge = event_file([(0, {"a": 1e300, "b": -1e39, "c": 3e38})])
    for value in (b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", np.float32(3e38).tobytes()):
        assert value in huge
