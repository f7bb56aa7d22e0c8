"""Large uploads to two real servers: what a broken connection, a killed process or another writer makes of them."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpipe.errors import StoreError, StoreUnavailableError
from fedpipe.identity.policies import learner_policy
from fedpipe.store import keys, open_store
from fedpipe.store.base import Credentials
from fedpipe.store.multipart import PART, UPLOADS, Begun, Unfinished, _Transfer, unfinished
from fedpipe.store.objects import digest_of, fetch_file, put_file
from fedpipe.store.s3 import MinioStore
from fedpipe.store.users import Users
from tests import servers
from tests.faults.proxy import Wire, cutting

SIZE = 4 * PART + 12_345
IN_PART_3 = 2 * PART + PART // 2
pytestmark = pytest.mark.usefixtures("s3_keys")


def port_of(server: servers.Server) -> int:
    return int(server.endpoint.rpartition(":")[2])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "update"
    path.write_bytes(random.Random(str(tmp_path)).randbytes(SIZE))
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test is a process of its own: it has a folder, and remembers nothing of others."""
    monkeypatch.setenv(UPLOADS, str(tmp_path / "uploads"))
    unfinished.cache_clear()
    yield tmp_path / "uploads"
    unfinished.cache_clear()


def opened(endpoint: str, deadline: float | None = None) -> MinioStore:
    found = open_store(f"s3://tests/parts?endpoint={endpoint}", deadline=deadline)
    assert isinstance(found, MinioStore)
    return found


def left_at(server: servers.Server, key: str) -> int:
    """The parts and uploads of an object that are not complete, as the server lists them."""
    store = opened(server.endpoint)
    return len(store._client._list_multipart_uploads("tests", prefix=f"parts/{key}").uploads)


def test_a_cut_connection_repeats_a_part(s3_server: servers.Server, file: Path, folder: Path) -> None:
    digest = digest_of(file.read_bytes())
    key = keys.content(digest, "a")
    with cutting(port_of(s3_server), "up", IN_PART_3) as wire:
        put_file(opened(wire.endpoint), file, digest, "a")
        assert wire.cut == 1
        assert SIZE < wire.passed["up"] < SIZE + 2 * PART
    assert store_bytes(s3_server, key) == file.read_bytes()
    assert list(folder.iterdir()) == []
    assert left_at(s3_server, key) == 0


def test_a_cut_download_reads_only_the_rest(s3_server: servers.Server, file: Path, tmp_path: Path) -> None:
    digest = digest_of(file.read_bytes())
    put_file(opened(s3_server.endpoint), file, digest)
    with cutting(port_of(s3_server), "down", IN_PART_3) as wire:
        fetch_file(opened(wire.endpoint), digest, tmp_path / "down")
        assert wire.cut == 1
        assert SIZE < wire.passed["down"] < SIZE + PART
    assert (tmp_path / "down").read_bytes() == file.read_bytes()


PROGRAM = """
import sys
from pathlib import Path
from fedpipe.store import open_store

open_store(sys.argv[1]).upload(sys.argv[2], Path(sys.argv[3]))
"""


@pytest.mark.parametrize("same", [True, False])
def test_a_process_that_was_killed(s3_server: servers.Server, file: Path, folder: Path, same: bool) -> None:
    """The next one continues if it has the same bytes again; else it ends the upload that was left."""
    processes: list[subprocess.Popen[bytes]] = []
    with cutting(port_of(s3_server), "up", IN_PART_3, lambda: processes[0].kill()) as wire:
        store, key = opened(wire.endpoint), f"killed-{same}"
        processes.append(
            subprocess.Popen([sys.executable, "-c", PROGRAM, f"{store.uri}?endpoint={wire.endpoint}", key, file])
        )
        assert processes[0].wait() < 0
        assert left_at(s3_server, key) == len(list(folder.iterdir())) == 1
        time.sleep(0.5)  # VersityGW keeps a part that arrives while its upload is ended
        store.upload(key if same else "another", file)
        assert (wire.passed["up"] < SIZE + 2 * PART) == same
    assert left_at(s3_server, key) == len(list(folder.iterdir())) == 0
    assert store_bytes(s3_server, key if same else "another") == file.read_bytes()


def interrupted(wire: Wire, key: str, file: Path) -> MinioStore:
    """A store whose upload has failed in part 3: the line was cut, and its deadline is over at once."""
    store = opened(wire.endpoint, deadline=0)
    with pytest.raises(StoreUnavailableError, match="the store cannot be reached"):
        store.upload(key, file)
    return opened(wire.endpoint)


