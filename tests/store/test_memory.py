import pytest

from fedpipe.store import MemoryStore, Store, open_store
from fedpipe.store.testing import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()


def test_one_name_is_one_store_in_a_process() -> None:
    open_store("memory://shared").create("key", b"1")
    assert open_store("memory://shared").read("key").data == b"1"
    assert open_store("memory://other").size("key") is None
