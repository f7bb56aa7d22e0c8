"""Estimates the load of a compiled pipeline on Kubeflow Pipelines."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from fedpipe.compiled.graph import Graph
from fedpipe.federation.federation import Federation
from fedpipe.federation.placement import Placement

# Measured on a KFP 2.17 backend: see docs/kubeflow.md, "How large a run can be".
_WORKFLOW_BASE, _WORKFLOW_PER_STEP, _STATUS_PER_STEP = 50_000, 3_600, 4_060
_WORKFLOW_LIMIT = 2**20
_SECONDS_PER_STEP = 20
_COMFORTABLE_STEPS = 100


class Estimate(NamedTuple):
    """Estimates the load of a compiled pipeline on KFP.

    `pods` are two for each step, a driver and the work, and one driver of the whole pipeline.
    `workflow_bytes` is the size of the Argo workflow with its status; `overhead_seconds` is KFP's overhead on the
    critical path. `requests` describe what the learners of a round reserve, such as `5 x learn: 500m cpu, 1Gi memory`;
    in a session also what the coordinator's steps do.
    """

    steps: int
    pods: int
    critical_steps: int
    pipeline_bytes: int
    workflow_bytes: int
    overhead_seconds: int
    requests: tuple[str, ...]
    warnings: tuple[str, ...]


def estimate(federation: Federation, graph: Graph, pipeline_bytes: int) -> Estimate:
    """Estimates the load of a federation's unrolled pipeline.

    Args:
        federation: the federation.
        graph: its compiled pipeline.
        pipeline_bytes: size of the pipeline file.
    """
    steps, critical = len(graph.tasks), _longest_chain(graph)
    workflow = _WORKFLOW_BASE + steps * (_WORKFLOW_PER_STEP + _STATUS_PER_STEP)
    return Estimate(
        steps=steps,
        pods=2 * steps + 1,
        critical_steps=critical,
        pipeline_bytes=pipeline_bytes,
        workflow_bytes=workflow,
        overhead_seconds=critical * _SECONDS_PER_STEP,
        requests=_requests(federation, graph),
        warnings=tuple(_warnings(federation, graph, workflow)),
    )


def _is_rehearsal(graph: Graph) -> bool:
    """Returns whether one step simulates all learners."""
    return any(task.step == "simulate" for task in graph.tasks)


def _requests(federation: Federation, graph: Graph) -> tuple[str, ...]:
    """Describes what the steps reserve that run at the same time: the learners', in a session the coordinator's too."""
    if _is_rehearsal(graph):
        return (f"1 x simulate: {_described(federation.placement_of('simulate'))}",)
    step = "learn" if federation.in_sessions else "train"
    placements = [federation.placement_of(step, learner.name) for learner in federation.pods]
    described = Counter(_described(placement) for placement in placements)
    found = [f"{count} x {step}: {text}" for text, count in described.items()]
    beside = federation.beside_learners if federation.in_sessions else ()
    return (*found, *(f"1 x {step}: {_described(federation.placement_of(step))}" for step in beside))


def _described(placement: Placement) -> str:
    cpu, memory = placement.cpu_request or placement.cpu, placement.memory_request or placement.memory
    gpus = f", {placement.accelerator.count} {placement.accelerator.type}" if placement.accelerator else ""
    return f"{cpu} cpu, {memory} memory{gpus}"


def _longest_chain(graph: Graph) -> int:
    """Returns the number of steps on the critical path."""
    depth: dict[str, int] = {}
    for task in graph.tasks:
        depth[task.key] = 1 + max((depth[key] for key in task.after), default=0)
    return max(depth.values())


def _advice(federation: Federation) -> str:
    """Advises on the number of rounds per step, so that KFP runs the pipeline well."""
    learners, rounds = len(federation.pods), federation.training.rounds
    scored = sum(not federation.scores_in_session(learner.name) for learner in federation.learners)
    steps_outside = scored + len(("shard", "initialise", "evaluate", "report")) + (federation.exported is not None)
    sessions = (_COMFORTABLE_STEPS - steps_outside) // (learners + 1)
    fewest = -(-rounds // sessions) if sessions > 0 else rounds
    if federation.training.rounds_per_step == "all" or federation.training.rounds_per_step >= rounds:
        return "use fewer learners in one federation"
    return f"set training.rounds_per_step to {f'{fewest} or more, or to ' if 1 < fewest < rounds else ''}all"


def _accelerator_warnings(federation: Federation) -> list[str]:
    """Warns if learners of a session share a pool, since they need their accelerators at the same time."""
    pools: dict[tuple[str, tuple[tuple[str, str], ...]], list[int]] = {}
    for learner in federation.pods if federation.in_sessions else ():
        placement = federation.placement_of("learn", learner.name)
        if accelerator := placement.accelerator:
            key = accelerator.type, tuple(sorted(placement.node_selector.items()))
            pools.setdefault(key, []).append(accelerator.count)
    return [
        f"{len(counts)} learners need {sum(counts)} x {kind} of one pool at the same time, for a session. If it has "
        "fewer, rounds continue without the learners that wait. Give each learner its own pool, or set "
        "training.rounds_per_step to 1 so that trainings take turns."
        for (kind, _), counts in pools.items()
        if len(counts) > 1
    ]


def _warnings(federation: Federation, graph: Graph, workflow: int) -> list[str]:
    steps, rounds, warnings = len(graph.tasks), federation.training.rounds, []
    advice = _advice(federation)
    if workflow > _WORKFLOW_LIMIT:
        warnings.append(
            f"{steps} steps make a workflow of about {workflow // 1000} kB, but Argo's limit is 1 MiB: {advice}."
        )
    elif steps > _COMFORTABLE_STEPS:
        warnings.append(f"{steps} steps are more than KFP runs well ({_COMFORTABLE_STEPS}): {advice}.")
    rehearsal = _is_rehearsal(graph)
    warnings += [] if rehearsal else _accelerator_warnings(federation)
    if not rehearsal and federation.proposers and rounds % len(federation.proposers):
        warnings.append(
            f"{rounds} rounds are not a multiple of {len(federation.proposers)} proposers, and each run starts with "
            f"{federation.proposers[0]}: in recurring runs, the first ones propose more often."
        )
    if not federation.store_uri.startswith("s3://"):
        warnings.append(
            "the store is a folder on this machine: on a cluster, set the parameter `store` to an s3:// URI. "
            "`fedpipe submit -p store=...` uploads a form without the folder."
        )
    uris: list[Any] = [federation.data.uri, *(learner.data for learner in federation.learners)]
    if any(uri and "://" not in uri for uri in uris):
        warnings.append("the data is a file on this machine: for a cluster, put it where the pods can read it.")
    return warnings
