"""The keys as they are on disk, and the table that covers each of them once."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe.errors import CorruptError
from fedpipe.store import access, keys
from tests.spelled import COUNTS, KEYS, MODEL_NAMES, NAMES, ROUNDS, RUNS, row_of

DIGEST, HEX = "sha256:" + "0" * 64, "0" * 64
SPELLED = {
    keys.HEAD: "HEAD",
    keys.ENROLLED: "enrolled",
    keys.ROSTER: "roster",
    keys.probe("ff"): "probe-ff",
    keys.PRUNING: "pruning",
    keys.CATALOGUE: "catalogue",
    keys.CURRENT: "runs/_current",
    keys.presence("a"): "learners/a/runs/_presence",
    keys.content(DIGEST): f"objects/{HEX}",
    keys.content(DIGEST, kind="coordinator"): f"coordinator/{HEX}",
    keys.content(DIGEST, kind="proposals"): f"objects/{HEX}",
    keys.content(DIGEST, "a"): f"learners/a/objects/{HEX}",
    keys.content(DIGEST, "a", "proposals"): f"learners/a/proposals/{HEX}",
    keys.approval("a"): "learners/a/runs/_approval",
    keys.answer("a", "r", 0, keys.ALIGNED): "learners/a/runs/r/0/aligned",
    keys.content(DIGEST, "a", "personal"): f"learners/a/personal/{HEX}",
    keys.shards("r"): "runs/r/shards",
    keys.plan("r"): "runs/r/plan",
    keys.board("r"): "runs/r/board",
    keys.stop("r"): "runs/r/stop",
    **{keys.listed("r", 3, name): f"runs/r/3/{name}" for name in ("keys", "members", "agreements", "reveals")},
    keys.pulse("r"): "runs/r/pulse",
    keys.pulse("r", "shard"): "runs/r/shard.pulse",
    keys.results("r", "initialise", "j"): "runs/r/initialise.189f40034be7a199.results",
    keys.record("r", 3): "runs/r/3/record",
    keys.candidate("r", 3): "runs/r/3/candidate",
    keys.evaluation("r"): "runs/r/evaluation",
    keys.onnx("r"): "runs/r/onnx",
    keys.summary("r"): "runs/r/summary.json",
    keys.report("r"): "runs/r/report.html",
    keys.pruned("r"): "runs/r/pruned",
    keys.state("r", 3): "runs/r/program/3",
    keys.timing("r", 3, "aggregate"): "runs/r/3/aggregate.time",
    keys.timing("r", 3, "train", "a"): "learners/a/runs/r/3/train.time",
    keys.events("r", 3): "runs/r/3/tensorboard/events.out.tfevents.000003",
    keys.events("r", 3, "a"): "learners/a/runs/r/3/tensorboard/events.out.tfevents.r",
    keys.shard("a"): "learners/a/shard",
    keys.parcel("a", "0f" * 32): f"learners/a/parcels/{'0f' * 32}",
    keys.ledger("a", 3): "learners/a/ledger/00000003",
    keys.sign("a", "r"): "learners/a/runs/r/sign",
    keys.score("a", "r"): "learners/a/runs/r/score",
    keys.score("a", "r", earlier=True): "learners/a/runs/r/score-earlier",
    keys.statistics("a", "r"): "learners/a/runs/r/0/statistics",
    keys.update("a", "r", 3): "learners/a/runs/r/3/update",
    keys.ballot("a", "r", 3): "learners/a/runs/r/3/ballot",
    **{
        keys.answer("a", "r", 3, name): f"learners/a/runs/r/3/{name}"
        for name in ("keys", "masked", "agreed", "revealed")
    },
    keys.answer("a", "r", 3, keys.note("dropped")): "learners/a/runs/r/3/dropped",
    keys.answer("a", "r", 3, keys.note("absent", 2)): "learners/a/runs/r/3/absent-2",
    keys.invitation("a"): "joining/a/invitation",
    keys.joining("a", "0f" * 16, "request"): f"joining/a/{'0f' * 16}/request",
    keys.joining("a", "0f" * 16, "answer"): f"joining/a/{'0f' * 16}/answer",
    keys.rotation("a"): "learners/a/rotation",
    f"{keys.MODELS}/{keys.model('m', 3)}": "models/m/3/model.onnx",
    f"{keys.MODELS}/{keys.origin('m', 3)}": "models/m/3/origin.json",
    f"{keys.MODELS}/{keys.signature('m', 3)}": "models/m/3/signature.json",
    f"{keys.MODELS}/{keys.traffic('m')}": "models/m/traffic.json",
}
FOLDERS = {"run_folder", "learner_folder", "states"}
OTHERS = {
    "dataset", "is_passing", "is_taken", "note", "parse_joining", "parse_record", "parse_timing", "parse_events",
    "parse_model",
}  # fmt: skip


def test_stores_of_earlier_versions_stay_readable() -> None:
    assert list(SPELLED) == list(SPELLED.values())


def test_every_function_has_a_strategy() -> None:
    found = inspect.getmembers(keys, lambda member: inspect.isfunction(member) and member.__module__ == keys.__name__)
    functions = {name for name, _ in found}
    assert functions - FOLDERS - OTHERS | {"HEAD", "ENROLLED", "ROSTER", "PRUNING", "CATALOGUE", "CURRENT"} == set(KEYS)


@pytest.mark.parametrize("kind", KEYS)
@settings(max_examples=30)
@given(data=st.data())
def test_one_row_of_the_table_covers_a_key(kind: str, data: st.DataObject) -> None:
    key = data.draw(KEYS[kind])
    assert row_of(key)
    assert not [row for row in access.TABLE if row.matches(f"{key}/more") or row.matches(f"x/{key}")]
    assert keys.is_passing(key) == (kind in ("sign", "timing"))


def test_every_row_covers_a_key() -> None:
    assert {row_of(key) for key in SPELLED} == set(access.TABLE)


@given(MODEL_NAMES, COUNTS, NAMES, RUNS, ROUNDS)
def test_parsed_keys_give_back_their_parts(model: str, version: int, learner: str, run: str, number: int) -> None:
    assert keys.parse_model(keys.model(model, version)) == (model, version)
    assert keys.parse_model(keys.origin(model, version)) is None
    for name in ("", learner):
        found = keys.parse_events(keys.events(run, number, name), run, name)
        assert found is not None
        assert found[0] == number
        assert keys.parse_events(keys.timing(run, number, "train", name), run, name) is None
        assert keys.parse_timing(keys.timing(run, number, "train", name), run, name) == (number, "train")
        assert keys.parse_timing(keys.timing(run, number, "train", f"{name}x"), run, name) is None
    assert keys.parse_timing(keys.record(run, number), run) is None
    assert keys.parse_record(keys.record(run, number), run) == number
    assert keys.parse_record(keys.candidate(run, number), run) is None


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:" + "g" * 64, "../" + "0" * 64, "sha256:" + "0" * 65])
def test_a_malformed_digest_has_no_key(digest: str) -> None:
    with pytest.raises(CorruptError, match="is not a digest"):
        keys.content(digest)


def test_the_documented_layout_is_the_table() -> None:
    script = Path(__file__).parents[2] / "docs" / "keys.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
