"""The commands of `fedpipe` that need Kubeflow: submit, schedule, logs, doctor."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedpipe.errors import InputError
from fedpipe.kubeflow.where import Where

if TYPE_CHECKING:
    from fedpipe.kubeflow.doctor.finding import Finding

commands = typer.Typer()
out, err = Console(), Console(stderr=True)

_CONNECTION: dict[str, tuple[Any, Any]] = {
    "host": (
        Annotated[
            str,
            typer.Option("--host", envvar="KF_PIPELINES_ENDPOINT", help="URL of Kubeflow; else by the kubeconfig."),
        ],
        "",
    ),
    "namespace": (
        Annotated[
            str, typer.Option("--namespace", "-n", envvar="FEDPIPE_NAMESPACE", help="Namespace of the runs' pods.")
        ],
        "",
    ),
    "kfp_namespace": (
        Annotated[
            str,
            typer.Option("--kfp-namespace", envvar="FEDPIPE_KFP_NAMESPACE", help="Namespace of Kubeflow Pipelines."),
        ],
        "kubeflow",
    ),
    "context": (
        Annotated[str, typer.Option("--context", help="Context of the kubeconfig; else the current one.")], "",
    ),
    "token_file": (
        Annotated[
            Path | None,
            typer.Option("--token-file", envvar="FEDPIPE_KFP_TOKEN_FILE", help="A file with a bearer token."),
        ],
        None,
    ),
}  # fmt: skip
"""The options that say where Kubeflow is: annotation and default of each field of `Where`."""


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes `where`, with the options that it is made of instead."""
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _CONNECTION.items()
    ]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        where = Where(**{name: given.pop(name) for name in Where._fields})
        command(**given, where=where)

    own = inspect.signature(command, eval_str=True)
    kept = [parameter for parameter in own.parameters.values() if parameter.name != "where"]
    with_options.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    return with_options


FileOption = Annotated[Path, typer.Option("--federation", "-f", help="The federation file.")]
ExperimentOption = Annotated[str, typer.Option("--experiment", help="Name of the experiment; else the federation's.")]
RootOption = Annotated[str, typer.Option("--pipeline-root", help="Where Kubeflow keeps artifacts.")]
AccountOption = Annotated[str, typer.Option("--service-account", help="The pods run as this one.")]
ForceOption = Annotated[
    bool,
    typer.Option("--force", help="Even if pods could never start, as `fedpipe doctor` tells."),
]
ParameterOption = Annotated[
    list[str] | None, typer.Option("--parameter", "-p", help="A run-time parameter, NAME=VALUE; repeatable.")
]


def given_parameters(parameters: list[str] | None) -> dict[str, str]:
    """Run-time parameters from NAME=VALUE. Raises InputError."""
    given = {}
    for text in parameters or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"{text!r} is not NAME=VALUE", where="--parameter")
        given[key] = value
    return given


@commands.command(
    epilog="Examples: fedpipe submit federation.yaml  ·  "
    "fedpipe submit federation.yaml --host https://kubeflow.example/pipeline --token-file token -p rounds=20"
)
@connected
def submit(
    file: Annotated[Path, typer.Argument(help="The federation file.", metavar="FILE")],
    run: Annotated[str, typer.Option("--run", help="The run's name; else from the time of now.")] = "",
    parameters: ParameterOption = None,
    experiment: ExperimentOption = "",
    pipeline_root: RootOption = "",
    service_account: AccountOption = "",
    force: ForceOption = False,
    *,
    where: Where,
) -> None:
    """Compile a federation, upload it to Kubeflow, and start a run."""
    from fedpipe.kubeflow.submission import submit as start

    with err.status("submitting"):
        made = start(
            file, where=where, run=run, experiment=experiment, pipeline_root=pipeline_root,
            service_account=service_account, parameters=given_parameters(parameters), force=force,
        )  # fmt: skip
    _say(out, f"{made.run}: {made.url}")
    _say(out, f"version {made.version} of the pipeline")
    _say(out, f"follow it: fedpipe watch {made.run} -f {file}")


class Act(StrEnum):
    """What `fedpipe schedule` does."""

    create = "create"
    list = "list"
    pause = "pause"
    resume = "resume"
    delete = "delete"


