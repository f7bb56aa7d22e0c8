"""A learner that writes junk, of every kind, at every key that it may write, at every moment: the run ends without it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
from msgspec.structs import replace

from fedpipe.errors import StoreError
from fedpipe.learners.score import evaluate, score_learner
from fedpipe.reports.report import render
from fedpipe.reports.story import read_story, summarise
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.evaluation import own_score, read_scores
from fedpipe.rounds.history import history
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan
from fedpipe.sessions.board import poll_board
from fedpipe.store import MemoryStore, Store, keys
from fedpipe.store.objects import encode
from tests.faults.invariants import check
from tests.faults.junk import KINDS, made, templates
from tests.faults.stores import HookedStore
from tests.federations import PlusOneLearner, fresh, make_federation, make_plan
from tests.learners.test_score import prepared
from tests.simulation import World, attendance, coordinator

NAMES, HOSTILE, ROUNDS = ("a", "b", "c", "z"), "z", 3
ENDS = ("update", "ballot", "sign", "dropped", "dropped-2", "absent", ".time", "statistics")
ALGORITHMS: dict[str, Any] = {
    "averaging": {"algorithm": "averaging"},
    "over-selection": {
        "algorithm": "averaging",
        "quorum": {"learners_per_round": 3, "over_selection": 1.3, "min_learners": 3},
    },
    "votes": {"algorithm": {"name": "averaging", "vote": {"threshold": 0.4}}},
    "collective": {"algorithm": {"name": "collective", "proposers": ["a", "b", "c"]}},
    "proposer": {"algorithm": {"name": "collective", "proposers": ["a", "z", "b"]}},
}


def plan_of(name: str) -> Plan:
    more = ALGORITHMS[name]
    quorum = {"deadline": 60, "retries": 2, "min_learners": 2, **more.get("quorum", {})}
    return make_plan(
        make_federation(NAMES, training={"rounds": ROUNDS, "batch_size": 1}, quorum=quorum, algorithm=more["algorithm"])
    )


def play(
    plan: Plan, hostile: Any = None, *, attends: bool = False, seen: Callable[[World], Store] | None = None
) -> World:
    """Plays a session.

    Args:
        plan: of the run.
        hostile: what the last learner does next to, or instead of, its honest attendance.
        attends: whether it attends.
        seen: returns the store as the coordinator sees it.
    """
    world = World(0)
    begin(world.store, plan, fresh)
    world.spawn("coordinator", coordinator(world, plan, store=seen(world) if seen else None))
    for number, name in enumerate(NAMES):
        if name == HOSTILE and not attends:
            continue
        learner = PlusOneLearner(number + 1, number + 1, wants=100.0)
        world.spawn(name, attendance(world, plan, name, learner, seconds=lambda _: 2.0))
    if hostile is not None:
        world.spawn("hostile", hostile(world))
    world.run()
    error = world.results["coordinator"]
    if isinstance(error, Exception):
        raise error
    return world


def state(store: Store) -> dict[str, bytes]:
    return {key: store.read(key, limit=2**30).data for key in store.keys()}


def outcome(world: World, plan: Plan) -> list[Any]:
    """Returns weights, decisions and the others' own answers, bit for bit."""
    return [part(record) for record in history(world.store, plan.run)]


def part(record: Record) -> Any:
    updates = [encode(update) for update in record.updates if update.learner != HOSTILE]
    ballots = [encode(ballot) for ballot in record.ballots if ballot.learner != HOSTILE]
    left = [item for item in (*record.dropped, *record.absent) if item.learner != HOSTILE]
    return record.weights, record.accepted, record.metrics, record.state, updates, ballots, left


