"""The objects that a store loses and keeps, and that a removal which is killed anywhere leaves a usable store."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from fedpipe.errors import ConflictError, CorruptError, InputError, NotFoundError, StoreError
from fedpipe.rounds import pruning, retention
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.history import history, precedes, read_head
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan, read_plan
from fedpipe.rounds.pruning import STALE, entered, marked, remove
from fedpipe.rounds.retention import IDLE, Loss, Rules, find_loss
from fedpipe.store import LocalStore, MemoryStore, Store, keys, open_store
from fedpipe.store.objects import digest_of, encode, put_bytes
from tests import servers
from tests.faults.stores import HookedStore, killing
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan, play, play_collective, play_round
from tests.simulation import Killed

DAY = 86400.0


class Clock:
    """A clock that only moves when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def plan_of(store: Store, run: str, **more: Any) -> Plan:
    """A plan whose code, shards and test set are in the store, as the steps leave them."""
    shards = {}
    for name in ("a", "b", "c"):
        data = put_bytes(store, f"data of {name} in {run}".encode(), name)
        shard = {"format": 1, "learner": name, "data": data, "size": 1, "parts": {"train": 1}, "labels": {}}
        shards[name] = put_bytes(store, encode(shard), name)
        store.replace(keys.shard(name), encode(shard))
    made = make_plan(make_federation(**more), run)
    return Plan(
        run=run, federation=made.federation, code=put_bytes(store, b"code"), function="build", shards=shards,
        test=put_bytes(store, f"test set of {run}".encode()),
    )  # fmt: skip


def ended(store: Store, run: str, **more: Any) -> Record:
    record = play(store, plan_of(store, run, **more))
    store.create(keys.summary(run), json.dumps({"run": run}).encode())
    store.create(keys.report(run), b"<html>")
    return record


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def full(clock: Clock) -> MemoryStore:
    """Four ended runs, a day apart: `one`, `two` and `four` form HEAD's chain; `apart` was replaced by `two`."""
    store = MemoryStore(clock=clock)
    fill(store, clock)
    return store


def fill(store: Store, clock: Clock | None = None) -> None:
    def pass_day() -> None:
        if clock:
            clock.now += DAY

    ended(store, "one")
    pass_day()
    ended(store, "two")
    store.create("models/tiny/1/model.onnx", b"model")
    origin = {"run": "two", "weights": history(store, "two")[2].weights}
    store.create("models/tiny/1/origin.json", json.dumps(origin).encode())
    store.create(keys.ledger("a", 1), b'{"weights":"sha256:%s"}' % (b"0" * 64))
    store.create(keys.ENROLLED, b"{}")
    pass_day()
    apart = MemoryStore()
    ended(apart, "apart")  # from nothing, in a store of its own: no record of HEAD's chain names it
    for key in apart.keys():
        if key != keys.HEAD:
            store.create(key, apart.read(key).data)
    for entry in list(store.entries()):
        if clock and "apart" in entry.key:
            store._shelf.written[entry.key] = clock.now  # type: ignore[attr-defined]
    pass_day()
    ended(store, "four")
    pass_day()


def pruned(store: Store, **rules: Any) -> Loss:
    with marked(store) as renew:
        loss = find_loss(store, Rules(**rules))
        remove(store, loss, renew)
    return loss


def fates(loss: Loss) -> dict[str, str]:
    return {run.run: run.fate for run in loss.runs}


def contents(store: Store) -> set[str]:
    return {key.rpartition("/")[2] for key in store.keys() if re.search("/[0-9a-f]{64}$", key)}


