"""Which version answers: decided once, recorded by compare-and-swap."""

from __future__ import annotations

import pytest

from fedpipe.errors import ConflictError, CorruptError, InputError, NotFoundError
from fedpipe.serving.follower import Served
from fedpipe.serving.promotion import promote, rule_for
from fedpipe.serving.traffic import Split, Traffic, read_traffic
from fedpipe.store import MemoryStore, keys
from tests.served import publish, softmax


@pytest.fixture
def models(store: MemoryStore) -> MemoryStore:
    """Three versions of a model."""
    for version in (1, 2, 10):
        publish(store, "m", version, softmax(version))
    return store


def test_without_a_decision_it_is_the_latest(models: MemoryStore) -> None:
    assert read_traffic(models, "m") == (Traffic(), "")


def test_decisions_are_kept_newest_last(models: MemoryStore) -> None:
    pinned, canary = Split(kind="pinned", version=2), Split(kind="canary", version=2, canary=10, share=0.1)
    promote(models, "m", pinned)
    promote(models, "m", canary)
    policy, _ = read_traffic(models, "m")
    assert policy.rule == canary
    assert [change.rule for change in policy.changes] == [pinned, canary]
    for _ in range(120):
        promote(models, "m", pinned)
    assert len(read_traffic(models, "m")[0].changes) == 100


def test_of_two_decisions_at_one_moment_one_is_told_that_it_lost(
    models: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    swap = models.swap
    promote(models, "m", Split(kind="pinned", version=1))

    def late(key: str, data: bytes, version: str) -> bool:
        monkeypatch.undo()
        promote(models, "m", Split(kind="pinned", version=2))
        return swap(key, data, version)

    monkeypatch.setattr(models, "swap", late)
    with pytest.raises(ConflictError, match="somebody else changed the policy"):
        promote(models, "m", Split())
    assert read_traffic(models, "m")[0].rule == Split(kind="pinned", version=2)


def test_what_is_not_there(models: MemoryStore) -> None:
    with pytest.raises(NotFoundError, match=r"'m' has no version 3\. It has 1, 2, 10"):
        promote(models, "m", Split(kind="pinned", version=3))


def test_what_a_person_asks_for(models: MemoryStore) -> None:
    assert rule_for(models, "m", 2) == Split(kind="pinned", version=2)
    assert rule_for(models, "m", None, latest=True) == Split()
    assert rule_for(models, "m", 10, canary=0.2) == Split(kind="canary", version=2, canary=10, share=0.2)
    promote(models, "m", Split(kind="pinned", version=1))
    assert rule_for(models, "m", 10, canary=0.2) == Split(kind="canary", version=1, canary=10, share=0.2)
    for version, latest, canary in ((None, False, None), (1, True, None), (None, True, 0.5)):
        with pytest.raises(InputError, match="which version is to answer"):
            rule_for(models, "m", version, latest=latest, canary=canary)
    with pytest.raises(InputError, match="the canary is the version that answers already"):
        promote(models, "m", Split(kind="canary", version=1, canary=1, share=0.5))


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense",
        b'{"rule": {"kind": "pinned"}}',
        b'{"rule": {"kind": "latest", "version": 1}}',
        b'{"rule": {"kind": "canary", "version": 1, "canary": 2, "share": 1.5}}',
        b'{"rule": {"kind": "pinned", "version": 0}}',
        b'{"surprise": 1}',
    ],
)
def test_a_policy_that_is_none(models: MemoryStore, text: bytes) -> None:
    models.create(keys.traffic("m"), text)
    with pytest.raises(CorruptError, match=r"m/policy\.json"):
        read_traffic(models, "m")


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.1, 100), (0.25, 250), (1 / 3, 333), (1.0, 1000)])
def test_a_canary_gets_its_share_evenly(share: float, expected: int) -> None:
    served = Served(Split(kind="canary", version=1, canary=2, share=share), "primary", "canary")  # type: ignore[arg-type]
    chosen = [served.choose(number) for number in range(1000)]
    assert chosen.count("canary") == expected  # type: ignore[arg-type]
    if expected:
        longest = max(map(len, "".join("c" if one == "canary" else "p" for one in chosen).split("c")))  # type: ignore[comparison-overlap]
        assert longest <= 1 / share
