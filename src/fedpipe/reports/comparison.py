"""Lists and compares the runs of a federation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fedpipe.errors import CorruptError
from fedpipe.reports.story import Story, summarise
from fedpipe.rounds.history import read_head, read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.measures import main_metrics
from fedpipe.rounds.plan import differences, read_plan
from fedpipe.sessions.board import poll_board
from fedpipe.store import Store, keys


class RunLine(NamedTuple):
    """Summarises a run in one line.

    `rounds` counts committed rounds. `planned` is None if the plan cannot be read. `state` is `running`, `ended` or why
    the session ended early. `age` is in seconds since the last commit. `at_head` is whether this run made HEAD.
    """

    name: str
    rounds: int
    planned: int | None
    state: str
    metrics: dict[str, float]
    age: float
    at_head: bool


def list_runs(store: Store) -> list[RunLine]:
    """Lists all runs that have started, the latest first. Raises CorruptError."""
    head = read_head(store)
    at_head = head[0].run if head else ""
    lines = [line for name in store.below(keys.RUNS).folders() if (line := _line(store, name, at_head))]
    return sorted(lines, key=lambda line: (line.age, line.name))


def _line(store: Store, name: str, at_head: str) -> RunLine | None:
    last = number = 0
    record = first = read_record(store, name, 0)
    if record is None or first is None:
        return None
    while following := read_record(store, name, number := number + 1):
        record, last = following, number
    return RunLine(
        name=name,
        rounds=last,
        planned=_planned_rounds(store, first),
        state=_state(store, name),
        metrics=record.metrics,
        age=store.age(keys.record(name, last)) or 0.0,
        at_head=name == at_head,
    )


def _planned_rounds(store: Store, first: Record) -> int | None:
    try:
        return read_plan(store, first.plan).federation.training.rounds
    except CorruptError:  # a plan of another version of fedpipe
        return None


def _state(store: Store, name: str) -> str:
    board = poll_board(store, name)
    if board and board[0].ending not in ("", "done"):
        return str(board[0].ending).replace("_", " ")
    return "ended" if store.size(f"runs/{name}/summary.json") is not None else "running"


class Comparison(NamedTuple):
    """Compares runs.

    `settings` are the settings that differ from the first run: their path, and a value for each run. `results` are
    numbers by name, one for each run, with None if a run has no such number.
    """

    runs: tuple[str, ...]
    settings: dict[str, list[str]]
    results: dict[str, list[float | None]]


def compare(stories: Sequence[Story]) -> Comparison:
    """Compares runs of one federation.

    Args:
        stories: two or more runs.
    """
    plans = [story.plan for story in stories]
    settings: dict[str, list[str]] = {}
    for position, plan in enumerate(plans[1:], 1):
        for line in differences(plans[0], plan):
            path, _, values = line.partition(": ")
            before, _, after = values.partition(" -> ")
            if path != "run":
                settings.setdefault(path, [before] * len(plans))[position] = after
    by_run = [_results(summarise(story)) for story in stories]
    names = list(dict.fromkeys(name for results in by_run for name in results))
    return Comparison(
        runs=tuple(plan.run for plan in plans),
        settings=dict(sorted(settings.items())),
        results={name: [results.get(name) for results in by_run] for name in names},
    )


def _results(summary: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a run: rounds, metrics of the last round, evaluation of the last model, seconds."""
    rounds = [one for one in summary["rounds"] if one["round"]]
    results: dict[str, float] = {"rounds": len(rounds)}
    if rounds:
        last = rounds[-1]
        metrics = {"loss": last["loss"], **last["metrics"]}
        results |= {
            f"last round: {name}": value for name, value in metrics.items() if value is not None and "/" not in name
        }
        results["learners dropped"] = sum(len(one["dropped"]) for one in rounds)
        if "vote" in last:
            results["rounds accepted"] = sum(one["vote"]["accepted"] for one in rounds)
    for kind in ("central", "federated"):
        if measured := summary["evaluation"].get(kind):
            numbers = main_metrics(measured["metrics"], measured["measures"])
            results |= {f"{kind}: {name}": value for name, value in numbers.items()}
    return results | {"seconds": summary["seconds"]}
