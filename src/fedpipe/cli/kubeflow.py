"""Commands that need Kubeflow: compile, submit, schedule, logs, doctor."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedpipe.cli.options import (
    FEDERATION,
    FederationFile,
    FederationOption,
    JsonOption,
    ParameterOption,
    connected,
    given_parameters,
)
from fedpipe.cli.panels import Panel
from fedpipe.cli.text import Styled, busy, following, note, say, show_json, show_table
from fedpipe.errors import InputError
from fedpipe.kubeflow.where import Where

if TYPE_CHECKING:
    from fedpipe.compiled.estimate import Estimate
    from fedpipe.kubeflow.doctor.finding import Finding
    from fedpipe.kubeflow.schedules import Schedule

commands = Panel("Kubeflow")

ExperimentOption = Annotated[
    str, typer.Option("--experiment", help="Name of the experiment; by default the federation's.")
]
RootOption = Annotated[str, typer.Option("--pipeline-root", help="The folder of Kubeflow's artifacts.")]
AccountOption = Annotated[str, typer.Option("--service-account", help="The service account of the pods.")]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Start even if `fedpipe doctor` finds pods that could never start.")
]


@commands.add(
    "fedpipe compile federation.yaml -o pipeline.yaml",
    "fedpipe compile federation.yaml --manifest objects.yaml",
    name="compile",
)
def compile_command(
    file: FederationFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The pipeline file to write.")] = Path("pipeline.yaml"),
    simulation: Annotated[
        bool, typer.Option("--simulation", help="Compile the rehearsal of `fedpipe simulate` instead.")
    ] = False,
    manifest: Annotated[
        Path | None,
        typer.Option("--manifest", help="Also write Pipeline and PipelineVersion objects, for `kubectl apply`."),
    ] = None,
) -> None:
    """Compile a federation to one Kubeflow pipeline file."""
    from fedpipe.commands.compile import compile as write

    estimate = write(file, output, simulation=simulation, manifest=manifest)
    say(f"wrote {' and '.join(map(str, filter(None, (output, manifest))))}")
    show_table(_estimate_rows(estimate))
    for warning in estimate.warnings:
        note(warning)


def _estimate_rows(estimate: Estimate) -> Iterator[Sequence[Styled]]:
    yield "steps", f"{estimate.steps}, in {estimate.pods} pods"
    yield "pipeline", f"{estimate.pipeline_bytes / 1000:.0f} kB"
    yield "workflow", f"about {estimate.workflow_bytes / 1000:.0f} kB of Argo's 1049 kB, with its status"
    for number, request in enumerate(estimate.requests):
        yield "" if number else "reserved", request
    yield "overhead", f"about {estimate.overhead_seconds} s by Kubeflow, over {estimate.critical_steps} steps in a row"


@commands.add(
    "fedpipe submit federation.yaml",
    "fedpipe submit federation.yaml --host https://kubeflow.example/pipeline -p rounds=20",
)
@connected
def submit(
    file: FederationFile,
    run: Annotated[str, typer.Option("--run", help="The run's name; by default from the current time.")] = "",
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

    with busy("submitting"):
        made = start(
            file, where=where, run=run, experiment=experiment, pipeline_root=pipeline_root,
            service_account=service_account, parameters=given_parameters(parameters), force=force,
        )  # fmt: skip
    say(f"{made.run}: {made.url}")
    say(f"version {made.version} of the pipeline")
    if made.awaited:
        say(made.awaited)
    say(f"follow it: {_follow_command(made.run, where, f'-f {shlex.quote(str(file))}')}")


def _follow_command(run: str, where: Where, *more: str) -> str:
    """Return the command that follows a run from now on, before its first step has begun."""
    given = [
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, value in where._asdict().items() if value != Where._field_defaults[name]
    ]  # fmt: skip
    asks = where.host or where.namespace  # then Kubeflow says whether there is such a run
    return " ".join(["fedpipe watch", run, *more, *given, *([] if asks else ["--wait"])])


@commands.add("fedpipe resume trial-1", "fedpipe resume trial-1 --host https://kubeflow.example/pipeline")
@connected
def resume(
    run: Annotated[str, typer.Argument(help="The run's name in Kubeflow, or its id.", metavar="RUN")],
    *,
    where: Where,
) -> None:
    """Resume a run that failed on Kubeflow, from its last good round; `fedpipe run` resumes on this machine."""
    from fedpipe.kubeflow.submission import resume as start

    with busy("resuming"):
        made = start(run, where=where)
    say(f"{made.run}: {made.url}")
    say(f"follow it: {_follow_command(made.run, where)}")


class Act(StrEnum):
    """The actions of `fedpipe schedule`."""

    create = "create"
    list = "list"
    pause = "pause"
    resume = "resume"
    delete = "delete"


@commands.add(
    'fedpipe schedule --cron "0 0 3 * * 0" -f federation.yaml',
    "fedpipe schedule list",
    "fedpipe schedule pause digits",
)
@connected
def schedule(
    act: Annotated[Act, typer.Argument(help="create, list, pause, resume or delete.", metavar="ACTION")] = Act.create,
    name: Annotated[
        str, typer.Argument(help="The schedule's name; for a new one, by default the federation's.", metavar="NAME")
    ] = "",
    cron: Annotated[
        str, typer.Option("--cron", help='Six fields, seconds first: "0 0 3 * * 0" is every Sunday at 3, UTC.')
    ] = "",
    file: FederationOption = FEDERATION,
    parameters: ParameterOption = None,
    experiment: ExperimentOption = "",
    pipeline_root: RootOption = "",
    service_account: AccountOption = "",
    force: ForceOption = False,
    wait: Annotated[bool, typer.Option("--wait", help="Delete it after the end of its active run.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete it together with its active run.")] = False,
    as_json: JsonOption = False,
    *,
    where: Where,
) -> None:
    """Start runs on a schedule: one at a time, each from HEAD; missed times are skipped.

    Deleting a schedule also deletes the pods and logs of its runs. Their models and records stay in the store.
    """
    from fedpipe.kubeflow import schedules

    if act is not Act.create and cron:
        remedy = "Delete the schedule and create it again to change its times."
        raise InputError(f"`schedule {act}` takes no --cron", where="--cron", remedy=remedy)
    if wait and yes:
        raise InputError("--wait and --yes exclude each other", remedy="Pass one of them.")
    if act is Act.list:
        _list_schedules(where, as_json=as_json)
    elif act is not Act.create:
        _change_schedule(act, name, where, "wait" if wait else "end" if yes else "refuse")
    else:
        with busy("scheduling"):
            made = schedules.schedule(
                file, cron, where=where, name=name, experiment=experiment, pipeline_root=pipeline_root,
                service_account=service_account, parameters=given_parameters(parameters), force=force,
            )  # fmt: skip
        say(f"{made.name}: {made.cron}, next {', '.join(schedules.next_times(cron))}")


def _list_schedules(where: Where, *, as_json: bool) -> None:
    from fedpipe.kubeflow import schedules

    found = schedules.schedules(where)
    if as_json:
        show_json([one._asdict() for one in found])
    elif not found:
        say("no schedules")
    else:
        show_table(map(_schedule_row, found), head=("schedule", "cron", "state", "next", "version"))


def _schedule_row(one: Schedule) -> Sequence[Styled]:
    from fedpipe.kubeflow.schedules import next_times

    soon = next_times(one.cron, 1)[0] if one.enabled and one.cron else ""
    return one.name, one.cron or "periodic", "on" if one.enabled else "paused", soon, one.version_id


def _change_schedule(act: Act, name: str, where: Where, active: Literal["refuse", "wait", "end"]) -> None:
    from fedpipe.kubeflow import schedules

    if not name:
        raise InputError("no schedule is named", remedy=f"Name one: fedpipe schedule {act} NAME")
    if act is not Act.delete:
        schedules.change_schedule(name, act.value, where=where)
        say(f"{name} is {act.value}d")
        return
    with following("deleting") as show:
        runs = schedules.delete_schedule(
            name, where=where, active=active, listener=lambda run: show(f"waiting for the end of run {run}")
        )
    say(f"{name} is deleted; with it go the pods and logs of its runs ({runs}). Their models and records stay")


@commands.add("fedpipe logs run-7", "fedpipe logs run-7 --learner hospital-b --follow")
@connected
def logs(
    run: Annotated[str, typer.Argument(help="The run's name in Kubeflow, or its id.", metavar="RUN")],
    step: Annotated[str, typer.Option("--step", help="Only steps with this text in their name.")] = "",
    learner: Annotated[str, typer.Option("--learner", help="Only steps of this learner.")] = "",
    follow: Annotated[bool, typer.Option("--follow", help="Continue until the steps have ended.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Also the lines of Argo and of KFP's launcher; without it, their errors.")
    ] = False,
    *,
    where: Where,
) -> None:
    """Show the logs of a run's steps."""
    from fedpipe.kubeflow.pods import logs as read

    for name, line in read(run, where=where, step=step, learner=learner, follow=follow, everything=everything):
        say((name, "cyan"), f" {line}")


@commands.add("fedpipe doctor federation.yaml", "fedpipe doctor federation.yaml --json")
@connected
def doctor(
    file: FederationFile,
    store: Annotated[
        str | None, typer.Option("--store", help="URI of the store for this machine, instead of the file's.")
    ] = None,
    as_json: JsonOption = False,
    *,
    where: Where,
) -> None:
    """Find obstacles to a federation on the cluster; exit code 2 if there is an error."""
    from fedpipe.kubeflow.doctor.diagnosis import diagnose

    if as_json:
        found = diagnose(file, where=where, store=store)
        show_json([finding._asdict() for finding in found])
    else:
        with following("looking"):
            found = diagnose(file, where=where, store=store, listener=_show)
    errors = sum(finding.level == "error" for finding in found)
    if not as_json:
        warnings = sum(finding.level == "warning" for finding in found)
        say(f"errors: {errors}, warnings: {warnings}")
    if errors:
        raise typer.Exit(2)


_STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


def _show(finding: Finding) -> None:
    say((f"{finding.level:<7}", _STYLES[finding.level]), " ", (finding.subject, "bold"), f": {finding.what}")
    if finding.remedy:
        say(f"        {finding.remedy}")
