"""Agents as processes on a real MinIO, each with its own user: the same model as five learners on one machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import fedpipe
from fedpipe.commands.identities import enroll
from fedpipe.rounds.history import history
from fedpipe.sessions.presence import read_presence
from fedpipe.sites.audit import find_flaw
from fedpipe.sites.journal import entries_of
from fedpipe.store import keys, objects, open_store
from tests import servers
from tests.cli.conftest import Result
from tests.commands import test_table_run as tables
from tests.sites.hospitals import LOCAL, ROUNDS, SITES, Federation, until


@pytest.fixture
def federation(numpy_digits: Path, minio_server: servers.Server, s3_keys: None) -> Iterator[Federation]:
    prefix = numpy_digits.parent.name.replace("_", "-")
    made = Federation(numpy_digits, minio_server.uri.replace("s3://tests", f"s3://tests/{prefix}"))
    yield made
    for process in made.agents.values():
        process.kill()
        process.wait()


@pytest.mark.heavy
def test_two_learners_here_and_three_at_their_sites(federation: Federation, tmp_path: Path) -> None:
    """Each site has a user without the right to list, a key of its own, and data that are nowhere else."""
    file = federation.write()
    for name in SITES:
        federation.join(name)
    with federation.starting(*SITES):
        summary = fedpipe.run(file, out=tmp_path / "out", name="r1").summary
    assert {name: process.wait(120) for name, process in federation.agents.items()} == dict.fromkeys(SITES, 0), [
        federation.log(name) for name in SITES
    ]
    records = history(federation.store, "r1")
    assert [len(record.contributors) for record in records[1:]] == [5] * ROUNDS
    assert all(update.signature for record in records for update in record.updates if update.learner in SITES)
    assert summary["evaluation"]["federated"]["metrics"]["accuracy"] > 0.8
    assert set(summary["evaluation"]["learners"]) == {*LOCAL, *SITES}
    for name in SITES:
        journal = federation.folder / "at" / name / "state" / "journal"
        assert find_flaw(journal) is None
        entries = list(entries_of(journal))
        assert [entry.fields["round"] for entry in entries if entry.event == "trained"] == [1, 2, 3, 4]
        assert {keys.update(name, "r1", number) for number in range(1, ROUNDS + 1)} <= check_account(federation, name)
        (isolated,) = [entry.fields for entry in entries if entry.event == "isolated"]
        assert isolated == {"files": True, "network": True}
        base = keys.content(records[-2].weights)
        assert base in {entry.fields["object"] for entry in entries if entry.event == "read" and entry.fields["bytes"]}
        assert not list((federation.folder / "at" / name / "state" / "scratch").iterdir())
        found = read_presence(federation.store, name)
        assert found is not None
        assert found.state == "ended"

    alone = Federation(federation.folder, f"file://{tmp_path}/store")
    fedpipe.run(alone.write(sites=()), out=tmp_path / "alone", name="r1")
    assert history(alone.store, "r1")[-1].weights == records[-1].weights


def check_account(federation: Federation, name: str) -> set[str]:
    """Checks that the journal of a site names each object below its folder with its size, and returns their keys."""
    noted = entries_of(federation.folder / "at" / name / "state" / "journal")
    sent = {entry.fields["object"]: entry.fields["bytes"] for entry in noted if entry.event == "sent"}
    there = {entry.key: entry.size for entry in federation.store.entries(f"learners/{name}/")}
    assert there.pop(keys.presence(name))
    assert there == {key: sent.get(key) for key in there}
    return set(there)


@pytest.mark.heavy
def test_secure_sums_of_pods_and_sites(federation: Federation, tmp_path: Path) -> None:
    """The sites demand secure sums, and know the administrator's key from elsewhere.

    One of them dies in a round. Its keys die with it, so the next agent says that it cannot help to open the sum, and
    takes part in the next one. So nobody is awaited until the deadline.
    """
    file = federation.write()
    content = yaml.safe_load(file.read_text())
    content["algorithm"] = {"name": "averaging", "secure": {"bound": {"quantile": 0.999}}, "most_examples": 400}
    content["quorum"] = {"deadline": 600}
    file.write_text(yaml.safe_dump(content))
    owned = federation.folder / "operators-keys"
    for name in LOCAL:
        enroll(file, name, keys=owned)
    for name in SITES:
        policy = {"data": str(federation.folder / f"{name}.npz"), "secure_sums": True}
        path = federation.join(name, policy=policy)
        trusted = {"administrator": (owned / "_administrator.pub").read_text().strip()}
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | trusted))
    command = [sys.executable, "-m", "fedpipe", "run", str(file), "--run", "r1", "--out", str(tmp_path / "out")]
    with (tmp_path / "run.log").open("w") as log, federation.starting(*SITES):
        runs = subprocess.Popen([*command, "--keys", str(owned)], stdout=log, stderr=log)
    until(lambda: federation.store.size(keys.answer("hospital-d", "r1", 2, "agreed")))
    federation.agents["hospital-d"].kill()
    federation.agents["hospital-d"].wait()
    federation.start("hospital-d", "--once")
    assert runs.wait(300) == 0, (tmp_path / "run.log").read_text()
    assert [process.wait(120) for process in federation.agents.values()] == [0, 0, 0]
    records = history(federation.store, "r1")
    missed = [{*LOCAL, *SITES} - set(record.contributors) for record in records[1:]]
    assert missed.count(set()) >= ROUNDS - 1, "on a busy machine, the agent is killed in the round after"
    assert set().union(*missed) <= {"hospital-d"}
    assert not any(record.updates for record in records)
    noted = entries_of(federation.folder / "at" / "hospital-c" / "state" / "journal")
    trained = [entry.fields for entry in noted if entry.event == "trained"]
    assert [fields["round"] for fields in trained] == list(range(1, ROUNDS + 1)), "they count against `rounds_a_day`"
    assert all(fields.keys() == {"run", "round", "digest", "bytes"} for fields in trained), "numbers are in the sum"
    check_account(federation, "hospital-c")
    assert len(fedpipe.verify(file, "r1")) == ROUNDS


@pytest.mark.heavy
def test_an_agent_is_watched_and_stopped(
    federation: Federation, fedpipe: Callable[..., Result], tmp_path: Path
) -> None:
    federation.write()
    path = federation.join("hospital-c")
    done = fedpipe("site", "status", "-c", path, "--json")
    assert done.code == 1
    assert json.loads(done.out)["flaws"] == ["its agent does not run. Start it: fedpipe site run"]
    agent = federation.start("hospital-c")
    until(lambda: federation.store.size(keys.presence("hospital-c")))
    done = fedpipe("site", "status", "-c", path, "--json")
    assert (done.code, json.loads(done.out)["running"], json.loads(done.out)["state"]) == (0, True, "idle")
    done = fedpipe("site", "run", "-c", path)
    assert done.code == 2
    assert f"another agent of hospital-c runs already, process {agent.pid}" in done.err
    resident = int((Path("/proc") / str(agent.pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert resident < 150 * 2**20  # TensorFlow alone takes more
    done = fedpipe("site", "stop", "-c", path)
    assert (done.code, "the agent has ended" in done.out) == (0, True)
    assert agent.wait(120) == 0
    found = read_presence(federation.store, "hospital-c")
    assert found is not None
    assert found.state == "ended"
    assert fedpipe("site", "stop", "-c", path).code == 0


@pytest.mark.heavy
def test_an_agent_that_is_killed_in_a_session_and_started_again(
    federation: Federation, fedpipe: Callable[..., Result], tmp_path: Path
) -> None:
    """Its plan is approved first. SIGKILL takes the process that trains too, and the next agent resumes the session.

    The machine's clock is a day ahead, and a day behind when the next agent starts.
    """
    ahead, behind = (clock_of(tmp_path / name, days) for name, days in (("ahead", 1), ("behind", -1)))
    file = federation.write(sites=("hospital-c",))
    path = federation.join("hospital-c", approve="ask")
    runs = subprocess.Popen(
        [sys.executable, "-m", "fedpipe", "run", str(file), "--run", "r1", "--out", str(tmp_path / "out")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until(lambda: federation.store.size(keys.CURRENT))
    first = federation.start("hospital-c", PYTHONPATH=ahead)
    until(lambda: (found := read_presence(federation.store, "hospital-c")) and found.state == "waits")
    assert not federation.store.size(keys.update("hospital-c", "r1", 1))
    assert "waits since" in fedpipe("site", "pending", "-c", path).out
    assert fedpipe("site", "approve", "-c", path).code == 0
    until(lambda: federation.store.size(keys.update("hospital-c", "r1", 1)))
    first.kill()
    first.wait()
    scratch = federation.folder / "at" / "hospital-c" / "state" / "scratch"
    until(lambda: not _processes_in(scratch))
    second = federation.start("hospital-c", PYTHONPATH=behind)
    assert runs.wait(120) == 0
    records = history(federation.store, "r1")
    assert ["hospital-c" in record.contributors for record in records[1:]] == [True] * ROUNDS
    noted = list(entries_of(federation.folder / "at" / "hospital-c" / "state" / "journal"))
    assert max(entry.at for entry in noted) - min(entry.at for entry in noted) > 1.9 * 86_400
    assert {entry.fields["round"] for entry in noted if entry.event == "trained"} == set(range(1, ROUNDS + 1))
    second.send_signal(signal.SIGTERM)
    assert second.wait(120) == 0
    assert not scratch.exists() or not list(scratch.iterdir())


def beginning(folder: Path, program: str) -> str:
    """A PYTHONPATH with which processes begin with a program."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(program)
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", ""))))


