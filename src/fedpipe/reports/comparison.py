"""Compares the runs of a federation; `catalogue` lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from fedpipe.federation.training import Export
from fedpipe.reports.catalogue import RunLine as RunLine
from fedpipe.reports.catalogue import list_runs as list_runs
from fedpipe.reports.story import Story, summarise
from fedpipe.rounds.measures import main_metrics
from fedpipe.rounds.plan import differences


class Comparison(NamedTuple):
    """Compares runs.

    `settings` are the settings that differ from the first run: their path, and a value for each run. The model that the
    runs began from is one of them. `results` are numbers by name, one for each run; None if a run has no such number.
    """

    runs: tuple[str, ...]
    settings: dict[str, list[str]]
    results: dict[str, list[float | None]]


def compare(stories: Sequence[Story]) -> Comparison:
    """Compares runs of one federation.

    Args:
        stories: two or more runs.
    """
    by_run = [_results(summarise(story)) for story in stories]
    names = list(dict.fromkeys(name for results in by_run for name in results))
    return Comparison(
        runs=tuple(story.plan.run for story in stories),
        settings=different_settings(stories),
        results={name: [results.get(name) for results in by_run] for name in names},
    )


def different_settings(stories: Sequence[Story]) -> dict[str, list[str]]:
    """Returns the settings of a comparison."""
    plans = [story.plan for story in stories]
    settings: dict[str, list[str]] = {}
    for position, plan in enumerate(plans[1:], 1):
        for line in differences(plans[0], plan):
            path, _, values = line.partition(": ")
            before, _, after = values.partition(" -> ")
            if path != "run":
                settings.setdefault(path, [before] * len(plans))[position] = after
    starts = [_start(story) for story in stories]
    if len(set(starts)) > 1:
        settings["begins from"] = starts
    return dict(sorted(settings.items()))


def _start(story: Story) -> str:
    """Returns the model that a run began from."""
    start = story.records[0].previous
    fresh = story.plan.federation.training.start == "fresh"
    return f"{start.run}, round {start.round}" if start and not fresh else "fresh weights"


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
        if any("not_chosen" in one for one in rounds):
            results["updates not chosen"] = sum(len(one.get("not_chosen", ())) for one in rounds)
        if "vote" in last:
            results["rounds accepted"] = sum(one["vote"]["accepted"] for one in rounds)
    for kind in ("central", "federated"):
        if measured := summary["evaluation"].get(kind):
            numbers = main_metrics(measured["metrics"], measured["measures"])
            results |= {f"{kind}: {name}": value for name, value in numbers.items()}
    together = summary["evaluation"].get("federated")
    for name in together["metrics"] if together else ():
        less = Export(metric=name).minimised
        values = [one["metrics"][name] for one in summary["evaluation"]["learners"].values() if name in one["metrics"]]
        if values and less is not None:
            results[f"worst learner: {name}"] = max(values) if less else min(values)
    return results | {"seconds": summary["seconds"]}
