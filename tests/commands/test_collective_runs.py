"""Whole runs of collective learning on real data, as a user starts them."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

import fedpipe
from fedpipe.commands.init import Algorithm, init
from fedpipe.engine.local import Event
from fedpipe.rounds.history import history, read_head
from fedpipe.store import open_store
from tests import servers
from tests.federations import change

pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("collective")]
PRIVACY = "{noise_multiplier: 1.5, l2_norm_clip: 1.0, microbatches: 16, delta: 1.0e-4, target_epsilon: 2.0}"


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A folder with what `fedpipe init --algorithm collective` writes."""
    init(tmp_path / "digits", Algorithm.collective)
    return tmp_path / "digits"


def test_twenty_rounds_of_handwritten_digits(digits: Path) -> None:
    """Five learners, `others_vote`, threshold 0.5, the loss: mean test accuracy of at least 0.95 at the end."""
    events: list[Event] = []
    result = fedpipe.run(digits / "federation.yaml", out=digits / "out", listener=events.append)
    rounds = result.summary["rounds"]
    assert json.loads((digits / "out" / "summary.json").read_text()) == result.summary
    assert [r["round"] for r in rounds] == list(range(21))
    assert rounds[-1]["metrics"]["test_accuracy"] >= 0.95
    assert rounds[0]["metrics"]["test_accuracy"] < 0.3
    assert [r["vote"]["proposer"][-1] for r in rounds[1:]] == list("abcde" * 4)
    assert any(not r["vote"]["accepted"] for r in rounds)
    for earlier, later in pairwise(rounds):
        vote = later["vote"]
        assert vote["voters"] == 4
        assert vote["accepted"] == (vote["approvals"] >= 2)
        assert (later["weights"] != earlier["weights"]) == vote["accepted"]
        ballots = {name: voter["ballot"] for name, voter in vote["learners"].items()}
        assert ballots.pop(vote["proposer"]) == "void"
        assert list(ballots.values()).count("yes") == vote["approvals"]
    page = (digits / "out" / "report.html").read_text()
    for part in ("Votes", "accepted rounds", "rejected, ", "accuracy of the shared model on each learner"):
        assert part in page
    assert result.summary["onnx"]["max_abs_difference"] < 1e-4
    assert [e.moment.record.round for e in events if e.moment and e.moment.record] == list(range(1, 21))
    _check_resumed(digits, events)


def _check_resumed(digits: Path, first: list[Event]) -> None:
    """The same command again trains and votes nothing again, and changes no committed byte."""
    store = open_store(str(digits / "store")).below("digits")
    before, again = store.read("HEAD").data, list[Event]()
    fedpipe.run(digits / "federation.yaml", out=digits / "again", listener=again.append)
    assert store.read("HEAD").data == before
    assert {e.what for e in again if e.task.step in ("learn", "coordinate") and e.what != "started"} == {"found"}
    assert len(again) == len([e for e in first if e.moment is None])


def test_a_privacy_budget_that_is_met_in_the_middle(digits: Path) -> None:
    """hospital-b may propose in rounds 2, 7 and 12; its budget is enough for the first."""
    file = change(
        digits,
        **{"rounds: 20": "rounds: 8", "  - name: hospital-b\n": f"  - name: hospital-b\n    privacy: {PRIVACY}\n"},
    )
    events: list[Event] = []
    summary = fedpipe.run(file, out=digits / "out", listener=events.append).summary
    rounds = {r["round"]: r["vote"] for r in summary["rounds"]}
    learned = [event.task for event in events if event.task.name == "learn hospital-b"]
    assert {(task.step, task.environment) for task in learned} == {("learn", "tff")}
    assert rounds[2]["voters"] == 4
    assert 1.6 < rounds[2]["epsilon"] < 1.8
    assert (rounds[7]["code"], rounds[7]["voters"], rounds[7]["accepted"]) == ("DP_BUDGET_EXCEEDED", 0, False)
    assert rounds[7]["epsilon"] == rounds[2]["epsilon"]
    assert all(rounds[n]["voters"] == 4 for n in (1, 3, 4, 5, 6, 8))  # the others continue
    assert summary["privacy"]["hospital-b"]["epsilon_unamplified"] > 4
    records = history(open_store(str(digits / "store")).below("digits"), "run-1")
    assert records[7].weights == records[6].weights
    assert records[2].updates[0].metrics == {}  # nothing exact about the train part leaves
    page = (digits / "out" / "report.html").read_text()
    assert "epsilon, no amplification" in page
    assert "DP_BUDGET_EXCEEDED" in page
    with pytest.raises(
        fedpipe.FedpipeError, match=r"learners\[1\]\.privacy\.target_epsilon: the next training"
    ) as caught:
        fedpipe.run(file, name="run-2", out=digits / "out2")  # the ledger outlives the run
    assert caught.value.exit_code == 2


