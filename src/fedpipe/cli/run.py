"""Commands that run on this machine: run, simulate."""

from __future__ import annotations

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
    name: RunOption = "run-1",
    parameters: ParameterOption = None,
    workers: Annotated[
        int, typer.Option("--workers", min=0, max=1024, help="Worker processes; 0 for one per core.")
    ] = 0,
    keys: KeysOption = None,
) -> None:
    """Run a federation on this machine; the same run name resumes."""
    _run(file, store, out_folder, name, parameters, workers=workers, keys=keys)


@commands.add("fedpipe simulate federation.yaml", "fedpipe simulate federation.yaml --run trial-2 -p rounds=20")
def simulate(
    file: FederationFile,
    store: StoreOption = None,
    out_folder: OutOption = None,
    name: RunOption = "simulation-1",
    parameters: ParameterOption = None,
) -> None:
    """Rehearse a federation with TensorFlow Federated; the same run name resumes."""
    _run(file, store, out_folder, name, parameters, simulation=True)


def _run(
    file: Path, store: str | None, folder: Path | None, name: str, parameters: list[str] | None, **how: Any
) -> None:
    from fedpipe.cli.progress import Progress
    from fedpipe.commands.run import run as run_source

    given = given_parameters(parameters)
    with Progress() as progress:
        result = run_source(file, store=store, out=folder, name=name, parameters=given, listener=progress, **how)
    _show(result)


def _show(result: Result) -> None:
    from fedpipe.rounds.measures import main_metrics

    for label, value in result.summary.get("evaluation", {}).items():
        if label in ("central", "federated") and value:
            shown = main_metrics(value["metrics"], value["measures"])
            numbers = ", ".join(f"{name} {number:.4f}" for name, number in shown.items())
            say(f"{label}: {numbers} ({value['examples']} examples)")
    for path in ("summary.json", "report.html", "model.onnx"):
        if (result.folder / path).exists():
            say(f"{path.split('.')[0]}: {result.folder / path}")
