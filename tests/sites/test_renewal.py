"""The keys of a site are renewed while its agent runs, without a person."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

import pytest
import yaml

import fedpipe as api
from fedpipe.commands.admission import accept, attend
from fedpipe.commands.identities import enroll
from fedpipe.commands.invitations import invite
from fedpipe.commands.joining import join, rotate
from fedpipe.errors import StoreUnavailableError
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.rounds.history import history, read_record
from fedpipe.rounds.manifests import Record
from fedpipe.sites.journal import entries_of
from fedpipe.sites.renewal import LOOK, KeyWatch
from fedpipe.sites.site import Site, read_site
from fedpipe.store import Store, keys
from fedpipe.store.concealment import changed_environment
from fedpipe.store.credentials import read_mounted
from fedpipe.store.objects import digest_of
from tests.commands.test_joining import NO_KEYS, done, fedpipe, joined, of, site_of, write_file
from tests.sites.hospitals import LOCAL, ROUNDS, SITES, Federation, until
from tests.sites.test_processes import federation

__all__ = ["federation"]
DAY = 24 * 3600.0


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TestTheAgent:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return write_file(tmp_path / "office", str(tmp_path / "store"))

    def watch(self, config: Path, clock: Time, noted: list[str]) -> tuple[Site, KeyWatch]:
        site = read_site(config)
        return site, KeyWatch(
            site, lambda event, **fields: noted.append(event), clock=clock, wall=lambda: time.time() + clock.now
        )

    def test_asks_when_the_keys_are_old_and_takes_the_new_ones(self, file: Path, tmp_path: Path) -> None:
        config = joined(file, tmp_path / "hospital")
        config.write_text(config.read_text() + "renew: 90\n")
        clock, noted = Time(), list[str]()
        site, watch = self.watch(config, clock, noted)
        before = site.public_key
        assert not watch.changed(idle=True)
        clock.now = 89 * DAY
        assert not watch.changed(idle=True)
        assert noted == []
        clock.now = 91 * DAY
        assert not watch.changed(idle=False)
        assert noted == []  # not while it attends a session
        clock.now += LOOK
        assert not watch.changed(idle=True)
        assert noted == ["asked"]
        next(attend(file))
        assert not watch.changed(idle=True)  # it looks once a minute
        clock.now += LOOK
        assert watch.changed(idle=True)
        assert noted == ["asked", "rotated"]
        assert read_enrolled(of(file)).learners["b"].key == site.public_key != before
        clock.now = 0.0
        assert not self.watch(config, clock, noted)[1].changed(idle=True)

    def test_asks_for_nothing_by_default(self, file: Path, tmp_path: Path) -> None:
        config = joined(file, tmp_path / "hospital")
        clock, noted = Time(), list[str]()
        _, watch = self.watch(config, clock, noted)
        clock.now = 3650 * DAY
        assert not watch.changed(idle=True)
        assert noted == []

    def test_notices_keys_that_a_command_replaced(self, file: Path, tmp_path: Path) -> None:
        config = joined(file, tmp_path / "hospital")
        _, watch = self.watch(config, Time(), [])
        with pytest.raises(StoreUnavailableError):
            rotate(config, wait=0)
        next(attend(file))
        rotate(config)
        assert watch.changed(idle=True)

    def test_survives_a_store_that_is_away_and_keys_made_by_hand(self, file: Path, tmp_path: Path) -> None:
        config = joined(file, tmp_path / "hospital")
        with pytest.raises(StoreUnavailableError):
            rotate(config, wait=0)
        next(attend(file))
        site, watch = self.watch(config, clock := Time(), noted := [])
        store = Path(site.store.removeprefix("file://"))
        store.rename(tmp_path / "away")
        store.write_text("no folder")
        assert not watch.changed(idle=True)
        store.unlink()
        (tmp_path / "away").rename(store)
        clock.now += LOOK
        assert watch.changed(idle=True)
        assert noted == ["rotated"]
        (config.parent / "state" / "membership.json").unlink()
        assert not self.watch(config, Time(), [])[1].changed(idle=True)


IMMUTABLE = re.compile(r".*/(record|update|shard|statistics)|.*/(objects|models)/.*|roster")
"""Keys of objects that are written once; a run itself moves the others, such as its board."""


def contents(store: Store) -> dict[str, str]:
    return {key: digest_of(store.read(key).data) for key in store.keys() if IMMUTABLE.fullmatch(key)}


@pytest.mark.heavy
def test_a_site_joins_while_a_session_runs(federation: Federation) -> None:
    """One command on each side and a registrar; nothing of others changes, and it takes part in later rounds.

    The session has more rounds than it will need, and is stopped once the site has taken part.
    """
    name = SITES[0]
    file = federation.write(sites=(name,), rounds=10_000)
    content = yaml.safe_load(file.read_text())
    content |= {"quorum": {"min_learners": 2, "deadline": 2}, "evaluation": {}}
    file.write_text(yaml.safe_dump(content))
    others = {one: enroll(file, one) for one in (*LOCAL, *SITES[1:])}
    config = site_of(site_of(federation.folder / "at").parent / name)
    invitation = federation.folder / "invitation.yaml"
    records: list[Record] = []

    def took_part() -> bool:
        while (record := read_record(federation.store, "r1", len(records))) is not None:
            records.append(record)
        return any(name in record.contributors for record in records)

    words = ["run", str(file), "--run", "r1", "--out", str(federation.folder / "out")]
    with contextlib.ExitStack() as processes:
        run = processes.enter_context(fedpipe(*words, folder=federation.folder, keys_of_store=True))
        watch = ["enroll", "--requests", "--watch", "--federation", file]
        until(lambda: federation.store.size(keys.record("r1", 2)))
        before, enrolled = contents(federation.store), read_enrolled(federation.store)
        done("invite", name, "-f", file, "-o", invitation, folder=federation.folder, keys_of_store=True)
        processes.enter_context(fedpipe(*watch, folder=federation.folder, keys_of_store=True))
        started = time.monotonic()
        done("site", "join", invitation, folder=config.parent, keys_of_store=False)
        assert time.monotonic() - started < 60
        after = contents(federation.store)
        assert before.keys() <= after.keys()
        assert {key: after[key] for key in before} == before
        assert {key: read_enrolled(federation.store).learners[key] for key in others} == enrolled.learners
        allow(config, federation)
        federation.start(name)
        until(took_part)
        done("stop", "r1", "-f", file, folder=federation.folder, keys_of_store=True)
        _, err = run.communicate(timeout=180)
        assert run.returncode == 0, err
    assert name not in records[1].contributors


def allow(config: Path, federation: Federation) -> None:
    """Complete the site.yaml that `join` wrote."""
    content = yaml.safe_load(config.read_text())
    content |= {"approve": "any", "policy": {"data": str(federation.folder / f"{content['name']}.npz")}}
    config.write_text(yaml.safe_dump(content))


@pytest.mark.heavy
def test_a_running_agent_takes_part_with_keys_that_were_renewed(federation: Federation) -> None:
    """It joins by an invitation, its keys are renewed while it waits, and it takes part in the next run."""
    name = SITES[0]
    file = federation.write(sites=(name,))
    place = site_of(federation.folder / "at").parent / name
    config = site_of(place)
    made = invite(file, name, out=federation.folder / "invitation.yaml")
    with changed_environment(NO_KEYS), pytest.raises(StoreUnavailableError):
        join(made.file, config, wait=0)
    accept(file, name)
    join(made.file, config)
    allow(config, federation)
    site = read_site(config)
    before = site.public_key, read_mounted(site.credentials)
    process = federation.start(name)
    until((place / "state" / "agent.json").exists)

    with pytest.raises(StoreUnavailableError):
        rotate(config, wait=0)
    next(attend(file))
    rotate(config)
    assert site.public_key != before[0]
    assert read_mounted(site.credentials) != before[1]
    with federation.waking(name):
        api.run(file, out=federation.folder / "out", name="r1")
    records = history(federation.store, "r1")
    signers = {update.signature.key for one in records for update in one.updates if update.learner == name}  # type: ignore[union-attr]
    assert signers == {site.public_key}
    assert [len(record.contributors) for record in records[1:]] == [5] * ROUNDS
    assert process.poll() is None
    assert [entry.event for entry in entries_of(place / "state" / "journal")].count("rotated") == 1