def test_killed_in_the_middle_and_run_again_it_ends_with_the_same_head(digits: Path, tmp_path: Path) -> None:
    """The whole engine, ended by SIGKILL at three moments; what was trained or voted before is not repeated."""
    file = change(digits, **{"rounds: 20": "rounds: 3"})
    undisturbed = fedpipe.run(file, out=tmp_path / "out").summary
    killed = open_store(str(tmp_path / "killed")).below("digits")
    command = [sys.executable, "-m", "fedpipe", "run", str(file), "--store", str(tmp_path / "killed")]
    counts = []
    for pattern in ("learners/*/runs/run-1/1/update", "learners/*/runs/run-1/2/ballot", "runs/run-1/3/record"):
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "o")], stdout=subprocess.DEVNULL, start_new_session=True
        )
        while not list((tmp_path / "killed" / "digits").glob(pattern)):
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        counts.append(len([key for key in killed.keys("learners/") if key.endswith(("/update", "/ballot"))]))
    assert counts == sorted(counts)
    before = {key: killed.read(key).data for key in killed.keys("learners/") if key.endswith(("/update", "/ballot"))}
    again = fedpipe.run(file, store=str(tmp_path / "killed"), out=tmp_path / "o").summary
    assert [r["record"] for r in again["rounds"]] == [r["record"] for r in undisturbed["rounds"]]
    assert killed.read("HEAD").data == open_store(str(digits / "store")).below("digits").read("HEAD").data
    assert {key: killed.read(key).data for key in before} == before


@pytest.mark.usefixtures("s3_keys")
def test_on_s3_with_a_ledger(digits: Path, minio_server: servers.Server) -> None:
    """Proposals, ballots and the private ledger through a real MinIO."""
    file = change(
        digits,
        **{"rounds: 20": "rounds: 2", "  - name: hospital-b\n": f"  - name: hospital-b\n    privacy: {PRIVACY}\n"},
    )
    uri = f"s3://tests/collective?endpoint={minio_server.endpoint}"
    summary = fedpipe.run(file, store=uri, out=digits / "out").summary
    assert [r["vote"]["voters"] for r in summary["rounds"]] == [0, 4, 4]
    store = open_store(uri).below("digits")
    assert list(store.keys("learners/hospital-b/ledger/")) == ["learners/hospital-b/ledger/00000001"]
    (proposal,) = store.keys("learners/hospital-b/proposals/")
    assert proposal.endswith(history(store, "run-1")[2].candidate.removeprefix("sha256:"))  # type: ignore[union-attr]
    found = read_head(store)
    assert found is not None
    accepted = max(r["round"] for r in summary["rounds"] if r["vote"]["accepted"])
    assert found[0].round == accepted


def test_averaged_models_can_be_voted_down(digits: Path) -> None:
    """A learning rate that destroys: nobody approves, and the model stays what it was."""
    text = (digits / "federation.yaml").read_text()
    head, rest = text.split("algorithm:")
    tail = rest[rest.index("quorum:") :]
    algorithm = "algorithm: {name: averaging, vote: {threshold: 0.5}}\n"
    (digits / "federation.yaml").write_text(head.replace("rounds: 20", "rounds: 1") + algorithm + tail)
    good = fedpipe.run(digits / "federation.yaml", out=digits / "good").summary
    assert good["rounds"][1]["vote"]["accepted"]
    assert good["rounds"][1]["vote"]["voters"] == 5
    bad = fedpipe.run(
        digits / "federation.yaml", name="run-2", out=digits / "bad", parameters={"learning_rate": 10.0}
    ).summary
    assert not bad["rounds"][1]["vote"]["accepted"]
    assert bad["rounds"][1]["weights"] == good["rounds"][1]["weights"]
    found = read_head(open_store(str(digits / "store")).below("digits"))
    assert found is not None
    assert (found[0].run, found[0].round) == ("run-2", 0)


def test_a_learner_with_shuffled_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example: its proposals are rejected, and the report compares the run with plain averaging."""
    example = Path(__file__).parents[2] / "examples" / "shuffled_labels.py"
    monkeypatch.setattr(sys, "argv", [str(example), str(tmp_path / "shuffled"), "5"])
    runpy.run_path(str(example), run_name="__main__")
    summary = json.loads((tmp_path / "shuffled" / "collective" / "summary.json").read_text())
    votes = {r["vote"]["proposer"]: r["vote"] for r in summary["rounds"]}
    assert not votes["hospital-e"]["accepted"]
    assert votes["hospital-e"]["approvals"] == 0
    assert votes["hospital-a"]["accepted"]
    page = (tmp_path / "shuffled" / "report.html").read_text()
    for part in ("Comparison with other runs", "collective, collective", "averaging, averaging"):
        assert part in page
