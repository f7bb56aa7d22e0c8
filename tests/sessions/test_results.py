"""Tests how a step that has started early learns that the step it awaits has ended, failed or disappeared."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from fedpipe.errors import CorruptError, RoundError
from fedpipe.rounds.plan import Shards
from fedpipe.sessions.pulse import BEAT, GONE, GRACE, Pulse
from fedpipe.sessions.results import PATIENCE, Results, awaited, publish_results
from fedpipe.store import keys
from fedpipe.store.objects import encode
from tests.simulation import World

RUN, JOB = "r1", "job-1"
DIGEST = "sha256:" + "5" * 64
SHARDS = Shards(learners={"a": DIGEST})


def waits(world: World, step: str = "shard", *, ended: bool = False, patience: float = PATIENCE) -> None:
    def waiting() -> Generator[float, None, Results]:
        try:
            return (
                yield from awaited(
                    world.store, RUN, step, JOB, ended=ended, patience=patience, clock=world.clock, random=world.random
                )
            )
        finally:
            world.results["until"] = world.now

    world.spawn("waiting", waiting())


def publishes(world: World, at: float, results: Results, step: str = "shard") -> None:
    def later() -> Generator[float, None, None]:
        yield at
        publish_results(world.store, RUN, step, results)

    world.spawn(f"{step} at {at}", later())


def beats(world: World, until: float, job: str = JOB, step: str = "shard") -> None:
    def beat() -> Generator[float, None, None]:
        while world.now <= until:
            world.store.replace(keys.pulse(RUN, step), encode(Pulse(session=job)))
            yield BEAT

    world.spawn(f"pulse of {step}", beat())


def failure(world: World) -> str:
    error = world.results["waiting"]
    assert isinstance(error, RoundError), error
    return str(error)


def test_results_are_found_a_moment_after_they_were_written() -> None:
    world = World()
    publishes(world, 100, Results(job=JOB, shards=SHARDS, ended=True))
    waits(world)
    world.run()
    assert world.results["waiting"] == Results(job=JOB, shards=SHARDS, ended=True)
    assert 100 <= world.results["until"] < 102


@pytest.mark.parametrize("seconds", [0, 40, 50, 60])
def test_another_job_of_the_run_may_work_before_at_once_and_after(seconds: int) -> None:
    world = World()
    publishes(world, seconds, Results(job="job-0", ended=True))
    publishes(world, 50, Results(job=JOB, shards=SHARDS, ended=True))
    waits(world)
    world.run()
    assert world.results["waiting"].job == JOB


def test_a_plan_is_known_before_its_step_has_ended() -> None:
    """The first weights are made in between, in which learners build their models."""
    for ended, seen in ((False, 10), (True, 60)):
        world = World()
        publishes(world, 10, Results(job=JOB, plan=DIGEST), "initialise")
        publishes(world, 60, Results(job=JOB, plan=DIGEST, ended=True), "initialise")
        waits(world, "initialise", ended=ended)
        world.run()
        assert world.results["waiting"] == Results(job=JOB, plan=DIGEST, ended=ended)
        assert seen <= world.results["until"] < seen + 2


def test_a_failure_ends_the_wait_with_its_reason() -> None:
    world = World()
    publishes(world, 30, Results(job=JOB, ended=True, why="there is no dataset"))
    waits(world)
    world.run()
    assert failure(world) == (
        f"run {RUN}: step shard failed: there is no dataset. See its log. Mend the cause, and continue the run: "
        f"fedpipe resume {RUN}"
    )
    assert world.results["until"] < 32


def test_an_older_failure_of_the_same_job_does_not_count() -> None:
    """Kubeflow repeats failed steps of a job, perhaps the waiting ones first."""
    world = World()
    publish_results(world.store, RUN, "shard", Results(job=JOB, ended=True, why="there is no dataset"))
    world.now += 500
    publishes(world, 40, Results(job=JOB, shards=SHARDS, ended=True))
    waits(world)
    world.run()
    assert world.results["waiting"].shards == SHARDS


def test_an_older_failure_counts_when_the_step_does_not_start_again() -> None:
    world = World()
    publish_results(world.store, RUN, "shard", Results(job=JOB, ended=True, why="there is no dataset"))
    world.now += 500
    waits(world)
    world.run()
    assert "step shard failed: there is no dataset" in failure(world)
    assert 500 + GRACE < world.results["until"] < 500 + GRACE + 5


def test_a_failure_is_seen_by_a_step_that_starts_a_little_later() -> None:
    world = World()
    publish_results(world.store, RUN, "shard", Results(job=JOB, ended=True, why="there is no dataset"))
    world.now += 20
    waits(world)
    world.run()
    assert "step shard failed: there is no dataset" in failure(world)
    assert world.results["until"] == 20


def test_a_step_that_has_begun_has_no_results_yet() -> None:
    world = World()
    publishes(world, 5, Results(job=JOB))
    publishes(world, 90, Results(job=JOB, shards=SHARDS, ended=True))
    waits(world)
    world.run()
    assert world.results["waiting"].shards == SHARDS


def test_a_step_may_work_for_hours() -> None:
    world = World()
    beats(world, until=5 * PATIENCE)
    publishes(world, 4 * PATIENCE, Results(job=JOB, shards=SHARDS, ended=True))
    waits(world)
    world.run()
    assert world.results["waiting"].shards == SHARDS


def test_a_step_that_disappears_is_not_awaited() -> None:
    world = World()
    beats(world, until=1000)
    waits(world)
    world.run()
    assert "step shard has disappeared: it was last heard of 3" in failure(world)
    assert 1000 + GONE - BEAT < world.results["until"] < 1000 + GONE + 3 * BEAT


def test_the_pulse_of_another_job_is_not_heard() -> None:
    world = World()
    beats(world, until=2 * PATIENCE, job="job-0")
    waits(world)
    world.run()
    assert "step shard has not started within 18" in failure(world)
    assert "placement.learn.early" in failure(world)
    assert PATIENCE < world.results["until"] < PATIENCE + 3 * BEAT


def test_malformed_results_are_named() -> None:
    world = World()
    world.store.replace(keys.results(RUN, "shard", JOB), b'{"job": 3}')
    waits(world)
    world.run()
    error = world.results["waiting"]
    assert isinstance(error, CorruptError)
    assert keys.results(RUN, "shard", JOB) in str(error)
