"""Junk that a learner may write: bytes of many kinds, also those made of what it would rightly have written."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from random import Random
from typing import Any

from fedpipe.store import keys

Junk = Callable[[bytes], bytes]
"""Makes junk of the bytes that belong at a key."""


def changed(change: Callable[[dict[str, Any]], Any]) -> Junk:
    """Changes the fields of the object that belongs at a key."""

    def junk(valid: bytes) -> bytes:
        content = json.loads(valid)
        return json.dumps(change(content) or content).encode()

    return junk


def everywhere(number: Any) -> Junk:
    """Writes one value in the place of each number."""

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replaced(item) for key, item in value.items()}
        if isinstance(value, list):
            return [replaced(item) for item in value]
        return number if isinstance(value, int | float) and not isinstance(value, bool) else value

    return lambda valid: json.dumps(replaced(json.loads(valid))).encode()


def replaced(old: str, new: str) -> Junk:
    return lambda valid: valid.replace(old.encode(), new.encode())


_LARGE = bytes(17 * 2**20)
KINDS: dict[str, Junk] = {
    "nothing": lambda _: b"",
    "one byte": lambda _: b"?",
    "null": lambda _: b"null",
    "a list": lambda _: b"[]",
    "an empty object": lambda _: b"{}",
    "a number": lambda _: b"1e308",
    "NaN": lambda _: b'{"round":NaN}',
    "zeros": lambda _: bytes(1000),
    "random bytes": lambda _: Random(0).randbytes(1000),
    "not UTF-8": lambda _: b'{"learner":"\xff\xfe"}',
    "a byte order mark": lambda valid: b"\xef\xbb\xbf" + valid,
    "deep brackets": lambda _: b"[" * 60_000,
    "deep objects": lambda _: b'{"a":' * 12_000,
    "gzip": gzip.compress,
    "above the limit": lambda valid: valid.ljust(2**16 + 1),
    "17 MiB": lambda _: _LARGE,
    "cut off": lambda valid: valid[:-1],
    "twice": lambda valid: valid + valid,
    "another format": changed(lambda content: {**content, "format": 2}),
    "a format of text": changed(lambda content: {**content, "format": "1"}),
    "another learner": changed(lambda content: {**content, "learner": "a"}),
    "another run": changed(lambda content: {**content, "run": "r2", "session": "s2"}),
    "another round": changed(lambda content: {**content, "round": 7}),
    "a negative round": changed(lambda content: {**content, "round": -1}),
    "another federation": changed(lambda content: {**content, "federation": "other"}),
    "a path as name": changed(lambda content: {**content, "learner": "../a", "federation": "../tiny"}),
    "a path as digest": changed(
        lambda content: {**content, "base": "sha256:../../../HEAD", "weights": "../HEAD", "candidate": "sha256:x"}
    ),
    "another base": changed(lambda content: {**content, "base": f"sha256:{'0' * 64}"}),
    "unknown fields": changed(lambda content: {**content, "unknown": {"a": [1]}}),
    "no fields but one": changed(lambda content: dict(list(content.items())[:1])),
    "null everywhere": changed(lambda content: dict.fromkeys(content)),
    "text everywhere": changed(lambda content: dict.fromkeys(content, "\u202e\x1b[31m" * 50)),
    "half of a pair": lambda valid: valid.replace(b'"learner":"', b'"learner":"\\ud800'),
    "a key twice": lambda valid: valid[:-1] + b',"learner":"a"}',
    "huge numbers": everywhere(1.7e308),
    "huge negative numbers": everywhere(-1.7e308),
    "above float32": everywhere(1e39),
    "above int64": everywhere(2**63),
    "above all integers": everywhere(2**70),
    "infinite numbers": lambda valid: everywhere(math.inf)(valid).replace(b"Infinity", b"1e999"),
    "negative numbers": everywhere(-5),
    "numbers as text": everywhere("1"),
}


def templates(others: dict[str, bytes], learner: str, run: str, rounds: int) -> dict[str, bytes]:
    """Returns all keys of a run that a learner may write, with bytes that belong there."""
    digest = f"sha256:{'0' * 64}"
    plain = json.dumps({"format": 1, "learner": learner, "run": run, "round": 1, "why": "x", "examples": 3}).encode()
    timing = {"learner": learner, "started": 1.0, "seconds": 2.0}
    found = {
        keys.sign(learner, run): b'{"round":1,"attempt":1,"phase":"train","took_part":true,"session":"s"}',
        keys.score(learner, run): json.dumps({"learner": learner, "weights": digest, "examples": 3}).encode(),
        keys.statistics(learner, run): json.dumps({"learner": learner, "examples": 3, "basis": digest}).encode(),
        keys.shard(learner): plain,
        keys.ledger(learner, 1): plain,
    }
    for number in range(rounds + 1):
        for name in ("update", "ballot", "dropped", "dropped-2", "absent", "absent-2", "statistics"):
            key = keys.answer(learner, run, number, name)
            found[key] = others.get(key) or plain.replace(b'"round": 1', b'"round": %d' % number)
        for step in ("train", "vote", "x"):
            content = {**timing, "step": step, "round": number}
            found[keys.timing(run, number, step, learner)] = json.dumps(content).encode()
        found[keys.events(run, number, learner)] = b"events"
    return {key: others.get(key, data) for key, data in found.items()}


def made(junk: Junk, valid: bytes) -> bytes:
    """Returns junk; of bytes that are not an object, some other junk."""
    try:
        return junk(valid)
    except ValueError:
        return b"not an object"
