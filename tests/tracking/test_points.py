"""The points of a run are those of its records: computed from them here by another road, the summary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.federation.federation import Federation
from fedpipe.reports.story import read_story, summarise
from fedpipe.store import MemoryStore
from fedpipe.tracking.points import Point, parameters_of, points_of, safe_key, unsent
from tests.federations import PlusOneLearner, make_federation, make_plan, play, play_collective


def all_points(store: MemoryStore) -> list[Point]:
    story = read_story(store, "r1")
    return [point for number in range(len(story.records)) for point in points_of(story, number)]


def test_the_shared_curves_are_those_of_the_summary(store: MemoryStore) -> None:
    play(store, make_plan())
    rounds = summarise(read_story(store, "r1"))["rounds"]
    sent = unsent(all_points(store), {})
    for one in rounds:
        found = {point.key: point.value for point in sent if point.step == one["round"] and "/" not in point.key}
        assert found == {
            "loss": one["loss"], **one["metrics"], "learners": 3, "dropped": 0, "examples": 1 + 2 + 3,
        }  # fmt: skip


def test_each_learner_has_its_own_curves(store: MemoryStore) -> None:
    play(store, make_plan())
    found = unsent(all_points(store), {})
    assert Point("learners/b/loss", 2, 2.0) in found
    assert Point("learners/c/examples", 3, 3.0) in found


def test_a_rejected_proposal_shows_the_model_that_stays(store: MemoryStore) -> None:
    """b proposes what a and c do not like; the shared model, and so its score, stays that of round 1."""
    wants = {"a": 10.0 + 5, "b": 1000.0, "c": 10.0 + 5}
    learners = {name: PlusOneLearner(1 if name == "a" else 50, wants=want) for name, want in wants.items()}
    federation = make_federation(training={"rounds": 2, "batch_size": 1}, algorithm={"name": "collective"})
    play_collective(store, make_plan(federation), learners)
    found = {(point.key, point.step): point.value for point in unsent(all_points(store), {})}
    rounds = summarise(read_story(store, "r1"))["rounds"]
    assert [found["accepted", step] for step in (1, 2)] == [1.0, 0.0]
    assert [found["approvals", step] for step in (1, 2)] == [one["vote"]["approvals"] for one in rounds[1:]]
    assert found["test_loss", 1] == found["test_loss", 2] == rounds[1]["metrics"]["test_loss"]
    assert found["test_loss", 0] == rounds[0]["metrics"]["test_loss"]
    assert found["learners/a/test_loss", 1] == 0.0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), max_size=40), st.integers(0, 40))
def test_points_that_come_in_two_parts_are_those_that_come_in_one(cuts: list[tuple[str, int]], at: int) -> None:
    points = sorted(Point(key, step, 0.0) for key, step in cuts)
    first = unsent(points[:at], {})
    latest = {point.key: point.step for point in first}
    assert first + unsent(points, latest) == unsent(points, {})


def test_many_learners_have_no_curves_of_their_own(store: MemoryStore) -> None:
    names = tuple(f"l{k}" for k in range(101))
    play(store, make_plan(make_federation(names, training={"rounds": 1, "batch_size": 1})))
    assert not [point for point in all_points(store) if point.key.startswith("learners/")]
    assert Point("learners", 1, 101.0) in all_points(store)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("val loss", "val loss"), ("f1[0]", "f1_0_"), ("a//b", "a/_/b"), ("./a", "_/a"), ("../../a", "_/_/a"),
        ("/a", "_/a"), ("a/", "a/_"), ("", "_"), ("é", "_"), ("x" * 300, "x" * 250), ("a:b", "a_b"),
    ],
)  # fmt: skip
def test_keys_that_mlflow_accepts(name: str, key: str) -> None:
    assert safe_key(name) == key


class TestParameters:
    def test_are_the_settings_by_their_paths(self) -> None:
        found = parameters_of(make_federation(privacy={
            "noise_multiplier": 1.0, "l2_norm_clip": 1.0, "microbatches": 1, "delta": 1e-5, "target_epsilon": 3.0,
        }))  # fmt: skip
        assert found["training.rounds"] == "3"
        assert found["learners"] == "a, b, c"
        assert found["privacy.target_epsilon"] == "3.0"
        assert found["algorithm.rule.name"] == "mean"
        assert found["training.tensorboard"] == "true"

    def test_have_no_places(self) -> None:
        federation = make_federation(tracking={"mlflow": "http://x", "secret": "s"}, placement={"train": {"cpu": "4"}})
        text = str(parameters_of(federation))
        assert not {word for word in ("mlflow", "cpu", "registry", "secret", "simulation", "store") if word in text}

    def test_fit_into_a_batch(self) -> None:
        many = make_federation(training={"rounds": 1, "batch_size": 1, "fit": {f"k{k}": "v" * 600 for k in range(200)}})
        found = parameters_of(many)
        assert len(found) == 100
        assert max(map(len, found.values())) == 500

    def test_a_simulation_that_was_set_is_there(self) -> None:
        federation: Federation = make_federation(simulation={"held_out": ["c"]})
        assert parameters_of(federation)["simulation.held_out_0_"] == "c"