CLOCK = """
import datetime, time
import minio.time

now, signing = time.time, minio.time.utcnow
time.time = lambda: now() + {seconds}
minio.time.utcnow = lambda: signing() + datetime.timedelta(seconds={seconds})
"""


def clock_of(folder: Path, days: int) -> str:
    """A PYTHONPATH with which the clock of processes is some days ahead; the one that only counts seconds is right."""
    return beginning(folder, CLOCK.format(seconds=days * 86_400))


def next_version(folder: Path) -> str:
    """A PYTHONPATH with which processes speak the next number of the protocol."""
    return beginning(folder, "from fedpipe.store import objects\n\nobjects.PROTOCOL += 1\n")


@pytest.mark.heavy
@pytest.mark.parametrize("newer", ["site", "coordinator"])
def test_a_site_and_a_coordinator_of_two_versions(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newer: str
) -> None:
    """They speak the number of the older one."""
    file = federation.write(sites=("hospital-c",))
    federation.join("hospital-c")
    path = next_version(tmp_path / "next")
    federation.start("hospital-c", "--once", **({"PYTHONPATH": path} if newer == "site" else {}))
    until(lambda: federation.store.size(keys.presence("hospital-c")))
    found = read_presence(federation.store, "hospital-c")
    assert found is not None
    assert found.protocol == (2 if newer == "site" else 1)
    if newer == "coordinator":
        monkeypatch.setattr(objects, "PROTOCOL", 2)
        monkeypatch.setenv("PYTHONPATH", path)
    with federation.waking("hospital-c"):
        fedpipe.run(file, out=tmp_path / "out", name="r1", export="none", training={"rounds": 1, "batch_size": 16})
    assert federation.agents["hospital-c"].wait(120) == 0, federation.log("hospital-c")
    record = history(federation.store, "r1")[1]
    assert "hospital-c" in record.contributors
    assert {record.format, *(update.format for update in record.updates)} == {1}
    if newer == "coordinator":  # without an older party, a run speaks its own number
        other = federation.write(sites=())
        changes = {"export": "none", "training": {"rounds": 1, "batch_size": 16}}
        fedpipe.run(other, out=tmp_path / "other", name="r2", keys=federation.folder / "operators-keys", **changes)
        record = history(federation.store, "r2")[1]
        assert {record.format, *(update.format for update in record.updates)} == {2}


