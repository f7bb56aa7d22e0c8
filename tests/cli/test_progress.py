"""A line for each finished step, in which reasons and names are text."""

from __future__ import annotations

import pytest

from fedpipe.cli.progress import Progress
from fedpipe.engine.local import Event
from tests.cli.events import event


@pytest.mark.parametrize(
    ("finished", "line"),
    [
        (event("train", 1, {"loss": 0.5, "seconds/inner": 1.0}, "a"), "✓ 1 train a              loss 0.5000 0.0 s"),
        (event("train", 1, {"dropped": "no [/b] power"}, "a"), "✗ 1 train a dropped: no [/b] power"),
        (
            event("aggregate", 1, {"loss": 0.5, "dropped": "b [bold]"}),
            "● 1 aggregate            loss 0.5000 without b [bold] 0.0 s",
        ),
        (event("train", 1, {})._replace(what="found"), "= 1 train                 already done"),
        (event("train", 1, {})._replace(what="retried", why="[killed]"), "↻ 1 train : [killed]; trying again"),
    ],
)
def test_a_line_for_each_step(finished: Event, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress(finished._replace(what="started"))
        progress(finished)
    captured = capsys.readouterr()
    assert captured.out == ""  # only results are on standard output
    begun, started, *lines = captured.err.splitlines()
    assert begun.split(maxsplit=2)[2] == "starting"
    assert started.endswith(f"{finished.task.name} started")
    assert [text.split(maxsplit=2)[2] for text in lines] == [line]
