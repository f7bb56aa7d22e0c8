"""Tests decisions about traffic: recorded once, by compare-and-swap."""

from __future__ import annotations

import pytest

from fedpipe.errors import ConflictError, CorruptError, InputError, NotFoundError
from fedpipe.serving.follower import Served
from fedpipe.serving.promotion import promote, split_for
from fedpipe.serving.traffic import Split, Traffic, read_traffic
from fedpipe.store import MemoryStore, keys
from tests.served import publish, softmax


@pytest.fixture
def models(store: MemoryStore) -> MemoryStore:
    """Publishes three versions of a model."""
    for version in (1, 2, 10):
        publish(store, "m", version, softmax(version))
    return store


def test_without_a_decision_it_is_the_latest(models: MemoryStore) -> None:
    assert read_traffic(models, "m") == (Traffic(), "")


def test_decisions_are_kept_newest_last(models: MemoryStore) -> None:
    pinned, canary = Split(kind="pinned", version=2), Split(kind="canary", version=2, canary=10, share=0.1)
    promote(models, "m", pinned)
    promote(models, "m", canary)
    traffic, _ = read_traffic(models, "m")
    assert traffic.split == canary
    assert [decision.split for decision in traffic.decisions] == [pinned, canary]
    for _ in range(120):
        promote(models, "m", pinned)
    assert len(read_traffic(models, "m")[0].decisions) == 100


def test_of_two_simultaneous_decisions_one_is_a_conflict(models: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    swap = models.swap
    promote(models, "m", Split(kind="pinned", version=1))

    def late(key: str, data: bytes, version: str) -> bool:
        monkeypatch.undo()
        promote(models, "m", Split(kind="pinned", version=2))
        return swap(key, data, version)

    monkeypatch.setattr(models, "swap", late)
    with pytest.raises(ConflictError, match="the traffic was changed by somebody else"):
        promote(models, "m", Split())
    assert read_traffic(models, "m")[0].split == Split(kind="pinned", version=2)


def test_a_version_that_does_not_exist(models: MemoryStore) -> None:
    with pytest.raises(NotFoundError, match=r"'m' has no version 3\. Choose one of: 1, 2, 10"):
        promote(models, "m", Split(kind="pinned", version=3))


def test_the_split_for_the_options_of_the_command(models: MemoryStore) -> None:
    assert split_for(models, "m", 2) == Split(kind="pinned", version=2)
    assert split_for(models, "m", None, latest=True) == Split()
    assert split_for(models, "m", 10, canary=0.2) == Split(kind="canary", version=2, canary=10, share=0.2)
    promote(models, "m", Split(kind="pinned", version=1))
    assert split_for(models, "m", 10, canary=0.2) == Split(kind="canary", version=1, canary=10, share=0.2)
    for version, latest, canary in ((None, False, None), (1, True, None), (None, True, 0.5)):
        with pytest.raises(InputError, match="either a VERSION or --latest is required"):
            split_for(models, "m", version, latest=latest, canary=canary)
    with pytest.raises(InputError, match="the canary is the version that answers already"):
        promote(models, "m", Split(kind="canary", version=1, canary=1, share=0.5))


@pytest.mark.parametrize(
    "text",
    [
        b"nonsense",
        b'{"split": {"kind": "pinned"}}',
        b'{"split": {"kind": "latest", "version": 1}}',
        b'{"split": {"kind": "canary", "version": 1, "canary": 2, "share": 1.5}}',
        b'{"split": {"kind": "pinned", "version": 0}}',
        b'{"surprise": 1}',
    ],
)
def test_invalid_traffic(models: MemoryStore, text: bytes) -> None:
    models.create(keys.traffic("m"), text)
    with pytest.raises(CorruptError, match=r"m/traffic\.json"):
        read_traffic(models, "m")


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.1, 100), (0.25, 250), (1 / 3, 333), (1.0, 1000)])
def test_a_canary_gets_its_share_evenly(share: float, expected: int) -> None:
    served = Served(Split(kind="canary", version=1, canary=2, share=share), "primary", "canary")  # type: ignore[arg-type]
    chosen = [served.choose(number) for number in range(1000)]
    assert chosen.count("canary") == expected  # type: ignore[arg-type]
    if expected:
        longest = max(map(len, "".join("c" if one == "canary" else "p" for one in chosen).split("c")))  # type: ignore[comparison-overlap]
        assert longest <= 1 / share