def _processes_in(folder: Path) -> list[int]:
    """The processes that work in a folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and str((process / "cwd").readlink()).startswith(str(folder)):
                found.append(int(process.name))
        except OSError:
            continue
    return found


FATAL = """import os
import signal
import sys

from fedpipe.learners.numpy import Linear


def frames():
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


class Fatal(Linear):
    @property
    def learning_rate(self):  # read in each training
        if any(frame.f_globals["__name__"] == "fedpipe.sites.child" for frame in frames()):
            for frame in frames():
                if frame.f_code.co_name == "contribute_masked" and frame.f_locals["number"] == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
        return 0.5


def build():
    return Fatal(features=(8, 8, 1), outputs=10, loss="softmax")
"""
"""The model of `numpy_digits`, which ends the process of a site in the first round of secure sums."""


@pytest.mark.heavy
@pytest.mark.parametrize("algorithm", ["votes", "secure"])
def test_other_algorithms_at_a_site(federation: Federation, tmp_path: Path, algorithm: str) -> None:
    """Votes are cast there; keys of a secure sum stay in the agent, and the process that trains masks its update.

    It may have uploaded a vector before it dies, so nothing is masked again, and the site is back in the next round.
    """
    file = federation.write(sites=("hospital-c",), rounds=2)
    content = yaml.safe_load(file.read_text())
    content["algorithm"] = {"name": "averaging", "vote": {"threshold": 0.4}}
    if algorithm == "secure":
        content["algorithm"] = {"name": "averaging", "secure": {}, "weighting": "uniform"}
        (federation.folder / "model.py").write_text(FATAL)
    content["export"] = "none"
    file.write_text(yaml.safe_dump(content))
    operators_keys, more = federation.folder / "operators-keys", {}
    path = federation.join("hospital-c")
    if algorithm == "secure":
        for name in (*LOCAL, "hospital-d", "hospital-e"):
            enroll(file, name, keys=operators_keys)
        more = {"administrator": fedpipe.roster(file, keys=operators_keys).file.read_text().strip()}
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | more))
    with federation.starting("hospital-c"):
        fedpipe.run(file, out=tmp_path / "out", name="r1", keys=operators_keys)
    assert federation.agents["hospital-c"].wait(120) == 0, federation.log("hospital-c")
    records = history(federation.store, "r1")
    members = [5, 5] if algorithm == "votes" else [4, 5]
    assert [len(record.contributors) for record in records[1:]] == members, federation.log("hospital-c")
    assert all(len(record.ballots) == 5 for record in records[1:]) == (algorithm == "votes")
    journal = entries_of(federation.folder / "at" / "hospital-c" / "state" / "journal")
    failed = [entry.fields["round"] for entry in journal if entry.event == "failed"]
    assert failed == ([] if algorithm == "votes" else [1]), "a vector is masked once"

    if algorithm == "votes":
        alone = Federation(federation.folder, f"file://{tmp_path}/store")
        fedpipe.run(alone.write(sites=(), rounds=2), out=tmp_path / "alone", name="r1")
        assert history(alone.store, "r1")[-1].weights == records[-1].weights


@pytest.mark.heavy
def test_a_table_at_a_site(tmp_path: Path, minio_server: servers.Server, s3_keys: None) -> None:
    """The site describes its table in the first phase; its policy has removed a column that the plan ignores."""
    uri = minio_server.uri.replace("s3://tests", f"s3://tests/{tmp_path.name.replace('_', '-')}")
    members = [{"name": "a"}, {"name": "b"}, {"name": "c", "at": "site"}]
    file = tables.federation(tmp_path, store=uri, learners=members, export="none")
    made = Federation(tmp_path, uri)
    columns = {"age": "number", "pressure": "number", "smokes": "boolean", "diagnosis": "category"}
    made.join("c", policy={"data": str(tmp_path / "own.csv"), "columns": columns})
    with made.starting("c"):
        fedpipe.run(file, out=tmp_path / "out", name="r1")
    assert made.agents["c"].wait(120) == 0, made.log("c")
    records = history(made.store, "r1")
    assert {len(record.contributors) for record in records[1:]} == {3}, made.log("c")
    members[2] = {"name": "c", "data": "own.csv"}
    alone = tables.federation(tmp_path, store=f"file://{tmp_path}/store", learners=members, export="none")
    fedpipe.run(alone, out=tmp_path / "alone", name="r1")
    expected = history(open_store(f"file://{tmp_path}/store").below("tab"), "r1")
    assert expected[-1].weights == records[-1].weights
