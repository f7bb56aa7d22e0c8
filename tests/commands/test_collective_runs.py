"""Whole runs of collective learning on real data, as a user starts them."""

from __future__ import annotations

import json
import runpy
from itertools import pairwise
from pathlib import Path

import pytest

import fedpipe
from fedpipe.commands.init import Algorithm, Framework, init
from fedpipe.engine.local import Event
from fedpipe.rounds.history import history, read_head
from tests import servers
from tests.commands.runs import ROOT, store_of
from tests.federations import change

PRIVACY = "{noise_multiplier: 1.5, l2_norm_clip: 1.0, microbatches: 16, delta: 1.0e-4, target_epsilon: 2.0}"


@pytest.mark.heavy
@pytest.mark.xdist_group("collective")
@pytest.mark.usefixtures("s3_keys")
def test_handwritten_digits_with_a_private_learner(tmp_path: Path, minio_server: servers.Server) -> None:
    """With Keras, on MinIO: `others_vote`, threshold 0.5, the loss; mean test accuracy of at least 0.93 at the end.

    The noise has no seed: the accuracy is 0.963 on average, with a deviation of 0.007 (seven runs).
    hospital-b may propose in rounds 2, 7, 12 and 17; its budget is enough for the first.
    """
    init(tmp_path, Algorithm.collective)
    file = change(tmp_path, **{"  - name: hospital-b\n": f"  - name: hospital-b\n    privacy: {PRIVACY}\n"})
    uri, events = f"s3://tests/collective?endpoint={minio_server.endpoint}", list[Event]()
    result = fedpipe.run(file, store=uri, out=tmp_path / "out", listener=events.append)
    rounds, store = result.summary["rounds"], store_of(uri)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == result.summary
    assert [r["round"] for r in rounds] == list(range(21))
    assert result.summary["evaluation"]["federated"]["metrics"]["accuracy"] >= 0.93
    assert rounds[-1]["metrics"]["test_loss"] < 0.1 * rounds[0]["metrics"]["test_loss"]
    assert [r["vote"]["proposer"][-1] for r in rounds[1:]] == list("abcde" * 4)
    refused = (7, 12, 17)
    for earlier, later in pairwise(rounds):
        vote = later["vote"]
        assert vote["voters"] == (0 if later["round"] in refused else 4)
        assert vote["accepted"] == (vote["approvals"] >= 2)
        assert (later["weights"] != earlier["weights"]) == vote["accepted"]
        ballots = {name: voter["ballot"] for name, voter in vote["learners"].items()}
        assert ballots.pop(vote["proposer"]) == ("none" if later["round"] in refused else "void")
        assert list(ballots.values()).count("yes") == vote["approvals"]
    assert [e.moment.record.round for e in events if e.moment and e.moment.record] == list(range(1, 21))
    assert result.summary["onnx"]["max_abs_difference"] < 1e-4

    learned = {event.task.environment for event in events if event.task.name == "learn hospital-b"}
    assert learned == {"tff"}
    assert 1.6 < rounds[2]["vote"]["epsilon"] < 1.8
    for number in refused:
        assert rounds[number]["vote"]["code"] == "DP_BUDGET_EXCEEDED"
        assert rounds[number]["vote"]["epsilon"] == rounds[2]["vote"]["epsilon"]
    assert result.summary["privacy"]["hospital-b"]["epsilon_unamplified"] > 4
    record = history(store, "run-1")[2]
    assert record.updates[0].metrics == {}  # nothing exact about the train part leaves
    assert list(store.keys("learners/hospital-b/ledger/")) == ["learners/hospital-b/ledger/00000001"]
    (proposal,) = store.keys("learners/hospital-b/proposals/")
    assert proposal.endswith(record.candidate.removeprefix("sha256:"))  # type: ignore[union-attr]
    found = read_head(store)
    assert found is not None
    assert found[0].round == max(r["round"] for r in rounds if r["vote"]["accepted"])

    page = (tmp_path / "out" / "report.html").read_text()
    for part in ("Votes", "accepted rounds", "rejected, ", "loss of the shared model on each learner",
                 "epsilon, no amplification", "DP_BUDGET_EXCEEDED"):  # fmt: skip
        assert part in page
    with pytest.raises(
        fedpipe.FedpipeError, match=r"learners\[1\]\.privacy\.target_epsilon: the next training"
    ) as caught:
        fedpipe.run(file, store=uri, name="run-2", out=tmp_path / "out2")  # the ledger outlives the run
    assert caught.value.exit_code == 2


def test_averaged_models_can_be_voted_down(numpy_digits: Path) -> None:
    """A learning rate that destroys: nobody approves, and the model stays what it was."""
    text = (numpy_digits / "federation.yaml").read_text()
    head, rest = text.split("algorithm:")
    tail = rest[rest.index("quorum:") :]
    algorithm = "algorithm: {name: averaging, vote: {threshold: 0.5}}\n"
    file = numpy_digits / "federation.yaml"
    file.write_text(head.replace("rounds: 10", "rounds: 1") + algorithm + tail)
    good = fedpipe.run(file, out=numpy_digits / "good").summary
    assert good["rounds"][1]["vote"]["accepted"]
    assert good["rounds"][1]["vote"]["voters"] == 5
    bad = fedpipe.run(file, name="run-2", out=numpy_digits / "bad", parameters={"learning_rate": 1000.0}).summary
    assert not bad["rounds"][1]["vote"]["accepted"]
    assert bad["rounds"][1]["weights"] == good["rounds"][1]["weights"]
    found = read_head(store_of(numpy_digits / "store"))
    assert found is not None
    assert (found[0].run, found[0].round) == ("run-1", 1)


def test_a_learner_with_shuffled_labels(tmp_path: Path) -> None:
    """The example, with a linear model: its proposals are rejected, and the report shows both runs."""
    example = runpy.run_path(str(ROOT / "examples" / "shuffled_labels.py"))
    init(tmp_path, Algorithm.collective, Framework.numpy)
    example["tell"](example["learn"](tmp_path, 5), tmp_path)
    summary = json.loads((tmp_path / "collective" / "summary.json").read_text())
    votes = {r["vote"]["proposer"]: r["vote"] for r in summary["rounds"]}
    assert not votes["hospital-e"]["accepted"]
    assert votes["hospital-e"]["approvals"] == 0
    assert votes["hospital-a"]["accepted"]
    page = (tmp_path / "report.html").read_text()
    for part in ("Comparison with other runs", "collective, collective", "averaging, averaging"):
        assert part in page
