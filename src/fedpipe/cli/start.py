"""Commands to start with: init, check, explore."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fedpipe.cli.options import FederationFile, given_folder
from fedpipe.cli.panels import Panel
from fedpipe.cli.text import busy, note, say, show_table
from fedpipe.commands.init import Algorithm, Framework
from fedpipe.federation.names import MOST_LEARNERS

commands = Panel("Start")
MOST_DOUBTS = 10
"""Most doubts about columns that are printed."""


@commands.add(
    "fedpipe init demo",
    "fedpipe init demo --algorithm collective",
    "fedpipe init demo --framework numpy",
    "fedpipe init mine --from patients.csv --label diagnosis",
)
def init(
    folder: Annotated[Path, typer.Argument(parser=given_folder, help="A new or empty folder.", metavar="DIR")],
    algorithm: Annotated[
        Algorithm, typer.Option("--algorithm", help="How the learners train together.")
    ] = Algorithm.averaging,
    framework: Annotated[
        Framework, typer.Option("--framework", help="The framework of model.py; numpy: a linear model.")
    ] = Framework.keras,
    table: Annotated[
        list[Path] | None,
        typer.Option("--from", help="A table: .csv, .parquet or .npz; several: one for each learner.", metavar="FILE"),
    ] = None,
    label: Annotated[str, typer.Option("--label", help="With --from: the column to predict.")] = "",
    learners: Annotated[
        int, typer.Option("--learners", min=0, max=MOST_LEARNERS, help="With --from: how many share one file.")
    ] = 0,
    by: Annotated[str, typer.Option("--by", help="With --from: the column whose values stay together.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Write a working federation.yaml, model.py and data, or a federation for tables."""
    from fedpipe.commands.init import check_table_options
    from fedpipe.commands.init import init as write
    from fedpipe.commands.init_table import init_table

    if table or label or learners or by:
        check_table_options(table or (), label, algorithm)
    doubts: tuple[str, ...] = ()
    if table:
        names, doubts = init_table(folder, table, label, learners=learners, by=by, framework=framework, force=force)
    else:
        names = write(folder, algorithm, framework, force=force)
    for doubt in doubts[:MOST_DOUBTS]:
        note(doubt)
    if len(doubts) > MOST_DOUBTS:
        note(f"{len(doubts) - MOST_DOUBTS} more columns are in doubt: see the remarks in federation.yaml")
    say(f"wrote {', '.join(names)} to {folder}")
    say(f"next: fedpipe run {shlex.quote(str(folder / 'federation.yaml'))}")


@commands.add("fedpipe check federation.yaml")
def check(
    file: FederationFile,
    no_store: Annotated[bool, typer.Option("--no-store", help="Do not contact the store.")] = False,
) -> None:
    """Check a federation file, its data, model and store; change nothing."""
    from fedpipe.commands.check import check as run_checks

    with busy("checking"):
        findings = run_checks(file, store=not no_store)
    for subject, what in findings:
        say(("✓ ", "green"), (subject, "bold"), f" {what}")


@commands.add("fedpipe explore federation.yaml -o data.html")
def explore(
    file: FederationFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("data.html"),
) -> None:
    """Show the learners' data: labels, pictures, features, and how much they differ."""
    from fedpipe.commands.explore import explore as look
    from fedpipe.data.exploration import advice, heterogeneity
    from fedpipe.reports.exploration_page import label_line, table

    with busy("looking"):
        found = look(file, output)
    rows = [[(name, value) for name, value in row.items() if name != "features"] for row in table(found)]
    head = [name for name, _ in rows[0]] if rows else []
    lines = [[label_line(found, view)] if found.classes else [] for view in found.views]
    show_table(
        ([value for _, value in row] + line for row, line in zip(rows, lines, strict=True)),
        head=head + (["labels"] if found.classes else []),
    )
    if found.classes:
        value = heterogeneity(found)
        say(f"heterogeneity of labels {value:.3f}: {advice(value)}")
    for name, why in found.left_out.items():
        note(f"{name} was left out: {why}")
    say(f"wrote {output}")
