"""The runs of a federation, listed and beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fedpipe.errors import CorruptError
from fedpipe.reports.story import Story, summarise
from fedpipe.rounds.history import read_head, read_record
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import differences, read_plan
from fedpipe.sessions.board import poll_board
from fedpipe.store import Store, keys


class RunLine(NamedTuple):
    """A run in a few words.

    `rounds` are committed; `planned` is None where the plan cannot be read; `state` is `going on`, `ended` or why its
    session ended early; `age` is in seconds, since its last round was committed; `at_head` says that the shared model
    is this run's.
    """

    name: str
    rounds: int
    planned: int | None
    state: str
    metrics: dict[str, float]
    age: float
    at_head: bool


def list_runs(store: Store) -> list[RunLine]:
    """All runs that have begun, the latest first. Raises CorruptError."""
    head = read_head(store)
    at_head = head[0].run if head else ""
    lines = [line for name in store.below(keys.RUNS).folders() if (line := _line(store, name, at_head))]
    return sorted(lines, key=lambda line: (line.age, line.name))


def _line(store: Store, name: str, at_head: str) -> RunLine | None:
    last = number = 0
    record = first = read_record(store, name, 0)
    if record is None or first is None:
        return None
    while found := read_record(store, name, number := number + 1):
        record, last = found, number
    return RunLine(
        name=name,
        rounds=last,
        planned=_planned(store, first),
        state=_state(store, name),
        metrics=record.metrics,
        age=store.age(keys.record(name, last)) or 0.0,
        at_head=name == at_head,
    )


def _planned(store: Store, first: Record) -> int | None:
    try:
        return read_plan(store, first.plan).federation.training.rounds
    except CorruptError:  # of another version of fedpipe
        return None


def _state(store: Store, name: str) -> str:
    board = poll_board(store, name)
    if board and board[0].ending not in ("", "done"):
        return str(board[0].ending).replace("_", " ")
    return "ended" if store.size(keys.summary(name)) is not None else "going on"


class Comparison(NamedTuple):
    """Runs beside each other.

    `settings` are those in which they differ from the first: its path, and a value for each run; `results` are numbers
    by name, one for each run, None where a run has no such number.
    """

    runs: tuple[str, ...]
    settings: dict[str, list[str]]
    results: dict[str, list[float | None]]


def compare(stories: Sequence[Story]) -> Comparison:
    """Compares runs of one federation.

    Args:
        stories: two runs or more.
    """
    plans = [story.plan for story in stories]
    settings: dict[str, list[str]] = {}
    for position, plan in enumerate(plans[1:], 1):
        for line in differences(plans[0], plan):
            path, _, values = line.partition(": ")
            before, _, after = values.partition(" -> ")
            if path != "run":
                settings.setdefault(path, [before] * len(plans))[position] = after
    found = [_results(summarise(story)) for story in stories]
    names = list(dict.fromkeys(name for results in found for name in results))
    return Comparison(
        runs=tuple(plan.run for plan in plans),
        settings=dict(sorted(settings.items())),
        results={name: [results.get(name) for results in found] for name in names},
    )


def _results(summary: dict[str, Any]) -> dict[str, float]:
    """Numbers of a run: its rounds, the last round's metrics, the evaluation of its last model, its time."""
    rounds = [each for each in summary["rounds"] if each["round"]]
    found: dict[str, float] = {"rounds": len(rounds)}
    if rounds:
        last = rounds[-1]
        numbers = {"loss": last["loss"], **last["metrics"]}
        found |= {
            f"last round: {name}": value for name, value in numbers.items() if value is not None and "/" not in name
        }
        found["learners dropped"] = sum(len(each["dropped"]) for each in rounds)
        if "vote" in last:
            found["rounds accepted"] = sum(each["vote"]["accepted"] for each in rounds)
    for where in ("central", "federated"):
        if told := summary["evaluation"].get(where):
            found |= {f"{where}: {name}": value for name, value in told["metrics"].items()}
    return found | {"seconds": summary["seconds"]}
