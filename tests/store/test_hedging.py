"""A request whose answer is late is sent again, to a real server; the first answer counts."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import urllib3

from fedpipe.store.hedging import Hedge

SECONDS = 60.0
"""A test that waits so long has failed."""


class Counted:
    """The requests that a server has seen, from 1."""

    def __init__(self) -> None:
        self.count = 0
        self.moved = threading.Condition()

    def another(self) -> int:
        with self.moved:
            self.count += 1
            self.moved.notify_all()
            return self.count

    def await_one(self, number: int) -> None:
        with self.moved:
            assert self.moved.wait_for(lambda: self.count >= number, SECONDS)


@contextmanager
def server(seen: Counted, before: Callable[[int], object]) -> Iterator[Callable[[], Any]]:
    """Answers each request with its number, after an act; gives a function that sends one."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            number = seen.another()
            before(number)
            self.send_response(200)
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(str(number).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made, urllib3.PoolManager(maxsize=8) as pool:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{made.server_port}"
        yield lambda: pool.urlopen("GET", url, preload_content=False)
        made.shutdown()


def test_a_late_answer_does_not_hold_up_a_later_one() -> None:
    seen, used = Counted(), threading.Event()

    def late(number: int) -> None:
        if number == 1:
            assert used.wait(SECONDS)

    with server(seen, late) as send:
        hedge = Hedge()
        response = hedge.first(send)
        assert response.read() != b"1"
        response.release_conn()
        used.set()
        assert hedge.first(send).read() > b"1"


def test_a_server_that_is_slow_gets_four_requests_and_no_more() -> None:
    seen = Counted()
    with server(seen, lambda _: seen.await_one(4)) as send:
        assert Hedge().first(send).read() in (b"1", b"2", b"3", b"4")
    assert seen.count == 4


def test_a_server_that_hangs_gets_few_requests_again() -> None:
    seen, ended = Counted(), threading.Event()

    def send() -> Any:
        seen.another()
        assert ended.wait(SECONDS)

    hedge = Hedge()
    calls = [threading.Thread(target=hedge.first, args=(send,)) for _ in range(32)]
    for call in calls:
        call.start()
    seen.await_one(32)
    time.sleep(0.5)  # each would be late several times by now
    assert seen.count < 2 * 32
    ended.set()
    for call in calls:
        call.join()


def test_a_failure_is_raised_where_the_answer_is_awaited() -> None:
    def send() -> Any:
        raise urllib3.exceptions.ProtocolError("reset")

    with pytest.raises(urllib3.exceptions.ProtocolError, match="reset"):
        Hedge().first(send)


def test_a_forked_process_starts_threads_of_its_own() -> None:
    with server(Counted(), lambda _: None) as send:
        assert Hedge().first(send).read() == b"1"
    child = os.fork()
    if not child:
        signal.alarm(int(SECONDS))
        os._exit(Hedge().first(lambda: "answered") != "answered")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
