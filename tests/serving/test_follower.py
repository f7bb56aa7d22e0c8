"""Tests that new versions take over when they can answer, and that the current ones keep answering otherwise."""

from __future__ import annotations

import pytest

from fedpipe.errors import CorruptError, StoreUnavailableError
from fedpipe.registry.publication import ModelVersion
from fedpipe.serving.catalogue import Catalogue, Location
from fedpipe.serving.follower import Follower
from fedpipe.serving.promotion import promote
from fedpipe.serving.runtime import Loaded
from fedpipe.serving.traffic import Split
from fedpipe.store import MemoryStore, keys
from tests.faults.stores import HookedStore
from tests.served import publish

BAD = b"bad"


class World:
    """Combines a store, a clock and a follower that loads every model except `BAD`."""

    def __init__(self, store: MemoryStore) -> None:
        self.store, self.now, self.unreachable = store.below("models"), 0.0, False
        self.loads: list[ModelVersion] = []
        self.failed: list[ModelVersion] = []
        catalogue = Catalogue(Location(HookedStore(store, self._fail_if_unreachable), "federation", is_local=False))
        self.follower = Follower(
            catalogue, self._load, on_failure=lambda entry, _: self.failed.append(entry), clock=lambda: self.now
        )

    def _fail_if_unreachable(self, *_: object) -> None:
        if self.unreachable:
            raise StoreUnavailableError("the store cannot be reached")

    def _load(self, entry: ModelVersion, data: bytes) -> Loaded:
        self.loads.append(entry)
        if data == BAD:
            raise CorruptError("no model", where=str(entry))
        return Loaded(entry, None, None)  # type: ignore[arg-type]

    def publish(self, version: int, data: bytes = b"good") -> None:
        publish(self.store, "m", version, data)

    def answers(self) -> tuple[int, int | None] | None:
        self.follower.refresh()
        served = self.follower.served.get("m")
        return served and (served.primary.entry.version, served.canary.entry.version if served.canary else None)


@pytest.fixture
def world(store: MemoryStore) -> World:
    return World(store)


def test_the_latest_version_takes_over(world: World) -> None:
    assert world.answers() is None
    world.publish(1)
    assert world.answers() == (1, None)
    world.publish(2)
    assert world.answers() == (2, None)
    assert world.answers() == (2, None)
    assert world.loads == [ModelVersion("m", 1), ModelVersion("m", 2)]


def test_a_version_that_fails_never_answers_and_is_reported(world: World) -> None:
    world.publish(1)
    world.answers()
    world.publish(2, BAD)
    assert world.answers() == (1, None)
    assert world.failed == [ModelVersion("m", 2)]
    assert "no model" in world.follower.failures[ModelVersion("m", 2)].why
    world.publish(3)
    assert world.answers() == (3, None)


def test_a_version_that_failed_is_tried_again_later_and_later(world: World) -> None:
    world.publish(1, BAD)
    for seconds, tries in ((0, 1), (59, 1), (61, 2), (61 + 119, 2), (61 + 121, 3)):
        world.now = seconds
        assert world.answers() is None
        assert len(world.loads) == tries
    world.store.replace("m/1/model.onnx", b"good")
    world.store.delete("m/1/origin.json")
    publish(world.store, "m", 1, b"good")
    world.now = 1e6
    assert world.answers() == (1, None)
    assert not world.follower.failures


def test_of_several_that_are_new_the_newest_that_loads_answers(world: World) -> None:
    world.publish(1)
    world.publish(2)
    world.publish(3, BAD)
    assert world.answers() == (2, None)
    assert ModelVersion("m", 1) not in world.loads


def test_pinned_back_and_forth(world: World) -> None:
    for version in (1, 2):
        world.publish(version)
    assert world.answers() == (2, None)
    promote(world.store, "m", Split(kind="pinned", version=1))
    assert world.answers() == (1, None)
    world.publish(3)
    assert world.answers() == (1, None)
    promote(world.store, "m", Split())
    assert world.answers() == (3, None)


def test_a_canary_next_to_the_version_that_answers(world: World) -> None:
    for version in (1, 2):
        world.publish(version)
    promote(world.store, "m", Split(kind="canary", version=1, canary=2, share=0.1))
    assert world.answers() == (1, 2)
    promote(world.store, "m", Split(kind="pinned", version=2))
    assert world.answers() == (2, None)
    assert world.loads == [ModelVersion("m", 1), ModelVersion("m", 2)]  # it was loaded already


def test_a_canary_that_fails_leaves_all_to_the_other(world: World) -> None:
    world.publish(1)
    world.publish(2, BAD)
    promote(world.store, "m", Split(kind="canary", version=1, canary=2, share=0.5))
    assert world.answers() == (1, None)


def test_a_pinned_version_that_fails_leaves_the_one_that_answered(world: World) -> None:
    world.publish(1)
    world.answers()
    world.publish(2, BAD)
    promote(world.store, "m", Split(kind="pinned", version=2))
    assert world.answers() == (1, None)


def test_while_the_store_is_unreachable_versions_keep_answering(world: World) -> None:
    world.publish(1)
    world.answers()
    world.unreachable = True
    assert world.answers() == (1, None)
    assert "cannot be reached" in world.follower.trouble
    world.unreachable = False
    world.publish(2)
    assert world.answers() == (2, None)
    assert world.follower.trouble == ""


def test_corrupt_traffic_changes_nothing(world: World) -> None:
    world.publish(1)
    world.answers()
    world.store.create(keys.traffic("m"), b"nonsense")
    world.publish(2)
    assert world.answers() == (1, None)
    assert "not a valid traffic" in world.follower.trouble


def test_a_model_that_was_removed_no_longer_answers(world: World) -> None:
    world.publish(1)
    world.answers()
    for key in list(world.store.keys()):
        world.store.delete(key)
    assert world.answers() is None
