"""The answers of a site to a session: what its code may send depends on the model with which it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedpipe.rounds.beginning import begin, make_plan
from fedpipe.rounds.plan import Shards
from fedpipe.rounds.updates import own_update
from fedpipe.sessions.board import Board
from fedpipe.sessions.current import Opened
from fedpipe.sites.site import read_site
from fedpipe.sites.training import Trainer
from fedpipe.store import keys
from fedpipe.store.concealment import changed_environment
from fedpipe.store.objects import encode, put_bytes
from tests.federations import make_federation

CODE = """
from fedpipe.learners.numpy import Linear

def build():
    return Linear(features=(2100,), outputs=2100, loss="softmax", learning_rate=0.5)
"""
"""A kernel of 17 MiB."""


def test_weights_that_are_not_shared_may_be_larger_than_the_shared_ones(tmp_path: Path) -> None:
    """The global weights are then only a few KiB, and do not say how large the site's own are."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "rows.npz", x=rng.normal(size=(20, 2100)).astype(np.float32), y=np.arange(20))
    content = {"store": "store", "federation": "tiny", "name": "s", "policy": {"data": "rows.npz"}}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(content))
    site = read_site(tmp_path / "site.yaml")
    store, noted = site.open(), list[tuple[str, dict[str, Any]]]()
    federation = make_federation(
        learners=[{"name": "s", "at": "site"}], framework="numpy", data={}, share={"local": ["kernel"]},
        training={"rounds": 1, "batch_size": 8, "tensorboard": False},
    )  # fmt: skip
    plan = make_plan("r1", federation, CODE, Shards(learners={}))
    put_bytes(store, CODE.encode())
    record = begin(store, plan, lambda: {"bias": np.zeros(2100, np.float32)})
    opened = Opened(run="r1", plan=plan.put(store), job="job")
    board = Board(
        federation="tiny", run="r1", session=opened.session, round=1, phase="train", base=record.weights, asked=("s",)
    )
    store.create(keys.board("r1"), encode(board))
    with changed_environment(site.surroundings()):
        attending = Trainer(site, store, note=lambda event, **fields: noted.append((event, fields))).attend(
            plan, opened
        )
        for _ in range(3):
            if not own_update(store, "s", "r1", 1):
                next(attending)
        attending.close()
    assert not [fields for event, fields in noted if event in ("refused", "failed")]
    sizes = [fields["bytes"] for event, fields in noted if event == "sent" and "/personal/" in fields["object"]]
    assert sizes
    assert sizes[0] > 16 * 2**20