@pytest.fixture(scope="module", params=ALGORITHMS)
def algorithm(request: pytest.FixtureRequest) -> tuple[Plan, list[Any], dict[str, bytes]]:
    """A plan, the outcome of a run without the hostile learner, and what it would have written itself."""
    plan = plan_of(request.param)
    with_it = state(play(plan, attends=True).store)
    return plan, outcome(play(plan), plan), templates(with_it, HOSTILE, plan.run, ROUNDS)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_it_writes_junk_at_all_keys(algorithm: tuple[Plan, list[Any], dict[str, bytes]], kind: str) -> None:
    """The junk is there before the session begins, and is written again whenever the board moves."""
    plan, expected, owned = algorithm
    answers = [key for key in owned if key.endswith(("update", "ballot", "sign"))]  # the others are read without them
    alone = [key for key in owned if key.endswith(ENDS[list(KINDS).index(kind) % len(ENDS)])]
    for written in ([key for key in owned if key not in answers], alone, list(owned)):

        def hostile(world: World, written: list[str] = written) -> Generator[float, None, None]:
            version = ""
            for key in written:
                world.store.replace(key, made(KINDS[kind], owned[key]))
            while "coordinator" not in world.results:
                yield 0.9
                if (found := poll_board(world.store, plan.run, version)) is not None:
                    version = found[1]
                    for key in written:
                        world.store.replace(key, made(KINDS[kind], owned[key]))

        world = play(plan, hostile)
        assert outcome(world, plan) == expected, written
    story = read_story(world.store, plan.run)  # of the run with junk at all keys
    assert "Incomplete" not in render(story)
    assert summarise(story)["seconds"] < 1e6


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_it_spoils_its_own_answers_at_any_moment(
    algorithm: tuple[Plan, list[Any], dict[str, bytes]], kind: str
) -> None:
    """It also takes part. Then each round is one with it, or without it, and no other learner is dropped."""
    plan, _, owned = algorithm

    def hostile(world: World) -> Generator[float, None, None]:
        while "coordinator" not in world.results:
            for key in owned:
                if world.random.random() < 0.1:
                    world.store.replace(key, made(KINDS[kind], owned[key]))
            yield world.random.uniform(0.01, 3.0)

    world = play(plan, hostile, attends=True)
    for record in history(world.store, plan.run)[1:]:
        left = {item.learner for item in (*record.dropped, *record.absent) if not item.why.startswith("not needed")}
        assert left <= {HOSTILE}
    assert not isinstance(world.results[HOSTILE], Exception), "its own step does not fail either"
    names = [update.learner for record in history(world.store, plan.run) for update in record.updates]
    assert len(names) >= ROUNDS - (HOSTILE in plan.federation.proposers)


