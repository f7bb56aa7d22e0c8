"""Tests whether a session has room on the nodes; tests/e2e asks a real apiserver for its nodes, taints and labels."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes.utils.quantity import parse_quantity

from fedpipe.kubeflow.doctor.finding import Finding
from fedpipe.kubeflow.doctor.nodes import Node, check_nodes
from tests.federations import make_federation

TOGETHER = "steps that start together"


def node(name: str = "node-1", cpu: str = "2", memory: str = "8Gi") -> Node:
    return Node(name, {}, (), {"cpu": parse_quantity(cpu), "memory": parse_quantity(memory)}, ())


def start(*nodes: Node, **more: Any) -> list[Finding]:
    """The findings about the steps that start with the session's learners, of which there are three."""
    return [one for one in check_nodes(make_federation(**more), list(nodes)) if one.subject == TOGETHER]


def test_room_for_the_learners_and_the_steps_that_they_await() -> None:
    """Three learners, `initialise` with TensorFlow, `shard` and `coordinate` without: 2.5 cores and 5 GiB."""
    assert start(node(cpu="2500m", memory="5Gi")) == []
    assert start(node("a", "1250m", "2560Mi"), node("b", "1250m", "2560Mi")) == []


@pytest.mark.parametrize(
    ("cpu", "memory", "what"),
    [
        ("2", "8Gi", "2.5 cpu needed, 2 available"),
        ("4", "4Gi", "5Gi memory needed, 4Gi available"),
        ("2", "4Gi", "2.5 cpu needed, 2 available; 5Gi memory needed, 4Gi available"),
    ],
)
def test_too_little_room_is_a_warning_with_a_way_out(cpu: str, memory: str, what: str) -> None:
    (found,) = start(node(cpu=cpu, memory=memory))
    assert found.level == "warning"
    assert found.what == f"{what}, by shard, initialise, coordinate and the learners"
    assert "set placement.learn.early to false" in found.remedy
    assert start(node(cpu=cpu, memory=memory), placement={"learn": {"early": False}}) == []


def test_steps_that_take_turns_need_no_room_together() -> None:
    assert start(node(cpu="500m"), training={"rounds": 1, "batch_size": 1, "rounds_per_step": 1}) == []
