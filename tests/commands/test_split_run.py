"""Split learning as users run it: real digits, whose images one party holds and whose labels another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpipe
from fedpipe.commands.init import SPLIT_FILES
from fedpipe.commands.predict import predict_file
from fedpipe.errors import InputError, StoreError
from fedpipe.rounds.history import history
from fedpipe.store import open_store
from tests.served import serving


@pytest.mark.heavy
def test_handwritten_digits_cut_between_two_parties(tmp_path: Path) -> None:
    """At least 0.95 on the held-out rows of both; the joined model predicts from the images alone."""
    assert fedpipe.init(tmp_path, "split") == SPLIT_FILES
    settings = {"local_epochs": 2, "run": "run-1"}  # fewer than in the file are enough
    result = fedpipe.run(tmp_path / "federation.yaml", out=tmp_path / "out", parameters=settings)
    rounds, evaluation = result.summary["rounds"], result.summary["evaluation"]
    assert evaluation["federated"]["metrics"]["accuracy"] >= 0.95
    assert evaluation["federated"]["examples"] == 180
    assert evaluation["left_out"] == {}
    assert rounds[-1]["loss"] < 0.2 * rounds[0]["loss"]
    assert rounds[-1]["learners"] == ["alice", "bob"]
    assert result.summary["onnx"]["max_abs_difference"] < 1e-5
    assert_traffic_is_told(result.summary["traffic"], (tmp_path / "out" / "report.html").read_text())
    with np.load(tmp_path / "alice.npz") as alice, np.load(tmp_path / "bob.npz") as bob:
        found = fedpipe.predict(tmp_path / "out" / "model.onnx", alice["x"])
        assert np.mean(found.classes == bob["y"]) > 0.95
    assert_parts_serve_apart(tmp_path, found.outputs)

    store = open_store(f"file://{tmp_path}/store").below("split-digits")
    records = history(store, "run-1")
    assert [record.rule for record in records[1:]] == ["split"] * 4
    assert [[u.learner for u in record.updates] for record in records[1:]] == [["alice", "bob"]] * 4
    left = [key for key in store.keys("learners/") if "/parcels/" in key]
    assert len(left) == 2, "activations of the last test stay, those of the training do not"
    again = fedpipe.run(tmp_path / "federation.yaml", out=tmp_path / "again", parameters=settings)
    assert again.summary["rounds"][-1]["weights"] == rounds[-1]["weights"], "a repeated command finds its work done"


def assert_parts_serve_apart(folder: Path, expected: Any) -> None:
    """Bob serves the top. Alice computes her activations herself, or at a server of her own, and sends nothing else."""
    file, parts = folder / "federation.yaml", {}
    for party, part in (("bob", "top"), ("alice", "bottom-alice")):
        parts[party] = folder / f"of-{party}" / part / "1" / "model.onnx"
        parts[party].parent.mkdir(parents=True)
        fedpipe.export(file, parts[party], part=part)
    for name, mistake in (("bottom-bob", "has no part 'bottom-bob'"), ("tpo", "Did you mean 'top'")):
        with pytest.raises(InputError, match=mistake):
            fedpipe.export(file, folder / "x.onnx", part=name)
    with (
        serving(folder / "bobs", "--models", str(folder / "of-bob")) as top,
        serving(folder / "alices", "--models", str(folder / "of-alice")) as bottom,
    ):
        (taken,) = top.get("/v2/models/top").json()["inputs"]
        assert (taken["name"], taken["shape"]) == ("alice", [-1, 64])
        for own in (parts["alice"], bottom.url):
            apart = predict_file(top.url, folder / "alice.npz", parts={"alice": own})
            np.testing.assert_allclose(apart.prediction.outputs, expected, atol=1e-5)


def assert_traffic_is_told(traffic: dict[str, dict[str, float]], report: str) -> None:
    """Each party sends a parcel a batch, with 64 float32 for each row; alice also sends those of held-out rows."""
    rounds, epochs, rows, numbers = 4, 2, 1437, 64
    least = rounds * epochs * rows * numbers * 4
    for name in ("alice", "bob"):
        assert least < traffic[name]["sent"] < 1.15 * least
        assert traffic[name]["computing"] > 0
        assert traffic[name]["waiting"] > 0
        assert f'<td>{name}</td><td class="n">{traffic[name]["sent"]:,}</td>' in report
    assert "bottom(&#x27;alice&#x27;)" in report
    assert "labels, top()" in report


@pytest.mark.parametrize("act", [fedpipe.check, fedpipe.run])
def test_a_store_in_memory_is_refused(tmp_path: Path, act: Callable[..., object]) -> None:
    """Parties are processes, which would wait for each other for ever."""
    fedpipe.init(tmp_path, "split")
    with pytest.raises(StoreError, match="in the memory of one process") as caught:
        act(tmp_path / "federation.yaml", store="memory://nobody-else")
    assert caught.value.exit_code == 2
    assert caught.value.remedy


def test_parties_hold_no_examples_to_explore(tmp_path: Path) -> None:
    fedpipe.init(tmp_path, "split")
    with pytest.raises(InputError, match="parties of a cut network hold columns"):
        fedpipe.explore(tmp_path / "federation.yaml")


def test_a_federation_to_start_from_needs_keras(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="split learning needs Keras"):
        fedpipe.init(tmp_path, "split", framework="numpy")
