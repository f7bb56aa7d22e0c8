"""Learners of Keras and TensorFlow Federated at their sites, as real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import fedpipe
from fedpipe.rounds.history import history
from fedpipe.sites.journal import entries_of
from fedpipe.store import keys
from tests import servers
from tests.sites.hospitals import Federation

PLAIN, PRIVATE = "hospital-c", "hospital-d"
DEMANDED = {"noise_multiplier": 1.0, "l2_norm_clip": 1.0, "target_epsilon": 8.0}
PRIVACY = {**DEMANDED, "microbatches": 16, "delta": 1e-4}


@pytest.fixture
def federation(digits: Path, minio_server: servers.Server, s3_keys: None) -> Iterator[Federation]:
    made = Federation(
        digits, minio_server.uri.replace("s3://tests", f"s3://tests/{digits.parent.name.replace('_', '-')}")
    )
    yield made
    for process in made.agents.values():
        process.kill()
        process.wait()


@pytest.mark.heavy
def test_a_keras_learner_and_a_private_one(federation: Federation, tmp_path: Path) -> None:
    """No learner is on the operator's machine. The private one demands its privacy, and keeps its own account of it."""
    file = federation.write(sites=(PLAIN, PRIVATE), rounds=1, local_epochs=1)
    content = yaml.safe_load(file.read_text())
    content["learners"] = [{"name": PLAIN, "at": "site"}, {"name": PRIVATE, "at": "site", "privacy": PRIVACY}]
    content |= {"quorum": {"min_learners": 2, "deadline": 600}, "evaluation": {}, "export": "none"}
    file.write_text(yaml.safe_dump(content))
    federation.join(PLAIN)
    federation.join(PRIVATE, policy={"data": str(federation.folder / f"{PRIVATE}.npz"), "privacy": DEMANDED})
    with federation.starting(PLAIN, PRIVATE):
        fedpipe.run(file, out=tmp_path / "out", name="r1")
    ended = {name: process.wait(120) for name, process in federation.agents.items()}
    assert ended == {PLAIN: 0, PRIVATE: 0}, [federation.log(name) for name in ended]
    record = history(federation.store, "r1")[1]
    updates = {update.learner: update for update in record.updates}
    assert set(updates) == {PLAIN, PRIVATE}
    assert updates[PLAIN].spent is None
    spent = updates[PRIVATE].spent
    assert spent is not None
    assert 0 < spent.epsilon <= PRIVACY["target_epsilon"]
    assert federation.store.size(keys.ledger(PRIVATE, 1))
    for name in ended:
        entries = entries_of(federation.folder / "at" / name / "state" / "journal")
        (trained,) = [entry.fields for entry in entries if entry.event == "trained"]
        assert trained["digest"] == updates[name].weights
        assert trained.get("epsilon") == (spent.epsilon if name == PRIVATE else None)
