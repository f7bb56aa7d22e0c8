"""The journal of a site: whole after any crash, and every change of it is found and located."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedpipe.errors import CorruptError, InputError
from fedpipe.identity.signing import make_key, public_key, signer_of
from fedpipe.sites import journal as module
from fedpipe.sites.audit import find_flaw
from fedpipe.sites.journal import Journal, Usage, entries_of, files_of

KEY = make_key()
PUBLIC = public_key(KEY)


def opened(folder: Path, **more: Any) -> Journal:
    return Journal(folder / "journal", signer_of(KEY), **more)


def filled(folder: Path, count: int = 8, **more: Any) -> Path:
    journal = opened(folder, clock=lambda: 1000.0, **more)
    for number in range(count):
        journal.note("sent", object=f"objects/{number}", bytes=10 * number, digest="sha256:" + "0" * 64)
    return folder / "journal"


def flaw_in(folder: Path) -> str:
    found = find_flaw(folder, PUBLIC)
    return str(found) if found else ""


def test_entries_are_kept_in_order(tmp_path: Path) -> None:
    folder = filled(tmp_path, 3)
    journal = opened(tmp_path, clock=lambda: 2000.0)
    journal.note("trained", round=2, examples=40, metrics={"loss": 0.5}, epsilon=1.5, why=None)
    entries = list(entries_of(folder))
    assert [(entry.n, entry.event) for entry in entries] == [(1, "sent"), (2, "sent"), (3, "sent"), (4, "trained")]
    assert entries[3].fields == {"round": 2, "examples": 40, "metrics": {"loss": 0.5}, "epsilon": 1.5}
    assert [entry.n for entry in entries_of(folder, since=1500.0)] == [4]
    assert flaw_in(folder) == ""


def test_others_cannot_read_it(tmp_path: Path) -> None:
    folder = filled(tmp_path, 1)
    assert {path.stat().st_mode & 0o077 for path in folder.iterdir()} == {0}


@pytest.mark.parametrize("rotation", [10**6, 500])
def test_each_altered_byte_is_located(tmp_path: Path, rotation: int) -> None:
    folder = filled(tmp_path, rotation=rotation)
    files = files_of(folder)
    assert len(files) == (1 if rotation == 10**6 else 3)
    chosen = random.Random(5)
    for path in files:
        whole = path.read_bytes()
        for place in sorted(chosen.sample(range(len(whole)), 50)):
            changed = bytearray(whole)
            changed[place] ^= chosen.choice((1, 2, 32, 128))
            path.write_bytes(changed)
            line = whole[:place].count(b"\n") + 1
            assert flaw_in(folder).startswith((f"{path.name}, line {line}: ", f"{path.name}, line {line + 1}: ")), place
            if whole[place] != 10:
                assert flaw_in(folder).startswith(f"{path.name}, line {line}: "), place
        path.write_bytes(whole)
    assert flaw_in(folder) == ""


def lines_of(folder: Path) -> list[bytes]:
    return files_of(folder)[0].read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        (lambda lines: lines[:3] + lines[4:], "line 4: entry 4 is missing before entry 5"),
        (lambda lines: lines[3:], "line 1: the entries 1 to 3 are missing before entry 4"),
        (lambda lines: lines[:-1], "line 7: the journal ends with entry 7, but its signed head names 8"),
        (lambda lines: lines[:2], "line 2: the journal ends with entry 2, but its signed head names 8"),
        (lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], "line 4: entry 4 is missing before entry 5"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], "line 4: entry 3 stands where entry 4 is due"),
        (lambda lines: [*lines[:-1], lines[-1][:-5]], "line 8: the line is cut"),
        (
            lambda lines: [*lines, lines[-1].replace(b'"n":8', b'"n":9')],
            "line 9: the journal has entry 9, but its signed head ends with 8",
        ),
        (lambda lines: [], "head: the journal ends with entry 0, but its signed head names 8"),
        (lambda lines: [*lines[:3], b"\n", *lines[3:]], "line 4: the line was altered"),
    ],
)
def test_removed_reordered_and_cut_lines(
    tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], flaw: str
) -> None:
    folder = filled(tmp_path)
    before = lines_of(folder)
    files_of(folder)[0].write_bytes(b"".join(change(before)))
    assert flaw_in(folder).endswith(flaw)
    if len(b"".join(change(before))) != len(b"".join(before)):
        with pytest.raises(CorruptError, match="the journal does not end with entry 8, which its signed head names"):
            opened(tmp_path)


def test_a_rewritten_chain_is_found_by_its_signed_head(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    other = tmp_path / "other"
    forged = Journal(other / "journal", signer_of(make_key()), clock=lambda: 1000.0)
    for _ in range(8):
        forged.note("sent", bytes=0)
    for path in folder.iterdir():
        path.write_bytes((other / "journal" / path.name).read_bytes())
    assert flaw_in(folder) == "head: is not signed by this site"
    with pytest.raises(CorruptError, match="the head of the journal is not signed by this site"):
        opened(tmp_path)


def test_a_missing_file_in_the_middle(tmp_path: Path) -> None:
    folder = filled(tmp_path, rotation=500)
    first, second, third = files_of(folder)
    lost = len(second.read_bytes().splitlines())
    second.unlink()
    begin = int(second.stem)
    assert flaw_in(folder) == f"{third.name}, line 1: the entries {begin} to {begin + lost - 1} are missing before entry " \
        f"{begin + lost}"  # fmt: skip
    first.unlink()
    assert "the entries 1 to" in flaw_in(folder)


def test_a_missing_head(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    (folder / "head").unlink()
    assert flaw_in(folder) == "head: is missing"
    with pytest.raises(CorruptError, match="does not end with entry 0"):
        opened(tmp_path)


class Killed(BaseException):
    """Ends a process at a point of its work."""


@pytest.mark.parametrize("rotation", [10**6, 1])
@pytest.mark.parametrize("point", ["before", "half of the head", "head", "half of the line", "line"])
def test_a_crash_at_any_point_is_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, rotation: int
) -> None:
    folder = filled(tmp_path, 4, rotation=rotation)
    write = module._write_at

    def crash(path: Path, offset: int, data: bytes) -> None:
        suffix = ".jsonl" if point in ("head", "half of the line", "line") else ".part"
        if path.suffix != suffix:
            write(path, offset, data)
            return
        share = {"half of the head": 0.5, "half of the line": 0.5, "line": 1.0}.get(point, 0.0)
        if share:
            write(path, offset, data[: int(len(data) * share)])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_at", crash)
        with pytest.raises(Killed):
            opened(tmp_path, rotation=rotation).note("trained", round=5)
    if point == "line":
        assert flaw_in(folder) == ""
    if point == "head":
        if rotation == 1:
            (folder / "0000000005.jsonl").touch()  # it is there before its first line
        assert flaw_in(folder) == ""
    opened(tmp_path, rotation=rotation).note("stopped")
    events = [entry.event for entry in entries_of(folder)][4:]
    expected = {"head": ["repaired"], "half of the line": ["repaired"], "line": ["trained"]}
    assert events == [*expected.get(point, []), "stopped"]
    assert flaw_in(folder) == ""


def test_the_disk_has_the_head_before_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(tmp_path)
    synced: list[str] = []
    sync = os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    journal.note("trained")
    assert synced == ["head.next.part", "journal", "0000000001.jsonl"]


@pytest.mark.parametrize("rotation", [10**6, 1])
@pytest.mark.parametrize("kind", [".part", ".jsonl"])
def test_a_full_disk_is_one_sentence_and_damages_nothing(
    kind: str, rotation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = filled(tmp_path, 3, rotation=rotation)
    written = os.pwrite

    def full(handle: int, data: bytes, offset: int) -> int:
        if Path(f"/proc/self/fd/{handle}").readlink().suffix != kind:
            return written(handle, data, offset)
        written(handle, data[:10], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    journal = opened(tmp_path, rotation=rotation)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(InputError, match=r"journal cannot be written: No space left on device\. Make room"):
            journal.note("trained", round=1)
    assert flaw_in(folder) == ""
    journal.note("trained", round=1)
    assert [entry.event for entry in entries_of(folder)] == ["sent", "sent", "sent", "trained"]
    assert flaw_in(folder) == ""


def open_as_nobody(folder: Path, answer: Any) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        opened(folder)
        answer.send("no error")
    except InputError as error:
        answer.send(str(error))


def test_no_rights_on_the_folder(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir(mode=0o500)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    worker = context.Process(target=open_as_nobody, args=(tmp_path, there))
    worker.start()
    assert here.poll(30)
    said = here.recv()
    worker.join()
    assert "cannot be written: Permission denied. Make room on the disk, and give this user" in said


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("")
    with pytest.raises(InputError, match=r"/journal: the journal's folder cannot be written: File exists"):
        opened(tmp_path)


def test_a_link_in_place_of_its_file_is_not_followed(tmp_path: Path) -> None:
    folder = filled(tmp_path, 1, rotation=1)
    (tmp_path / "elsewhere").write_text("precious")
    (folder / "0000000002.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises((InputError, CorruptError)):
        opened(tmp_path, rotation=1).note("sent")
    assert (tmp_path / "elsewhere").read_text() == "precious"


def append_many(folder: Path, count: int) -> None:
    journal = opened(folder, rotation=2000)
    for number in range(count):
        journal.note("sent", number=number, process=os.getpid())


def test_two_processes_append_to_one_chain(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=append_many, args=(tmp_path, 40)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    entries = list(entries_of(tmp_path / "journal"))
    assert [entry.n for entry in entries] == list(range(1, 81))
    by_process: dict[int, list[int]] = {}
    for entry in entries:
        by_process.setdefault(entry.fields["process"], []).append(entry.fields["number"])
    assert sorted(map(len, by_process.values())) == [40, 40]
    assert all(numbers == list(range(40)) for numbers in by_process.values())
    assert flaw_in(tmp_path / "journal") == ""


def test_an_entry_that_is_too_long_keeps_its_digest(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    entry = journal.note("refused", why="x" * 10**6)
    assert entry.fields["cut"].endswith("bytes")
    assert flaw_in(tmp_path / "journal") == ""


def test_usage_counts_the_last_day(tmp_path: Path) -> None:
    now = [10_000.0]
    journal = opened(tmp_path, clock=lambda: now[0], rotation=300)
    for hour in range(50):
        now[0] = 10_000.0 + 3600 * hour
        journal.note("trained", round=hour)
        journal.note("sent", bytes=100)
    assert journal.usage() == Usage(rounds=24, bytes=2400)
    now[0] += 48 * 3600
    assert journal.usage() == Usage(0, 0)


def test_usage_is_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each object that is sent asks for it. The files are read once, and after another process has appended."""
    reads, read = [], module._entries_in
    monkeypatch.setattr(module, "_entries_in", lambda path: reads.append(path) or read(path))
    journal, other = opened(tmp_path), opened(tmp_path)
    for number in range(1, 20):
        journal.note("sent", bytes=10)
        assert journal.usage().bytes == 10 * number
    assert len(reads) == 1
    other.note("sent", bytes=5)
    assert journal.usage().bytes == 195
    other.note("sent", bytes=5)
    journal.note("sent", bytes=10)
    assert journal.usage().bytes == 210
    assert len(reads) == 3