def test_a_later_call_continues(s3_server: servers.Server, file: Path) -> None:
    with cutting(port_of(s3_server), "up", IN_PART_3) as wire:
        interrupted(wire, "later", file).upload("later", file)
        assert wire.passed["up"] < SIZE + 2 * PART
    assert store_bytes(s3_server, "later") == file.read_bytes()


def test_parts_of_other_bytes_are_sent_again(s3_server: servers.Server, file: Path) -> None:
    """A private learner's second try has other noise, for instance under a key that it reuses by mistake."""
    with cutting(port_of(s3_server), "up", IN_PART_3) as wire:
        store = interrupted(wire, "other", file)
        file.write_bytes(file.read_bytes()[::-1])
        store.upload("other", file)
    assert store_bytes(s3_server, "other") == file.read_bytes()


def test_an_upload_that_the_server_has_ended_begins_again(s3_server: servers.Server, file: Path, folder: Path) -> None:
    with cutting(port_of(s3_server), "up", IN_PART_3) as wire:
        store = interrupted(wire, "ended", file)
        store._client._abort_multipart_upload("tests", "parts/ended", the_only(folder).upload)
        store.upload("ended", file)
    assert store_bytes(s3_server, "ended") == file.read_bytes()
    assert left_at(s3_server, "ended") == len(list(folder.iterdir())) == 0


def test_an_upload_whose_last_answer_was_lost_is_complete(s3_server: servers.Server, file: Path, folder: Path) -> None:
    with cutting(port_of(s3_server), "up", IN_PART_3) as wire:
        store = interrupted(wire, "answered", file)
        with file.open("rb") as bytes_of_it:
            _Transfer(store, "answered", bytes_of_it).send(the_only(folder).upload, resumed=True)
        sent = wire.passed["up"]
        store.upload("answered", file)
        assert wire.passed["up"] < sent + PART
    assert left_at(s3_server, "answered") == len(list(folder.iterdir())) == 0


def test_an_object_is_written_once(s3_server: servers.Server, file: Path) -> None:
    """Another writer of the same bytes is first: its object stays, of its version and time."""
    direct = opened(s3_server.endpoint)
    with cutting(port_of(s3_server), "up", IN_PART_3, lambda: direct.upload("once", file)) as wire:
        opened(wire.endpoint).upload("once", file)
        first = direct.open("once")._version
    assert (direct.open("once")._version, store_bytes(s3_server, "once")) == (first, file.read_bytes())
    assert left_at(s3_server, "once") == 0


def test_bytes_that_do_not_match_their_name_are_replaced(s3_server: servers.Server, file: Path) -> None:
    store, digest = opened(s3_server.endpoint), digest_of(file.read_bytes())
    assert store.create(keys.content(digest), b"a torn write of somebody")
    put_file(store, file, digest)
    assert store_bytes(s3_server, keys.content(digest)) == file.read_bytes()


def test_a_learners_policy_allows_it(
    minio_server: servers.Server, file: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """It may list the parts of its own uploads and end them, and begin none at another's place."""
    user = Credentials("learner-of-parts", "secret-of-the-learner")
    Users(f"s3://tests/parts?endpoint={minio_server.endpoint}").put(user, learner_policy("tests", "parts", "a"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", user.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", user.secret_key)
    key, other = (keys.content(digest_of(file.read_bytes()), name) for name in ("a", "b"))
    with cutting(port_of(minio_server), "up", IN_PART_3) as wire:
        interrupted(wire, key, file).upload(key, file)
        assert wire.passed["up"] < SIZE + 2 * PART
    with pytest.raises(StoreError, match="refuses the credentials"):
        opened(minio_server.endpoint).upload(other, file)
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_or_read_is_no_obstacle(
    minio_server: servers.Server, file: Path, folder: Path
) -> None:
    folder.mkdir()
    (folder / "torn").write_bytes(b"{")
    opened(minio_server.endpoint).upload("torn", file)
    assert [path.name for path in folder.iterdir()] == ["torn"]
    (folder / "torn").unlink()
    folder.rmdir()
    folder.write_text("no folder")
    unfinished.cache_clear()
    opened(minio_server.endpoint).upload("no-folder", file)
    assert store_bytes(minio_server, "no-folder") == file.read_bytes()


def the_only(folder: Path) -> Begun:
    """The upload that is not complete."""
    (begun,) = Unfinished(str(folder))._earlier.values()
    return begun


def store_bytes(server: servers.Server, key: str) -> bytes:
    return opened(server.endpoint).read(key, limit=SIZE).data
