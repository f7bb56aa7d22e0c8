"""Runs that die in the middle: the same command again repeats nothing that was done, and ends with the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedpipe
from fedpipe.commands.init import Algorithm, Framework, init
from fedpipe.engine.local import Event
from tests.commands.runs import records, run_killed, store_of
from tests.federations import change


@pytest.mark.parametrize(
    ("algorithm", "rounds_per_step", "what", "count"),
    [
        (Algorithm.averaging, "all", "coordinate answered", 7),
        (Algorithm.averaging, "1", "train done", 7),
        (Algorithm.collective, "all", "coordinate answered", 14),
        (Algorithm.collective, "1", "vote done", 12),
    ],
    ids=["session", "steps", "votes-in-a-session", "votes-in-steps"],
)
def test_the_same_bytes_after_sigkill(
    tmp_path: Path, algorithm: Algorithm, rounds_per_step: str, what: str, count: int
) -> None:
    """The killed runs of steps end with the records of an undisturbed session."""
    init(tmp_path, algorithm, Framework.numpy)
    rounds = {Algorithm.averaging: "rounds: 10", Algorithm.collective: "rounds: 20"}[algorithm]
    file = change(tmp_path, **{rounds: "rounds: 3"})
    whole = fedpipe.run(file, out=tmp_path / "out").summary
    change(tmp_path, **{"rounds_per_step: all": f"rounds_per_step: {rounds_per_step}"})
    run_killed(file, tmp_path / "killed", what, count)
    killed = store_of(tmp_path / "killed")
    before = {key: killed.read(key).data for key in killed.keys("learners/")}
    mine = [key for key in before if key.endswith(("/update", "/ballot"))]
    assert killed.size("runs/run-1/1/record")
    assert killed.size("runs/run-1/2/record") is None
    assert mine
    events: list[Event] = []
    again = fedpipe.run(file, store=str(tmp_path / "killed"), out=tmp_path / "o", listener=events.append).summary
    assert records(again) == records(whole)
    assert again["onnx"]["digest"] == whole["onnx"]["digest"]
    assert killed.read("HEAD").data == store_of(tmp_path / "store").read("HEAD").data
    assert {key: killed.read(key).data for key in mine} == {key: before[key] for key in mine}
    assert {e.what for e in events if e.task.step in ("shard", "initialise")} <= {"started", "found", "done"}
    if algorithm == Algorithm.collective:
        for earlier, later in zip(whole["rounds"], whole["rounds"][1:], strict=False):
            assert later["vote"]["voters"] == 4
            assert (later["weights"] != earlier["weights"]) == later["vote"]["accepted"]