def check_usable(store: Store) -> None:
    """HEAD and its chain are whole, and every run without a note has all that its records name."""
    head = read_head(store)
    assert head is not None
    there = contents(store)
    assert head[0].weights.removeprefix("sha256:") in there
    for name in store.below(keys.RUNS).folders():
        records = history(store, name)
        if not records or store.size(keys.pruned(name)) is not None:
            continue
        for record in records:
            for update in record.updates:
                assert update.weights.removeprefix("sha256:") in there, name
            assert record.weights.removeprefix("sha256:") in there, name
            assert record.plan.removeprefix("sha256:") in there, name
    records = history(store, head[0].run)
    assert records[-1].ref == head[0].ref
    origin = json.loads(store.read("models/tiny/1/origin.json").data)
    assert origin["weights"].removeprefix("sha256:") in there
    assert store.read("models/tiny/1/model.onnx").data == b"model"
    assert store.size(keys.ledger("a", 1)) is not None
    assert store.size(keys.ENROLLED) is not None
    for name in ("a", "b", "c"):
        shard = json.loads(store.read(keys.shard(name)).data)
        assert store.size(keys.content(shard["data"], name)) is not None


class TestWhatGoes:
    def test_nothing_without_rules(self, full: MemoryStore) -> None:
        before = {key: full.read(key).data for key in full.keys()}
        loss = pruned(full)
        assert (loss.runs, loss.objects, loss.unknown) == ((), 0, 0)
        assert {key: full.read(key).data for key in full.keys() if key != keys.PRUNING} == before

    def test_what_nothing_names_goes_when_it_is_old(self, full: MemoryStore, clock: Clock) -> None:
        digests = [put_bytes(full, b"left by a killed upload", owner) for owner in (None, "a")]
        assert not find_loss(full, Rules()).content
        clock.now += IDLE
        assert pruned(full).objects == len(digests)
        check_usable(full)

    def test_nothing_that_a_record_or_plan_of_many_learners_names(
        self, full: MemoryStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those of some thousand learners have more bytes than the limit of other objects."""
        monkeypatch.setattr(retention, "_LARGEST", 600)
        assert len(full.read(keys.record("four", 1)).data) > 600 < len(encode(find_plan(full, "four")))
        clock.now += IDLE
        assert pruned(full).objects == 0
        check_usable(full)

    def test_runs_but_the_latest(self, full: MemoryStore) -> None:
        loss = pruned(full, keep_runs=1)
        assert fates(loss) == {"one": "records", "two": "records", "apart": "gone"}
        assert full.below(keys.RUNS).folders() == ["four", "one", "two"]
        check_usable(full)
        assert [record.round for record in history(full, "one")] == [0, 1, 2, 3]
        assert full.size(keys.summary("one")) is not None
        assert full.size(keys.report("two")) is not None
        assert list(full.keys("learners/a/runs/one/")) == []
        head = read_head(full)
        assert head is not None
        assert precedes(full, history(full, "one")[1].ref, head[0].ref)
        there = contents(full)
        assert history(full, "one")[1].weights.removeprefix("sha256:") not in there
        shards = find_plan(full, "one").shards
        assert all(full.size(keys.content(digest, name)) is not None for name, digest in shards.items())
        assert digest_of(b"data of a in one").removeprefix("sha256:") not in there
        assert digest_of(b"test set of one").removeprefix("sha256:") not in there
        assert digest_of(b"data of a in apart").removeprefix("sha256:") not in there
        assert digest_of(b"data of a in four").removeprefix("sha256:") in there

    def test_runs_that_are_old(self, full: MemoryStore) -> None:
        assert fates(find_loss(full, Rules(older_than=2.5 * DAY))) == {"one": "records", "two": "records"}
        assert fates(find_loss(full, Rules(older_than=1.5 * DAY, keep_runs=3))) == {"one": "records"}
        assert fates(find_loss(full, Rules(older_than=100 * DAY, keep_runs=0))) == {}
        assert "four" not in fates(find_loss(full, Rules(older_than=0, keep_runs=0)))

    def test_what_replays_need(self, full: MemoryStore) -> None:
        before = contents(full)
        loss = pruned(full, replays=False)
        assert fates(loss) == dict.fromkeys(("one", "two", "apart", "four"), "result")
        check_usable(full)
        there = contents(full)
        assert there < before
        for name in ("one", "two", "apart", "four"):
            records = history(full, name)
            assert records[-1].weights.removeprefix("sha256:") in there
            assert digest_of(f"data of a in {name}".encode()).removeprefix("sha256:") in there
            assert digest_of(f"test set of {name}".encode()).removeprefix("sha256:") in there
        gone = {update.weights.removeprefix("sha256:") for update in history(full, "four")[1].updates}
        kept = {
            r.weights.removeprefix("sha256:") for name in ("one", "two", "apart", "four") for r in history(full, name)
        }
        assert not (gone - kept) & there

    def test_twice_is_once(self, full: MemoryStore) -> None:
        for rules in ({"keep_runs": 1}, {"keep_runs": 1, "replays": False}):
            pruned(full, **rules)
            again = pruned(full, **rules)
            assert (again.runs, again.objects) == ((), 0)
        assert pruned(full).objects == 0  # earlier removals need no rule now

    def test_a_new_run_continues(self, full: MemoryStore) -> None:
        pruned(full, keep_runs=0, replays=False)
        head = read_head(full)
        assert head is not None
        record = ended(full, "five")
        assert history(full, "five")[0].base == head[0].weights
        assert record.round == 3
        check_usable(full)

    def test_proposals_ballots_and_states(self, clock: Clock) -> None:
        store = MemoryStore(clock=clock)
        more = {
            "algorithm": {
                "name": "averaging",
                "server_optimizer": {"name": "sgd", "learning_rate": 1.0, "momentum": 0.9},
            }
        }
        record = ended(store, "moved", **more)
        assert record.state
        assert pruned(store).objects == 0
        pruned(store, replays=False)
        assert {digest.removeprefix("sha256:") for digest in record.state.values()} <= contents(store)
        assert not {d.removeprefix("sha256:") for d in history(store, "moved")[1].state.values()} & contents(store)

        votes = MemoryStore(clock=clock)
        collective = make_federation(algorithm={"name": "collective"}, training={"rounds": 3, "batch_size": 1})
        play_collective(votes, make_plan(collective), {n: PlusOneLearner(k) for k, n in enumerate("abc")})
        votes.create(keys.summary("r1"), b"{}")
        assert pruned(votes).objects == 0

    def test_objects_of_others_stay(self, full: MemoryStore, clock: Clock) -> None:
        full.create("notes/readme.txt", b"mine")
        full.create("learners/a/own", b"mine")
        clock.now += 10 * DAY
        loss = pruned(full, keep_runs=0)
        assert loss.unknown == 2
        assert full.read("notes/readme.txt").data == b"mine"
        assert full.read("learners/a/own").data == b"mine"


def find_plan(store: Store, run: str) -> Plan:
    return read_plan(store, history(store, run)[0].plan)


class TestRunsAtWork:
    def test_stop_it(self, full: MemoryStore, clock: Clock) -> None:
        plan = plan_of(full, "five")
        record = begin(full, plan, fresh)
        play_round(full, plan, 1, record.weights, {n: PlusOneLearner(1) for n in "abc"})
        clock.now += IDLE - 60
        before = list(full.keys())
        with pytest.raises(InputError, match="run 'five' is at work") as caught:
            find_loss(full, Rules(keep_runs=1))
        assert "--abandoned five" in str(caught.value)
        assert list(full.keys()) == before
        clock.now += 60
        assert "five" not in fates(pruned(full, keep_runs=1))
        for learner in "abc":  # it is unfinished and stays whole, with updates that no record names yet
            weights = json.loads(full.read(keys.update(learner, "five", 1)).data)["weights"]
            assert full.size(keys.content(weights, learner)) is not None

    def test_that_only_has_shards(self, full: MemoryStore) -> None:
        full.create(keys.shards("five"), b"{}")
        with pytest.raises(InputError, match="run 'five' is at work"):
            find_loss(full, Rules())

    def test_unless_they_are_abandoned(self, full: MemoryStore) -> None:
        full.create(keys.shards("five"), b"{}")
        assert fates(find_loss(full, Rules(keep_runs=0, abandoned=("five",))))["five"] == "gone"
        with pytest.raises(InputError, match="there is no run 'six'"):
            find_loss(full, Rules(abandoned=("six",)))

    def test_whose_session_is_over(self, full: MemoryStore) -> None:
        full.create(keys.board("five"), b"{}")
        assert find_loss(full, Rules(), lambda run: run == "five").objects == 0

    def test_begin_during_a_removal(self, full: MemoryStore, clock: Clock) -> None:
        with marked(full):
            with pytest.raises(InputError, match="is removing objects"), entered(full, "five"):
                pass
            with pytest.raises(InputError, match="is removing objects"), marked(full):
                pass
            clock.now += STALE
            with entered(full, "five"):
                pass
        with entered(full, "five"):
            pass

    def test_a_removal_between_their_first_steps(self, full: MemoryStore) -> None:
        def begin_slowly() -> None:
            with entered(full, "five"):
                pruned(full, keep_runs=1)
                full.create(keys.shards("five"), b"{}")

        with pytest.raises(InputError, match="removed objects of this federation while"):
            begin_slowly()
        assert full.size(keys.shards("five")) is None  # so that the next try deals them again

    def test_a_removal_that_lost_its_mark(self, full: MemoryStore, clock: Clock) -> None:
        with marked(full) as renew:
            clock.now += STALE
            with marked(full):
                pass
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(pruning, "_RENEWED", -1.0)
                with pytest.raises(ConflictError, match="another prune took over"):
                    renew()

    def test_cannot_resume_what_was_pruned(self, full: MemoryStore) -> None:
        pruned(full, keep_runs=1, replays=False)
        for name, left in (("one", "only its records"), ("four", "only its last weights")):
            with pytest.raises(InputError, match=f"run '{name}' was pruned: {left}"), entered(full, name):
                pass


@pytest.mark.parametrize("rules", [{"keep_runs": 1}, {"keep_runs": 0, "replays": False}, {"replays": False}])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_call(rules: dict[str, Any], when: str) -> None:
    """The store that is left is usable, a new run continues, and the same command ends with the same store."""
    original, clock = MemoryStore(clock=Clock()), Clock()
    fill(original)
    objects = {key: original.read(key).data for key in original.keys()}

    def copied() -> MemoryStore:
        store = MemoryStore(clock=clock)
        for key, data in objects.items():
            store.create(key, data)
        return store

    undisturbed = copied()
    pruned(undisturbed, **rules)
    expected = set(undisturbed.keys())
    point = 0
    while True:
        store = copied()
        hooked = killing(store, point, when, real=False)
        try:
            pruned(hooked, **rules)
        except Killed:
            pass
        else:
            break
        check_usable(store)
        clock.now += IDLE  # objects whose records went before they did are garbage, which goes after a day
        if point % 7 == 0:  # a run may begin in the state that is left
            other = MemoryStore(clock=clock)
            for key in store.keys():
                other.create(key, store.read(key).data)
            ended(other, "five")
            check_usable(other)
        pruned(store, **rules)
        assert set(store.keys()) == expected, point
        check_usable(store)
        point += 1 if point < 60 else 7
    assert point > 60


def on_a_real_store(store: Store) -> None:
    fill(store)
    store.create("objects/" + "ab" * 32, b"young and unnamed")
    loss = pruned(store, keep_runs=0)
    assert fates(loss) == {"one": "records", "two": "records", "apart": "gone"}
    assert store.size("objects/" + "ab" * 32)  # it may be that of a run that is about to begin
    assert loss.size > 0
    check_usable(store)
    ended(store, "five")
    check_usable(store)


@pytest.mark.parametrize("point", [*range(3, 60, 7), 80, 100])
def test_killed_by_a_signal(tmp_path: Path, point: int) -> None:
    store = LocalStore(tmp_path, "tiny")
    fill(store)
    child = os.fork()
    if not child:
        pruned(killing(store, point, "during", real=True), keep_runs=0)
        time.sleep(60)  # the signal comes a little later, perhaps after the end
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    check_usable(store)
    os.utime(tmp_path / "tiny" / keys.PRUNING, (0, 0)) if store.size(keys.PRUNING) else None
    pruned(store, keep_runs=0)
    check_usable(store)
    assert fates(find_loss(store, Rules(keep_runs=0))) == {}


def test_a_folder(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    on_a_real_store(store.below("tiny"))
    assert not [
        path for path in tmp_path.rglob("*") if path.is_dir() and not any(path.iterdir()) and "tmp" not in path.name
    ]


@pytest.mark.usefixtures("s3_keys")
def test_minio(minio_server: servers.Server) -> None:
    on_a_real_store(open_store(f"{minio_server.uri.replace('tests?', 'tests/pruning?')}").below("tiny"))


class TestAHostileLearner:
    """It writes below its own prefix, and takes nothing from others by it."""

    def test_runs_of_its_own_invention_push_out_no_other(self, full: MemoryStore, clock: Clock) -> None:
        expected = fates(find_loss(full, Rules(keep_runs=2)))
        for number in range(9):
            full.create(f"learners/a/runs/zz-{number}/1/update", b"{}")
        full.create("learners/a/runs/apart/99/update", b"{}")  # it touches an old run
        found = find_loss(full, Rules(keep_runs=2))
        assert fates(found) == expected
        clock.now += IDLE
        found = find_loss(full, Rules())
        assert set(fates(found)) == {f"zz-{number}" for number in range(9)}
        assert set(fates(found).values()) == {"gone"}
        pruned(full)
        check_usable(full)
        assert not [key for key in full.keys() if "/zz-" in key]

    def test_it_keeps_no_removal_from_its_work(self, full: MemoryStore) -> None:
        """A run that nobody began is not at work, and neither is an ended run that a learner touches."""
        full.create("learners/a/runs/new/sign", b"{}")
        full.replace("learners/a/runs/four/sign", b"{}")
        assert pruned(full, keep_runs=1).objects
        check_usable(full)

    @pytest.mark.parametrize(
        "error", [CorruptError("content encoding"), StoreError("InvalidRequest"), NotFoundError("")]
    )
    def test_objects_that_the_store_does_not_give(self, full: MemoryStore, clock: Clock, error: Exception) -> None:
        def refusing(_number: int, call: str, key: str) -> None:
            if key.startswith("learners/a/") and call in ("read", "poll"):
                raise error

        begin(full, plan_of(full, "five"), fresh)
        full.create("learners/a/runs/five/1/update", b"{}")
        clock.now += IDLE
        assert find_loss(HookedStore(full, refusing), Rules(keep_runs=1)).objects

    @pytest.mark.parametrize("name", ["a b", "..", "a//b", "x" * 901, "\u202e", "%2e%2e", "sha256:0", "a\\b", "\x00"])
    def test_names_that_are_no_keys(self, full: MemoryStore, clock: Clock, name: str) -> None:
        """Another client of the bucket can write them; fedpipe neither reads nor removes them."""
        before = find_loss(full, Rules(keep_runs=1))
        for folder in ("learners/a/runs/one/", "learners/a/runs/", "learners/a/objects/", "learners/a/", "runs/one/"):
            full._put(f"{folder}{name}", b"{}")
        clock.now += IDLE
        found = find_loss(full, Rules(keep_runs=1))
        assert fates(found) == fates(before)
        assert found.unknown >= before.unknown + 5
        pruned(full, keep_runs=1)
        check_usable(full)
