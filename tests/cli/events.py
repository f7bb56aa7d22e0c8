"""Events of the engine, as a listener receives them."""

from __future__ import annotations

from typing import Any

from fedpipe.compiled.graph import Task
from fedpipe.engine.local import Event


def event(step: str, number: int, metadata: dict[str, Any], learner: str = "") -> Event:
    """A finished step with the metadata of its artifact."""
    task = Task(
        step, f"{number} {step} {learner}", ("fedpipe", "step", step), (), "", {}, {}, (), {}, frozenset(), 0, 0
    )
    artifact = {"artifacts": [{"metadata": metadata}]}
    result = {"artifacts": {"model" if step == "tally" else "metrics": artifact}}
    return Event("done", task, inputs={"round": number, "learner": learner}, result=result)
