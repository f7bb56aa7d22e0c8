"""`fedpipe runs`, `watch`, `report` and `repair` of a store with a record that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fedpipe.commands.watch import watch
from fedpipe.store import LocalStore
from tests.cli.conftest import Result
from tests.commands.test_repair import PLANS, spoil
from tests.federations import PlusOneLearner, play

LEARNERS = {name: PlusOneLearner(k + 1) for k, name in enumerate("abc")}


def test_the_commands(tmp_path: Path, fedpipe: Callable[..., Result]) -> None:
    file = tmp_path / "federation.yaml"
    file.write_text(
        "name: tiny\nlearners: [{name: a}, {name: b}, {name: c}]\nstore: store\ntraining: {rounds: 3, batch_size: 1}\ndata: {uri: x.npz}\n"
    )
    store = LocalStore(tmp_path / "store").below("tiny")
    play(store, PLANS["r1"])
    play(store, PLANS["r2"], LEARNERS)
    spoil(store, 3, "r2")
    listed = fedpipe("runs", "-f", file)
    assert "unreadable" in listed.out, listed.err
    seen = [event.line for event in watch(file, "r2") if event.line]
    assert "see `fedpipe repair`" in seen[-1]
    assert len(seen) == 4
    assert fedpipe("report", "r2", "-f", file, "-o", tmp_path / "page.html").code == 0
    assert "Incomplete" in (tmp_path / "page.html").read_text()
    assert "nothing is changed; add --yes to repair it" in fedpipe("repair", "-f", file).out
    assert fedpipe("repair", "-f", file, "--yes").out.endswith("done\n")
    assert "everything can be read" in fedpipe("repair", "-f", file).out
    assert json.loads(fedpipe("repair", "-f", file, "--json").out) == []