@pytest.mark.parametrize("attack", ["a sign alone", "no weights", "other weights", "weights of another size"])
def test_words_without_deeds(attack: str) -> None:
    """It is the first to say that it took part, in each attempt at each round, and the quorum needs all others."""
    plan = plan_of("over-selection")

    def hostile(world: World) -> Generator[float, None, None]:
        store, version = world.store, ""
        while "coordinator" not in world.results:
            found = poll_board(store, plan.run, version)
            if found is not None:
                board, version = found
                if board.phase == "ended":
                    return
                if attack != "a sign alone":
                    deed(store, board.round, board.base)
                sign = {
                    "round": board.round, "attempt": board.attempt, "phase": board.phase, "took_part": True,
                    "session": board.session,
                }  # fmt: skip
                store.replace(keys.sign(HOSTILE, plan.run), encode(sign))
            yield 0.1

    def deed(store: MemoryStore, number: int, base: str) -> None:
        digest = f"sha256:{'1' * 64}"
        size = store.size(keys.content(base)) or 0
        update = {
            "federation": "tiny", "run": plan.run, "round": number, "learner": HOSTILE, "base": base,
            "weights": digest, "size": size, "examples": 9, "metrics": {},
        }  # fmt: skip
        store.replace(keys.update(HOSTILE, plan.run, number), encode(update))
        if attack == "other weights":
            store.replace(keys.content(digest, HOSTILE), bytes(size))
        if attack == "weights of another size":
            store.replace(keys.content(digest, HOSTILE), bytes(size - 1))

    world = play(plan, hostile)
    records = history(world.store, plan.run)
    assert len(records) == ROUNDS + 1
    assert all([update.learner for update in record.updates] == ["a", "b", "c"] for record in records[1:])
    assert world.now < 60 * (ROUNDS + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_it_scores_with_junk(store: MemoryStore, kind: str) -> None:
    plan, digest = prepared(store)
    good, own = (score_learner(store, plan, name, digest) for name in ("b", "a"))
    store.replace(keys.score("b", plan.run), encode(good))
    expected = evaluate(store, plan, digest, read_scores(store, plan.run, ["b"]))
    store.replace(keys.score("a", plan.run), made(KINDS[kind], encode(own)))
    found = evaluate(store, plan, digest, read_scores(store, plan.run, ["a", "b"]))
    encode(found)
    if "a" in found.learners:  # another round or session is not a part of a score
        assert own_score(store, "a", plan.run) is not None
        assert kind in ("a key twice",) or found.learners["a"].examples == own.examples
    else:
        assert found.federated == expected.federated
        assert found.left_out["a"]
    assert found.learners["b"] == expected.learners["b"]


STATES: dict[str, Any] = {
    "none": (),
    "two": ((1.0, 1.0, 7.0), (1.0,)),
    "short": ((1.0, 2.0),),
    "long": ((1.0, 2.0, 3.0, 4.0),),
    "a count of 0": ((1.0, 1.0, 0.0),),
    "the others' count, negative": ((1.0, 1.0, -53.0),),
    "a large sum": ((1e30, 1.0, 7.0),),
    "a tiny count": ((1.0, 1.0, 1e-30),),
}


@pytest.mark.parametrize("states", STATES.values(), ids=STATES)
def test_states_that_spoil_the_sum(store: MemoryStore, states: Any) -> None:
    plan, digest = prepared(store)
    scores = [score_learner(store, plan, name, digest) for name in ("a", "b")]
    third = replace(scores[1], learner="c")
    found = evaluate(store, plan, digest, [replace(scores[0], states=states), scores[1], third])
    encode(found)
    assert {"b", "c"} <= found.learners.keys()
    assert found.federated is not None
    assert "loss" in found.federated.metrics


def test_the_records_of_a_disturbed_run_replay(algorithm: tuple[Plan, list[Any], dict[str, bytes]]) -> None:
    plan, _, owned = algorithm

    def hostile(world: World) -> Generator[float, None, None]:
        for key in owned:
            world.store.replace(key, b"?")
            yield 0.5

    check(play(plan, hostile).store, plan, rounds=ROUNDS)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_objects_that_the_store_does_not_give_are_their_writers_fault(name: str) -> None:
    """For instance, because they are encrypted with a key of the learner's own."""
    plan, refused = plan_of(name), keys.learner_folder(HOSTILE)

    def refusing(_number: int, call: str, key: str) -> None:
        if key.startswith(refused) and call in ("read", "poll", "open", "size", "age", "read_range"):
            raise StoreError("the store refuses the request: InvalidRequest")

    world = play(plan, attends=True, seen=lambda world: HookedStore(world.store, refusing))
    assert not isinstance(world.results["coordinator"], Exception)
    assert outcome(world, plan) == outcome(play(plan), plan)


def test_a_store_that_gives_nothing_is_an_error_of_the_run() -> None:
    plan = plan_of("averaging")

    def refusing(_number: int, call: str, key: str) -> None:
        if key == keys.plan(plan.run) or key.startswith("learners/"):
            raise StoreError("the store refuses the credentials (AccessDenied)")

    world = World(0)
    begin(world.store, plan, fresh)
    world.spawn("coordinator", coordinator(world, plan, store=HookedStore(world.store, refusing)))
    world.run()
    assert isinstance(world.results["coordinator"], StoreError)
