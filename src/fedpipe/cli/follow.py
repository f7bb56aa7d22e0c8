"""Commands that follow runs from the store: watch, runs, compare, report, plot, stop, tensorboard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpipe.cli.options import (
    FEDERATION,
    FederationOption,
    JsonOption,
    RunName,
    StoreOption,
    connected,
    forwarded,
    given_folder,
)
from fedpipe.cli.panels import Panel
from fedpipe.cli.text import Styled, busy, following, say, show_json, show_table
from fedpipe.kubeflow.where import Where

if TYPE_CHECKING:
    from fedpipe.reports.comparison import Comparison, RunLine

commands = Panel("Follow runs")
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for a run that has not begun.")]


@commands.add(
    "fedpipe watch run-1",
    "fedpipe watch run-1 -f demo/federation.yaml",
    "fedpipe watch run-1 --namespace hospitals",
)
@forwarded
@connected
def watch(
    run_name: RunName,
    file: FederationOption = FEDERATION,
    store: StoreOption = None,
    wait: WaitOption = False,
    *,
    where: Where,
) -> None:
    """Follow a run from its store: rounds, metrics, awaited learners, seconds of each phase.

    With --host or --namespace, the pods that wait are shown too, with the reason.
    """
    from fedpipe.commands.watch import watch as follow

    pods = None
    if where.host or where.namespace:
        from fedpipe.kubeflow.pods import watcher

        run_name, pods, known = watcher(run_name, where)
        wait = wait or known

    with following("looking") as change_state:
        for seen in follow(file, run_name, store=store, pods=pods, wait=wait):
            if seen.line:
                say(seen.line)
            change_state(seen.state)


@commands.add("fedpipe runs -f demo/federation.yaml", "fedpipe runs --json")
@forwarded
def runs(file: FederationOption = FEDERATION, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the runs of a federation, the latest first."""
    from fedpipe.commands.compare import runs as find

    found = find(file, store=store)
    if as_json:
        show_json([line._asdict() for line in found])
    elif not found:
        say("no run has begun here")
    else:
        show_table(map(_row, found), head=("run", "rounds", "state", "last accepted", "ago"), whole=1)


def _row(line: RunLine) -> Sequence[Styled]:
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in line.metrics.items() if "/" not in name)
    planned = "?" if line.planned is None else line.planned
    mark = " (HEAD)" if line.at_head else ""
    return f"{line.name}{mark}", f"{line.rounds} of {planned}", line.state, numbers, _ago(line.age)


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


@commands.add("fedpipe compare run-1 run-2", "fedpipe compare run-1 run-2 run-3 --json")
@forwarded
def compare(
    names: Annotated[list[str], typer.Argument(help="Two or more runs.", metavar="RUN")],
    file: FederationOption = FEDERATION,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: the settings in which they differ, and their results.

    `fedpipe report --beside` draws the comparison.
    """
    from fedpipe.commands.compare import compare as compare_runs

    found = compare_runs(file, names, store=store)
    if as_json:
        show_json(found._asdict())
    else:
        show_table(_rows(found), head=("", *found.runs))


def _rows(found: Comparison) -> Iterator[Sequence[Styled]]:
    for path, values in found.settings.items():
        yield path, *values
    if not found.settings:
        yield (("the same settings", "dim"),)
    for name, numbers in found.results.items():
        yield name, *("" if value is None else f"{value:.6g}" for value in numbers)


@commands.add("fedpipe report run-2 --beside run-1 -o report.html")
@forwarded
def report(
    run_name: RunName,
    file: FederationOption = FEDERATION,
    beside: Annotated[
        list[str] | None, typer.Option("--beside", help="Another run to compare with; repeatable.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    store: StoreOption = None,
) -> None:
    """Regenerate a run's report from the store, compared with other runs."""
    from fedpipe.commands.compare import report as write

    with busy("drawing"):
        write(file, run_name, output, store=store, beside=beside or [])
    say(f"wrote {output}")


@commands.add("fedpipe plot run-1", "fedpipe plot run-1 -f demo/federation.yaml -o votes.png --once")
@forwarded
def plot(
    run_name: RunName,
    file: FederationOption = FEDERATION,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="An .html, .svg or .png file; by default RUN.html.")
    ] = None,
    store: StoreOption = None,
    once: Annotated[bool, typer.Option("--once", help="Draw the finished rounds, and exit.")] = False,
    wait: WaitOption = False,
) -> None:
    """Draw a run's scores and ballots; redraw them after each round until the run has ended."""
    from fedpipe.commands.plot import plot as draw

    path = output or Path(f"{run_name}.html")
    draw(file, run_name, path, store=store, live=not once, listener=lambda state: say(f"{path}: {state}"), wait=wait)


@commands.add("fedpipe stop run-1 -f demo/federation.yaml")
@forwarded
def stop(run_name: RunName, file: FederationOption = FEDERATION, store: StoreOption = None) -> None:
    """End a session after its current round; the model at that point is evaluated and exported."""
    from fedpipe.commands.stop import stop as ask

    say(ask(file, run_name, store=store))


@commands.add("fedpipe tensorboard run-1 -f demo/federation.yaml", "fedpipe tensorboard run-1 --copy events")
@forwarded
def tensorboard(
    run_name: RunName,
    file: FederationOption = FEDERATION,
    store: StoreOption = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen on.")] = "localhost",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 for a free one.")] = 6006,
    copy: Annotated[
        Path | None,
        typer.Option("--copy", parser=given_folder, help="Only copy the event files to this folder.", metavar="DIR"),
    ] = None,
) -> None:
    """Show a run's event files in TensorBoard, also while it is in progress."""
    from fedpipe.commands.tensorboard import copy_events
    from fedpipe.commands.tensorboard import tensorboard as show

    if copy is not None:
        say(f"{copy_events(file, run_name, copy, store=store)} event files in {copy}")
        return
    raise typer.Exit(show(file, run_name, store=store, host=host, port=port))
