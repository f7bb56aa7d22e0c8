from __future__ import annotations

import threading

import pytest

from fedpipe.store import MemoryStore, Store, open_store
from fedpipe.store.requests import each


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store that is opened without a request."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return open_store("s3://bucket/prefix?endpoint=http://127.0.0.1:9")


def test_requests_to_a_remote_store_run_at_once(remote: Store) -> None:
    """Each waits until all have begun, which one after the other never would."""
    begun = threading.Barrier(8, timeout=30)

    def request(item: int) -> int:
        begun.wait()
        return item * 2

    assert each(remote, request, range(8)) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert each(remote, lambda item: item, range(100)) == list(range(100))


def test_requests_to_a_store_of_this_process_run_in_their_order() -> None:
    threads: list[int] = []
    assert each(MemoryStore(), lambda _: threads.append(threading.get_ident()), range(5)) == [None] * 5
    assert set(threads) == {threading.get_ident()}


def test_the_first_failure_in_the_order_is_raised(remote: Store) -> None:
    def request(item: int) -> int:
        if item in (2, 5):
            raise ValueError(item)
        return item

    with pytest.raises(ValueError, match="2"):
        each(remote, request, range(8))