def test_usage_while_the_newest_file_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command was killed between making the file and writing its line."""
    journal, other = (opened(tmp_path, rotation=1) for _ in range(2))
    journal.note("sent", bytes=10)
    other.note("approved")

    write = module._write_at

    def killed(path: Path, offset: int, data: bytes) -> None:
        if path.suffix != ".jsonl":
            return write(path, offset, data)
        path.touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_at", killed)
        with pytest.raises(KeyboardInterrupt):
            other.note("approved")
    assert journal.usage().bytes == 10


def test_usage_after_a_clock_that_was_a_week_ahead(tmp_path: Path) -> None:
    now = [10 * module.DAY]
    journal = opened(tmp_path, clock=lambda: now[0])
    journal.note("trained", round=1)
    now[0] += 7 * module.DAY
    assert journal.usage().rounds == 0
    now[0] -= 7 * module.DAY
    assert journal.usage().rounds == 1


def test_a_clock_that_was_set_back_does_not_reset_the_usage(tmp_path: Path) -> None:
    now = [10 * module.DAY]
    journal = opened(tmp_path, clock=lambda: now[0])
    journal.note("trained", round=1)
    now[0] -= module.DAY
    assert journal.usage().rounds == 1


def test_a_journal_is_whole_while_the_agent_appends(tmp_path: Path) -> None:
    journal = opened(tmp_path, rotation=2000)
    journal.note("started")
    ends = threading.Event()

    def append() -> None:
        while not ends.is_set():
            journal.note("sent", object="weights", bytes=1)

    agent = threading.Thread(target=append)
    agent.start()
    try:
        assert [find_flaw(tmp_path / "journal", PUBLIC) for _ in range(100)] == [None] * 100
    finally:
        ends.set()
        agent.join()


@pytest.mark.parametrize(
    ("name", "data", "flaw"),
    [
        ("0000000500.jsonl", b"", "0000000500.jsonl: does not belong to the journal"),
        ("head.next", b"{}", "head: the next head is not signed by this site"),
    ],
)
def test_files_that_the_agent_refuses_are_found(tmp_path: Path, name: str, data: bytes, flaw: str) -> None:
    journal = opened(tmp_path)
    journal.note("started")
    (tmp_path / "journal" / name).write_bytes(data)
    with pytest.raises(CorruptError):
        journal.note("stopped")
    assert str(find_flaw(tmp_path / "journal", PUBLIC)) == flaw
