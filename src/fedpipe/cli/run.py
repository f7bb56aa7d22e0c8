"""Commands that run on this machine: run, simulate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpipe.cli.options import (
    FederationFile,
    KeysOption,
    OutOption,
    ParameterOption,
    RunOption,
    StoreOption,
    given_parameters,
)
from fedpipe.cli.panels import Panel
from fedpipe.cli.text import say

if TYPE_CHECKING:
    from fedpipe.commands.run import Result

commands = Panel("Run on this machine")


@commands.add(
    "fedpipe run federation.yaml --out results",
    "fedpipe run pipeline.yaml --store s3://bucket/prefix -p learning_rate=0.01",
)
def run(
    file: Annotated[Path, typer.Argument(help="A federation file or a compiled pipeline.", metavar="FILE")],
    store: StoreOption = None,
    out_folder: OutOption = None,
    name: RunOption = None,
    parameters: ParameterOption = None,
    workers: Annotated[
        int, typer.Option("--workers", min=0, max=1024, help="Worker processes; 0 for one per core.")
    ] = 0,
    keys: KeysOption = None,
    objective: Annotated[
        str, typer.Option("--objective", help="A metric to print as the last line, as NAME=VALUE, for Katib.")
    ] = "",
) -> None:
    """Run a federation on this machine; the same run name resumes."""
    given = given_parameters(parameters)
    from fedpipe.cli.progress import Progress

    with Progress(f"reading {file}") as progress:
        from fedpipe.commands.run import run as run_source

        result = run_source(
            file, store=store, out=out_folder, name=name, parameters=given, listener=progress, stages=progress.stage,
            workers=workers, keys=keys,
        )  # fmt: skip
    _show(result)
    if objective:
        say(f"{objective}={_objective(result, objective)}")


@commands.add(
    "fedpipe simulate federation.yaml",
    "fedpipe simulate federation.yaml --run trial-2 -p rounds=20",
    "fedpipe simulate federation.yaml --from-head",
)
def simulate(
    file: FederationFile,
    store: StoreOption = None,
    out_folder: OutOption = None,
    name: Annotated[
        str | None,
        typer.Option("--run", help="The run's name; by default a new simulation-N, or the last if it is unfinished."),
    ] = None,
    parameters: ParameterOption = None,
    from_head: Annotated[bool, typer.Option("--from-head", help="Continue from the model at HEAD.")] = False,
) -> None:
    """Rehearse a federation with TensorFlow Federated, from fresh weights; HEAD stays where it is."""
    given = given_parameters(parameters)
    from fedpipe.cli.progress import Progress

    with Progress(f"reading {file}") as progress:
        from fedpipe.commands.run import simulate as rehearse

        result = rehearse(
            file, store=store, out=out_folder, name=name, parameters=given, listener=progress, stages=progress.stage,
            from_head=from_head,
        )  # fmt: skip
    _show(result)


def _objective(result: Result, name: str) -> float:
    """Return a metric of the final model, in the form that Katib's collector reads. Raises InputError."""
    from fedpipe.errors import InputError
    from fedpipe.suggestion import suggestion

    found = result.metrics
    if name not in found:
        what = f"the final model has no metric {name!r}"
        raise InputError(what, where="--objective", remedy=suggestion(name, found, listed="Metrics"))
    return found[name]


def _accepted(rounds: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a round of a summary was accepted; without votes, each one was."""
    return any(one["round"] and one.get("vote", {"accepted": True})["accepted"] for one in rounds)


def _show(result: Result) -> None:
    from fedpipe.rounds.measures import main_metrics

    if origin := result.summary.get("begun_from"):
        say(f"continued from round {origin['round']} of {origin['run']}")
    if result.summary and not result.summary["onnx"] and not _accepted(result.summary["rounds"]):
        say("nothing was trained: no round was accepted, so HEAD stays and no model is published")
    if choice := result.summary.get("choice"):
        say(f"chosen: the model of round {choice['round']}, by {choice['metric']}")
    if why := result.summary.get("rejected"):
        say(f"not published: {why}")
    for label, value in result.summary.get("evaluation", {}).items():
        if label in ("central", "federated") and value:
            shown = main_metrics(value["metrics"], value["measures"])
            numbers = ", ".join(f"{name} {number:.4f}" for name, number in shown.items())
            say(f"{label}: {numbers} ({value['examples']} examples)")
    if personal := result.summary.get("evaluation", {}).get("personal_models"):
        say(
            f"personal models: better at {personal['better']} of {personal['learners']} learners, mean "
            f"{personal['metric']} {personal['own']:.4f}, shared model {personal['shared']:.4f}"
        )
    for path in ("summary.json", "report.html", "model.onnx"):
        if (result.folder / path).exists():
            say(f"{path.split('.')[0]}: {result.folder / path}")
    if registered := result.summary.get("registry"):
        say(f"model registry: {registered['failed']}" if "failed" in registered else _entry(registered))
    if result.tracked:
        say(result.tracked)


def _entry(registered: Mapping[str, Any]) -> str:
    return f"model registry: {registered['name']} version {registered['version']} at {registered['url']}"
