"""Hypothesis strategies for every key of the store."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from fedpipe.federation.names import SAFE_NAME
from fedpipe.store import access, keys

NAMES = st.sampled_from(["a", "b", "a-b", "runs", "objects", "proposals"]) | st.from_regex(SAFE_NAME, fullmatch=True)
RUNS = NAMES.filter(lambda name: name not in keys.RESERVED_RUNS)
ROUNDS = st.integers(0, 10**6)
COUNTS = st.integers(1, 10**6)
STEPS = st.sampled_from(["train", "aggregate", "await-vote", "simulate"])
DIGESTS = st.binary(min_size=32, max_size=32).map(lambda data: f"sha256:{data.hex()}")
NOTES = st.builds(keys.note, st.sampled_from(["dropped", "absent"]), COUNTS) | st.sampled_from(
    ["keys", "masked", "agreed", "revealed"]
)
MODEL_NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,20}", fullmatch=True)


def in_models(function: Any, *arguments: Any) -> st.SearchStrategy[str]:
    """Keys of models, relative to the federation's part of the store."""
    return st.builds(function, *arguments).map(lambda key: f"{keys.MODELS}/{key}")


KEYS: dict[str, st.SearchStrategy[str]] = {
    "HEAD": st.just(keys.HEAD),
    "ENROLLED": st.just(keys.ENROLLED),
    "ROSTER": st.just(keys.ROSTER),
    "PRUNING": st.just(keys.PRUNING),
    "CATALOGUE": st.just(keys.CATALOGUE),
    "CURRENT": st.just(keys.CURRENT),
    "content": st.builds(
        keys.content, DIGESTS, st.none() | NAMES, st.sampled_from(["objects", "proposals", "coordinator"])
    ),
    "probe": st.uuids().map(lambda name: keys.probe(name.hex)),
    "shards": st.builds(keys.shards, RUNS),
    "statistics": st.builds(keys.statistics, NAMES, RUNS),
    "plan": st.builds(keys.plan, RUNS),
    "record": st.builds(keys.record, RUNS, ROUNDS),
    "candidate": st.builds(keys.candidate, RUNS, ROUNDS),
    "board": st.builds(keys.board, RUNS),
    "listed": st.builds(keys.listed, RUNS, ROUNDS, st.sampled_from(["keys", "members", "agreements", "reveals"])),
    "stop": st.builds(keys.stop, RUNS),
    "pulse": st.builds(keys.pulse, RUNS, st.sampled_from(["", "shard", "initialise"])),
    "results": st.builds(keys.results, RUNS, st.sampled_from(["shard", "initialise"]), st.text(max_size=40)),
    "evaluation": st.builds(keys.evaluation, RUNS),
    "onnx": st.builds(keys.onnx, RUNS),
    "summary": st.builds(keys.summary, RUNS),
    "report": st.builds(keys.report, RUNS),
    "pruned": st.builds(keys.pruned, RUNS),
    "state": st.builds(keys.state, RUNS, ROUNDS),
    "timing": st.builds(keys.timing, RUNS, ROUNDS, STEPS, st.just("") | NAMES),
    "events": st.builds(keys.events, RUNS, ROUNDS, st.just("") | NAMES),
    "shard": st.builds(keys.shard, NAMES),
    "parcel": st.builds(keys.parcel, NAMES, DIGESTS.map(lambda digest: digest.removeprefix("sha256:"))),
    "ledger": st.builds(keys.ledger, NAMES, COUNTS),
    "approval": st.builds(keys.approval, NAMES),
    "presence": st.builds(keys.presence, NAMES),
    "sign": st.builds(keys.sign, NAMES, RUNS),
    "score": st.builds(keys.score, NAMES, RUNS),
    "answer": st.builds(keys.answer, NAMES, RUNS, ROUNDS, NOTES),
    "update": st.builds(keys.update, NAMES, RUNS, ROUNDS),
    "ballot": st.builds(keys.ballot, NAMES, RUNS, ROUNDS),
    "invitation": st.builds(keys.invitation, NAMES),
    "joining": st.builds(
        keys.joining, NAMES, st.uuids().map(lambda name: name.hex), st.sampled_from(["request", "answer"])
    ),
    "rotation": st.builds(keys.rotation, NAMES),
    "model": in_models(keys.model, MODEL_NAMES, COUNTS),
    "origin": in_models(keys.origin, MODEL_NAMES, COUNTS),
    "signature": in_models(keys.signature, MODEL_NAMES, COUNTS),
    "traffic": in_models(keys.traffic, MODEL_NAMES),
}
"""By the name of the function, or the constant, that spells them."""


def row_of(key: str) -> access.Row:
    """Returns the one row of the table that covers a key."""
    (row,) = [row for row in access.TABLE if row.matches(key)]
    return row
