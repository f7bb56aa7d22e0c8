"""A party of a cut network at its site: its permission, the rows that both have, and what its journal names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fedpipe.commands.identities import enroll
from fedpipe.commands.site_decisions import check
from fedpipe.rounds.history import history
from fedpipe.sites.journal import entries_of
from tests import servers
from tests.commands import test_split_align as cut
from tests.sites.hospitals import Federation


@pytest.fixture
def federation(tmp_path: Path, minio_server: servers.Server, s3_keys: None) -> Iterator[Federation]:
    prefix = tmp_path.name.replace("_", "-")
    cut.federation(tmp_path / "here", "intersection", cut.ALICE, cut.BOB)
    made = Federation(tmp_path / "here", minio_server.uri.replace("s3://tests", f"s3://tests/{prefix}"))
    (tmp_path / "here" / "model.py").write_text(
        cut.MODEL.replace("keras.Input((2,)), ", f"keras.Input((2,)), {WIDE}").replace("SGD(0.1)", "SGD(1e-4)")
    )
    file = tmp_path / "here" / "federation.yaml"
    content = yaml.safe_load(file.read_text())
    content |= {"store": made.uri, "training": {"rounds": 1}, "export": "none"}
    content["learners"] = [{"name": "alice", "at": "site"}, {"name": "bob", "data": "bob.csv"}]
    file.write_text(yaml.safe_dump(content))
    yield made
    for process in made.agents.values():
        process.kill()
        process.wait()


WIDE = "keras.layers.Dense(2200), keras.layers.Dense(2200, use_bias=False), "
"""Layers by which a part is larger than all content that an answer may have of a model as small as its digests."""


@pytest.mark.heavy
def test_a_party_at_its_site(federation: Federation, tmp_path: Path) -> None:
    file, owned = federation.folder / "federation.yaml", federation.folder / "operators-keys"
    enroll(file, "bob", keys=owned)
    data = {"data": str(federation.folder / "alice.csv")}
    path = federation.join("alice", policy=data)
    assert "activations or gradients of each row" in check(path, file).objections[0]
    path.write_text(
        yaml.safe_dump(yaml.safe_load(path.read_text()) | {"policy": {**data, "leaves": {"activations": True}}})
    )
    assert not check(path, file).objections

    command = [sys.executable, "-m", "fedpipe", "run", str(file), "--run", "r1", "--out", str(tmp_path / "out")]
    federation.start("alice", "--once")
    with (tmp_path / "run.log").open("w") as log:
        done = subprocess.run([*command, "--keys", str(owned)], stdout=log, stderr=log, check=False)
    seen = (tmp_path / "run.log").read_text() + federation.log("alice")
    assert done.returncode == 0, seen
    assert federation.agents["alice"].wait(60) == 0, seen
    records = history(federation.store, "r1")
    assert [(one.learner, one.rows, one.common) for one in records[1].aligned or ()] == [
        ("alice", 100, 90),
        ("bob", 120, 90),
    ]
    assert all(update.signature for update in records[1].updates)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["evaluation"]["federated"]["examples"] == 9, seen
    noted = list(entries_of(federation.folder / "at" / "alice" / "state" / "journal"))
    sent = {entry.fields["object"].split("/")[2] for entry in noted if entry.event == "sent"}
    assert {"parcels", "objects", "personal", "runs"} <= sent
    assert [entry.fields["round"] for entry in noted if entry.event == "trained"] == [1]
    assert not [entry.fields for entry in noted if entry.event in ("failed", "refused")]
