"""Start a step of a session before the steps that it needs: it imports its packages meanwhile, then awaits results.

Such a step gets the store, the run and the federation in the place of others' outputs (`fedpipe.pipelines.sessions`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from fedpipe.codec import converted
from fedpipe.errors import FedpipeError, InputError, StoreError
from fedpipe.rounds.plan import RunPlace
from fedpipe.sessions.pulse import beating
from fedpipe.sessions.results import PATIENCE, Results, awaited, publish_results
from fedpipe.steps.shard import read, run_name

AWAITED = {"initialise": "shard", "coordinate": "initialise", "learn": "initialise"}
"""The steps that may start early, each with the step whose results it awaits."""
ABSENT = {"initialise": ("place", "shards"), "coordinate": ("place",), "learn": ("place",)}
"""Their inputs that are absent then."""


class Early(Struct, frozen=True, kw_only=True):
    """Inputs of a step that has started early: where the results of the others are, and what to import meanwhile."""

    store: str = ""
    run: str = ""
    job: str = ""
    framework: str = ""


def is_early(name: str, values: Mapping[str, Any]) -> bool:
    """Return whether a step has started before the steps that it needs.

    Args:
        name: the step.
        values: its inputs.
    """
    return name in AWAITED and not values.get("place") and bool(values.get("store"))


def early_place(name: str, values: Mapping[str, Any]) -> RunPlace:
    """Return the place of the run of a step without a place, and without a plan. Raises InputError."""
    federation = values.get("federation_name") or read(str(values.get("federation", ""))).name
    run = run_name(str(values.get("run", "")), str(values.get("job", "")))
    place = {"store": values["store"], "federation": federation, "run": run}
    try:
        return converted(place, RunPlace)
    except msgspec.ValidationError as error:
        raise InputError(str(error).replace("$.", ""), where=f"step {name}") from error


def completed(
    name: str, values: Mapping[str, Any], meanwhile: Callable[[dict[str, Any]], None] = lambda _: None,
    patience: float = PATIENCE,
) -> Generator[float, None, dict[str, Any]]:  # fmt: skip
    """Wait for the results that a step needs, and return its inputs with them; yield seconds to wait.

    Args:
        name: the step, one that has started early.
        values: its inputs.
        meanwhile: called with the inputs when the plan is known, while the first weights are made.
        patience: seconds without a sign of the awaited step.

    Raises:
        RoundError: the awaited step failed, or does not work.
        InputError, StoreError: as `early_place`, and as the store.
    """
    place, job = early_place(name, values), str(values.get("job", ""))
    store, step = place.open(), AWAITED[name]
    found = yield from awaited(store, place.run, step, job, ended=False, patience=patience)
    given = {**values, "place": msgspec.to_builtins(msgspec.structs.replace(place, plan=found.plan or ""))}
    if name == "initialise":
        return {**given, "shards": msgspec.to_builtins(found.shards)}
    if not found.ended:
        meanwhile(given)
        yield from awaited(store, place.run, step, job, ended=True, patience=patience)
    return given


def publish(place: RunPlace, step: str, results: Results) -> None:
    """Write results of a step for those that have started early; without a job, none have.

    Args:
        place: of the run.
        step: the step that is awaited.
        results: for the job.
    """
    if results.job:
        publish_results(place.open(), place.run, step, results)


@contextlib.contextmanager
def shown(name: str, values: Mapping[str, Any]) -> Iterator[Callable[[str], None]]:
    """Show those that await a step that it works, while the body runs; yield what shows them that it failed.

    Args:
        name: the step.
        values: its inputs.
    """
    job = str(values.get("job", ""))
    if name not in AWAITED.values() or not job:
        yield lambda _: None
        return
    try:
        place = converted(values["place"], RunPlace) if values.get("place") else early_place(name, values)
    except (FedpipeError, msgspec.ValidationError):  # the step itself reports it
        yield lambda _: None
        return

    def show_failure(why: str) -> None:
        with contextlib.suppress(StoreError):  # they see that its pulse has stopped
            publish(place, name, Results(job=job, ended=True, why=why[:500]))

    with contextlib.suppress(StoreError):  # the step itself reports it
        publish(place, name, Results(job=job))  # instead of a failure of an earlier try
    with beating(place.open, place.run, job, step=name):
        yield show_failure
