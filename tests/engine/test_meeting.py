"""The bells by which the parties of a session on one machine wake each other."""

from __future__ import annotations

import threading
import time

from fedpipe.engine.meeting import Bell, Meeting

LONG = 60.0


def test_a_ring_before_the_wait_is_heard_once() -> None:
    bell, started = Bell(), time.monotonic()
    bell.ring()
    heard = bell.wait(0, LONG)
    assert (heard, time.monotonic() - started < LONG / 2) == (1, True)
    assert bell.wait(heard, 0.01) == 1, "nobody rang again, so it waits to the end"


def test_learners_are_woken_by_a_move() -> None:
    meeting, woken = Meeting(), list[int]()
    waiters = [meeting.waiter(coordinates=False) for _ in range(3)]

    def attend(number: int) -> None:
        waiters[number](LONG)
        woken.append(number)

    threads = [threading.Thread(target=attend, args=(number,), daemon=True) for number in range(3)]
    for thread in threads:
        thread.start()
    meeting.move()
    for thread in threads:
        thread.join(LONG / 2)
    assert sorted(woken) == [0, 1, 2]


def test_the_coordinator_is_woken_by_the_last_who_computes() -> None:
    meeting, woken = Meeting(), threading.Event()
    coordinator, first, last = (meeting.waiter(coordinates=c) for c in (True, False, False))

    def coordinate() -> None:
        coordinator(LONG)
        woken.set()

    thread = threading.Thread(target=coordinate, daemon=True)
    thread.start()
    with meeting.computing():
        first(0.01)
        assert not woken.wait(0.05)
    last(0.01)
    assert woken.wait(LONG / 2)


def test_the_end_wakes_all_also_those_who_wait_later() -> None:
    meeting, started = Meeting(), time.monotonic()
    waiters = [meeting.waiter(coordinates=c) for c in (True, False)]
    meeting.end()
    for wait in waiters:
        wait(LONG)
    assert time.monotonic() - started < LONG / 2
