"""Severs the connection of a party of a cut network to a real MinIO in the middle of a parcel: HEAD has the same bytes."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import fedpipe
from fedpipe.learners.party import Held, Parts
from fedpipe.rounds.history import history
from fedpipe.sessions.pacing import drive
from fedpipe.store import Store, keys, open_store
from fedpipe.store.objects import digest_of
from fedpipe.weights import Array
from tests import servers
from tests.commands import test_split_align as rows
from tests.faults.proxy import Way, cutting
from tests.sessions import halves
from tests.sessions.test_split import parcels_in
from tests.simulation import Actor, World, coordinator

PARTIES = ("alice", "carol", "labels")
ROUNDS, EPOCHS, BATCHES = 2, 2, 5
PATIENCE = 60.0
"""Seconds after which a session hangs; an undisturbed one takes about two."""
ACTIVATIONS, GRADIENTS = b'"kind":"activations"', b'"kind":"gradients"'
"""Marks in the line of a parcel, before its numbers."""
pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("s3_keys")]


class Cut(NamedTuple):
    """Severs the connection behind the mark with this number, and all connections for so many seconds."""

    way: Way
    mark: bytes
    number: int = 7
    dark: float = 0.0


class NotingBottom(halves.NumpyBottom):
    """Notes the gradients of each round that it begins."""

    def __init__(self, noted: list[list[str]]) -> None:
        self._noted = noted

    def begin(self, *arguments: Any, **more: Any) -> None:
        super().begin(*arguments, **more)
        self._noted.append([])

    def backward(self, gradient: Array) -> None:
        self._noted[-1].append(digest_of(gradient.tobytes()))
        super().backward(gradient)


class NotingTop(halves.NumpyTop):
    """Notes the activations of each round that it begins."""

    def __init__(self, noted: list[list[str]]) -> None:
        super().__init__(len(PARTIES) - 1)
        self._noted = noted

    def begin(self, *arguments: Any, **more: Any) -> None:
        super().begin(*arguments, **more)
        self._noted.append([])

    def step(self, activations: Any, y: Array) -> list[Array]:
        self._noted[-1].append(digest_of(b"".join(each.tobytes() for each in activations)))
        return super().step(activations, y)


class Played(NamedTuple):
    """HEAD, and the batches that each party used in each round that it began."""

    head: bytes
    used: dict[str, list[list[str]]]


def played(uri: str, roads: Mapping[str, Store]) -> Played:
    """Plays a session in threads, whose parties reach the store by roads of their own."""
    world, store = World(), open_store(uri)
    world.clock = time.monotonic  # type: ignore[method-assign]
    federation = halves.federation_of(PARTIES, training={"rounds": ROUNDS, "local_epochs": EPOCHS})
    plan, held = halves.begun(store, federation), halves.rows_of(federation)
    used = {name: list[list[str]]() for name in PARTIES}

    def made(name: str) -> tuple[Held, Parts]:
        if name == "labels":
            return held[name], Parts(None, NotingTop(used[name]))
        return held[name], Parts(NotingBottom(used[name]), None)

    def party(name: str) -> Actor:
        return halves.attendance(world, plan, name, store=roads.get(name, store), make=lambda: made(name))

    actors = [coordinator(world, plan, store=store), *map(party, PARTIES)]
    threads = [threading.Thread(target=drive, args=(actor, time.sleep), daemon=True) for actor in actors]
    for thread in threads:
        thread.start()
    end = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "the session hangs"
    assert not parcels_in(store), "parcels are removed when a round is over"
    return Played(store.read(keys.HEAD).data, used)


def place_of(server: servers.Server, name: str, endpoint: str = "") -> str:
    return f"s3://tests/{name}?endpoint={endpoint or server.endpoint}"


@pytest.fixture
def undisturbed(minio_server: servers.Server) -> Played:
    return played_directly(minio_server)


@functools.cache
def played_directly(server: servers.Server) -> Played:
    found = played(place_of(server, "severed-nowhere"), {})
    assert [[len(batches) for batches in found.used[name]] for name in PARTIES] == [[EPOCHS * BATCHES] * ROUNDS] * 3
    return found


CUTS: dict[str, dict[str, Cut]] = {
    "while activations are sent": {"alice": Cut("up", ACTIVATIONS)},
    "while activations arrive": {"labels": Cut("down", ACTIVATIONS)},
    "while gradients are sent": {"labels": Cut("up", GRADIENTS)},
    "while gradients arrive": {"alice": Cut("down", GRADIENTS)},
    "before an upload is answered": {"alice": Cut("answer", ACTIVATIONS)},
    "for some seconds": {"alice": Cut("up", ACTIVATIONS, dark=3.0)},
    "at both ends": {"alice": Cut("down", GRADIENTS, dark=3.0), "labels": Cut("up", GRADIENTS, 15, dark=2.0)},
}


def severed(server: servers.Server, name: str, cuts: Mapping[str, Cut], deadline: float | None = None) -> Played:
    """Plays a session in which the roads of some parties are cut; a request is repeated until the deadline."""
    port = int(server.endpoint.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        wires = {
            party: stack.enter_context(cutting(port, cut.way, cut.number, mark=cut.mark, dark=cut.dark))
            for party, cut in cuts.items()
        }
        roads = {
            party: open_store(place_of(server, name, wire.endpoint), deadline=deadline) for party, wire in wires.items()
        }
        found = played(place_of(server, name), roads)
        assert [wire.cut for wire in wires.values()] == [1] * len(wires)
    return found


@pytest.mark.parametrize("case", CUTS)
def test_a_severed_connection_neither_loses_nor_duplicates_a_batch(
    minio_server: servers.Server, undisturbed: Played, case: str
) -> None:
    """Requests are repeated, so every party uses each batch once, and no attempt is played again."""
    found = severed(minio_server, f"severed-{case.replace(' ', '-')}", CUTS[case])
    assert found.head == undisturbed.head
    assert found.used == undisturbed.used


def test_a_connection_that_is_away_for_longer_than_requests_are_repeated(
    minio_server: servers.Server, undisturbed: Played
) -> None:
    """The party begins the round again: it makes the same parcels, and finds those of before."""
    cuts = {"alice": Cut("up", ACTIVATIONS, dark=4.0)}
    found = severed(minio_server, "severed-for-long", cuts, deadline=1.0)
    assert found.head == undisturbed.head
    assert found.used["labels"] == undisturbed.used["labels"], "the others only wait"
    broken = [batches for batches in found.used["alice"] if len(batches) < EPOCHS * BATCHES]
    assert [batches for batches in found.used["alice"] if batches not in broken] == undisturbed.used["alice"]
    assert broken
    assert all(batches == undisturbed.used["alice"][0][: len(batches)] for batches in broken)


def test_processes_whose_store_is_away_for_some_seconds(minio_server: servers.Server, tmp_path: Path) -> None:
    """Coordinator, parties and the commands reach the store by one road; Keras trains."""
    file = rows.federation(tmp_path / "made", "same", rows.ALICE, rows.ALICE)
    fedpipe.run(file, out=tmp_path / "undisturbed", name="r1")
    expected = [record.weights for record in history(open_store(f"file://{file.parent}/store").below("rows"), "r1")]
    port = int(minio_server.endpoint.rpartition(":")[2])
    with cutting(port, "up", 7, mark=ACTIVATIONS, dark=3.0) as wire:
        fedpipe.run(file, out=tmp_path / "severed", name="r1", store=place_of(minio_server, "processes", wire.endpoint))
    assert wire.cut == 1
    found = history(open_store(place_of(minio_server, "processes")).below("rows"), "r1")
    assert [record.weights for record in found] == expected