@commands.command(
    epilog='Examples: fedpipe schedule --cron "0 0 3 * * 0" -f federation.yaml  ·  fedpipe schedule list  ·  '
    "fedpipe schedule pause digits"
)
@connected
def schedule(
    act: Annotated[Act, typer.Argument(help="Deleting a schedule leaves its runs.")] = Act.create,
    name: Annotated[str, typer.Argument(help="The schedule's name; a new one takes the federation's.")] = "",
    cron: Annotated[
        str, typer.Option("--cron", help='Six fields, seconds first: "0 0 3 * * 0" is every Sunday at 3, UTC.')
    ] = "",
    file: FileOption = Path("federation.yaml"),
    parameters: ParameterOption = None,
    experiment: ExperimentOption = "",
    pipeline_root: RootOption = "",
    service_account: AccountOption = "",
    force: ForceOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="`list` as JSON.")] = False,
    *,
    where: Where,
) -> None:
    """Start runs again and again: one at a time, no run for a time that was missed, each from HEAD."""
    from fedpipe.kubeflow import submission

    if act is Act.list:
        _list_schedules(where, as_json=as_json)
    elif act is not Act.create:
        _change_schedule(act, name, where)
    else:
        with err.status("scheduling"):
            made = submission.schedule(
                file, cron, where=where, name=name, experiment=experiment, pipeline_root=pipeline_root,
                service_account=service_account, parameters=given_parameters(parameters), force=force,
            )  # fmt: skip
        _say(out, f"{made.name}: {made.cron}, next {', '.join(submission.next_times(cron))}")


def _list_schedules(where: Where, *, as_json: bool) -> None:
    from fedpipe.kubeflow import submission

    found = submission.schedules(where)
    if as_json:
        out.print_json(json.dumps([one._asdict() for one in found]))
        return
    if not found:
        _say(out, "no schedules")
        return
    table = Table("schedule", "cron", "state", "next", "version", box=None, padding=(0, 2, 0, 0))
    for one in found:
        soon = submission.next_times(one.cron, 1)[0] if one.enabled and one.cron else ""
        table.add_row(one.name, one.cron or "periodic", "on" if one.enabled else "paused", soon, one.version_id)
    out.print(table)


def _change_schedule(act: Act, name: str, where: Where) -> None:
    from fedpipe.kubeflow import submission

    if not name:
        raise InputError("no schedule is named", remedy=f"Such as: fedpipe schedule {act} digits")
    submission.change_schedule(name, act.value, where=where)
    done = {Act.pause: "is paused", Act.resume: "goes on", Act.delete: "is deleted; its runs stay"}
    _say(out, f"{name} {done[act]}")


@commands.command(epilog="Examples: fedpipe logs run-7  ·  fedpipe logs run-7 --learner hospital-b --follow")
@connected
def logs(
    run: Annotated[str, typer.Argument(help="The run's name in Kubeflow, or its id.", metavar="RUN")],
    step: Annotated[str, typer.Option("--step", help="Only steps with this in their name.")] = "",
    learner: Annotated[str, typer.Option("--learner", help="Only steps of this learner.")] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the steps have ended.")] = False,
    *,
    where: Where,
) -> None:
    """Show what the steps of a run say."""
    from fedpipe.kubeflow.pods import logs as read

    for name, line in read(run, where=where, step=step, learner=learner, follow=follow):
        out.print(f"[cyan]{name}[/] {escape(line)}", highlight=False, soft_wrap=True)


@commands.command(epilog="Examples: fedpipe doctor federation.yaml  ·  fedpipe doctor federation.yaml --json")
@connected
def doctor(
    file: Annotated[Path, typer.Argument(help="The federation file.", metavar="FILE")],
    store: Annotated[
        str | None, typer.Option("--store", help="URI by which this machine reaches the store, instead of the file's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    *,
    where: Where,
) -> None:
    """Find what keeps a federation from running on the cluster; exit code 2 when something does."""
    from fedpipe.kubeflow.doctor.diagnosis import diagnose

    if as_json:
        found = diagnose(file, where=where, store=store)
        out.print_json(json.dumps([finding._asdict() for finding in found]))
    else:
        with err.status("looking"):
            found = diagnose(file, where=where, store=store, listener=_tell)
    errors = sum(finding.level == "error" for finding in found)
    if not as_json:
        warnings = sum(finding.level == "warning" for finding in found)
        _say(out, f"errors: {errors}, warnings: {warnings}")
    if errors:
        raise typer.Exit(2)


_MARKS = {"ok": "[green]ok     [/]", "warning": "[yellow]warning[/]", "error": "[red]error  [/]"}


def _tell(finding: Finding) -> None:
    line = f"{_MARKS[finding.level]} [bold]{escape(finding.subject)}[/]: {escape(finding.what)}"
    out.print(line, highlight=False, soft_wrap=True)
    if finding.remedy:
        out.print(f"        {escape(finding.remedy)}", highlight=False, soft_wrap=True)


def _say(console: Any, text: str) -> None:
    console.print(escape(text), highlight=False, soft_wrap=True)
