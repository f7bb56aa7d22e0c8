"""Event files of a run, for the real TensorBoard of the tff environment."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import urllib3
from typer.testing import CliRunner

from fedpipe.cli.main import app
from fedpipe.commands.tensorboard import fetch_events, find_events, find_tensorboard
from fedpipe.errors import CorruptError, InputError, NotFoundError, StoreError
from fedpipe.learners.events import event_file
from fedpipe.rounds.beginning import begin
from fedpipe.store import LocalStore, Reader, Store, keys
from tests.federations import fresh, make_federation, make_plan

FILE = "name: tiny\nstore: store\nlearners: [{name: a}, {name: b}]\ndata: {uri: x.npz}\ntraining: {rounds: 1, batch_size: 1}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a federation file, whose run `r1` has two event files."""
    (tmp_path / "federation.yaml").write_text(FILE)
    store = LocalStore(tmp_path / "store").below("tiny")
    begin(store, make_plan(make_federation(("a", "b"))), fresh)
    store.create("learners/a/runs/r1/1/tensorboard/events.out.tfevents.r1", b"one")
    store.create("runs/r1/2/tensorboard/events.out.tfevents.000002", b"two")
    store.create("learners/b/runs/r1/1/update", b"no event file")
    store.create("learners/a/runs/r2/1/tensorboard/events.out.tfevents.r2", b"of another run")
    return tmp_path


@pytest.fixture
def opened(folder: Path) -> Store:
    return LocalStore(folder / "store").below("tiny")


def test_each_learner_and_round_has_a_folder(opened: Store) -> None:
    assert sorted(str(found.path) for found in find_events(opened, "r1")) == [
        "a/round-1/events.out.tfevents.r1",
        "simulation/events.out.tfevents.000002",
    ]


def test_files_that_have_grown_are_copied_again(opened: Store, tmp_path: Path) -> None:
    assert fetch_events(opened, "r1", tmp_path / "events") == 2
    copied = tmp_path / "events" / "simulation" / "events.out.tfevents.000002"
    assert copied.read_bytes() == b"two"
    opened.replace("runs/r1/2/tensorboard/events.out.tfevents.000002", b"two and more")
    assert fetch_events(opened, "r1", tmp_path / "events") == 2
    assert copied.read_bytes() == b"two and more"


def test_a_learner_cannot_write_elsewhere(opened: Store, folder: Path, tmp_path: Path) -> None:
    hostile = folder / "store" / "tiny" / "learners" / "a" / "runs" / "r1" / "1" / "tensorboard"
    (hostile / "deeper").mkdir()
    (hostile / "deeper" / "events").write_bytes(b"x")
    (hostile.parent.parent / "x" / "tensorboard").mkdir(parents=True)
    (hostile.parent.parent / "x" / "tensorboard" / "events").write_bytes(b"x")
    assert fetch_events(opened, "r1", tmp_path / "events") == 2


NAMES = ("..", "...", "a" * 201, "%2e%2e", "events.out.tfevents.x y", "\u202ex", "a:b")


@pytest.mark.parametrize("name", NAMES)
def test_names_that_no_reader_expects(name: str) -> None:
    assert keys.parse_events(f"learners/a/runs/r1/1/tensorboard/{name}", "r1", "a") is None
    assert keys.parse_events("learners/a/runs/r1/01/tensorboard/events", "r1", "a") is None


class Hostile(LocalStore):
    """A store where one learner's event files change, or are not given, between two requests."""

    attack = ""

    def size(self, key: str) -> int | None:
        if "learners/a/" in key and self.attack == "encoded":
            raise CorruptError("the object is stored with the content encoding 'gzip'")
        return super().size(key)

    def open(self, key: str) -> Reader:
        if "learners/a/" in key:
            if self.attack == "removed":
                raise NotFoundError("there is no such object")
            if self.attack == "encrypted":
                raise StoreError("the store refuses the request: InvalidRequest")
            if self.attack == "grown":
                self.replace(key, bytes(2 * 2**20))
        return super().open(key)


@pytest.mark.parametrize("attack", ["encoded", "removed", "encrypted", "grown"])
def test_event_files_that_cannot_be_copied_are_left_out(
    attack: str, opened: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedpipe.commands.tensorboard._LARGEST", 2**20)
    monkeypatch.setattr(Hostile, "attack", attack)
    assert fetch_events(Hostile(folder / "store").below("tiny"), "r1", tmp_path / "events") == 1
    assert [path.name for path in (tmp_path / "events").rglob("*") if path.is_file()] == ["events.out.tfevents.000002"]


def test_a_learner_cannot_fill_the_disk(opened: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedpipe.commands.tensorboard._MOST", 2500)
    for number in range(9):
        opened.create(f"learners/b/runs/r1/{number}/tensorboard/events.out.tfevents.r1", bytes(1000))
    assert fetch_events(opened, "r1", tmp_path / "events") == 4  # two of them


def test_no_such_run(opened: Store, folder: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no run 'r9'"):
        fetch_events(opened, "r9", folder / "events")


def test_a_folder_that_cannot_be_written(opened: Store, folder: Path) -> None:
    (folder / "events").write_text("a file")
    with pytest.raises(InputError, match="cannot be written"):
        fetch_events(opened, "r1", folder / "events")


def test_the_command_copies(folder: Path) -> None:
    told = CliRunner().invoke(
        app, ["tensorboard", "r1", "-f", str(folder / "federation.yaml"), "--copy", str(folder / "events")]
    )
    assert told.exit_code == 0, told.output
    assert "2 event files" in told.output


def test_tensorboard_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("FEDPIPE_TFF_PYTHON", str(tmp_path / "python"))
    (tmp_path / "python").touch()
    with pytest.raises(InputError, match="TensorBoard is not installed") as caught:
        find_tensorboard()
    assert "make setup-tff" in str(caught.value.remedy)


@pytest.mark.heavy
def test_tensorboard_shows_the_scalars_and_ends_with_the_command(folder: Path, opened: Store) -> None:
    opened.replace("runs/r1/2/tensorboard/events.out.tfevents.000002", event_file([(2, {"loss": 0.5})]))
    command = [
        sys.executable,
        "-m",
        "fedpipe",
        "tensorboard",
        "r1",
        "-f",
        str(folder / "federation.yaml"),
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(m[0] for line in process.stderr if (m := re.search(r"http://localhost:\d+", line)))
        tags: dict[str, object] = {}
        end = time.monotonic() + 60
        while "loss" not in tags and time.monotonic() < end:
            url = f"{address}/data/plugin/scalars/tags"
            tags = urllib3.request("GET", url, retries=5, timeout=10).json().get("simulation", {})
            time.sleep(0.2)
        assert "loss" in tags
        process.send_signal(signal.SIGINT)
        process.wait(30)
    with pytest.raises(urllib3.exceptions.HTTPError):
        urllib3.request("GET", address, retries=False, timeout=5)
