"""The `fedpipe` command."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedpipe.cli.kubeflow import ParameterOption, commands, connected, given_parameters
from fedpipe.errors import FedpipeError, InputError
from fedpipe.kubeflow.where import Where
from fedpipe.version import __version__

if TYPE_CHECKING:
    from fedpipe.commands.identities import Identity
    from fedpipe.commands.run import Result
    from fedpipe.store.s3_client import Credentials

app = typer.Typer(
    name="fedpipe",
    help="Federated training as Kubeflow Pipelines, and on this machine.",
    epilog="First steps: fedpipe init demo && fedpipe run demo/federation.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(commands)
out, err = Console(), Console(stderr=True)


class Algorithm(StrEnum):
    """What `fedpipe init` can write."""

    averaging = "averaging"
    collective = "collective"


FederationFile = Annotated[Path, typer.Argument(help="The federation file.", metavar="FILE")]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="s3://bucket/prefix or file:///folder, instead of the file's.")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder for summary.json, report.html and model.onnx.")]


def main() -> int:
    """Runs the command; an error is one message, never a traceback."""
    try:
        code = app(standalone_mode=False)  # what a command ends with by typer.Exit
    except FedpipeError as error:
        err.print(f"[bold red]fedpipe:[/] {_escaped(str(error))}", highlight=False, soft_wrap=True)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        err.print("\nstopped; the same command goes on where it was", highlight=False)
        return 130
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a mistake in the command line
            error.show()
            return int(error.exit_code)
        raise
    return code if isinstance(code, int) else 0


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    """Federated training as Kubeflow Pipelines, and on this machine."""
    if version:
        out.print(f"fedpipe {__version__}", highlight=False)
        raise typer.Exit


@app.command(epilog="Examples: fedpipe init demo  ·  fedpipe init demo --algorithm collective")
def init(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", metavar="DIR")],
    algorithm: Annotated[
        Algorithm, typer.Option("--algorithm", help="How the learners learn together.")
    ] = Algorithm.averaging,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
) -> None:
    """Write a working federation.yaml, model.py and data."""
    templates = resources.files("fedpipe") / "templates"
    names = ["federation.yaml", "model.py", "DATA.md"]
    sources = {"federation.yaml": "collective.yaml"} if algorithm is Algorithm.collective else {}
    there = [n for n in [*names, "digits.npz"] if (folder / n).exists()]
    if there and not force:
        raise InputError(f"{there[0]} is already there", where=str(folder), remedy="Choose another folder, or --force.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_digits(folder / "digits.npz")
        for name in names:
            (folder / name).write_text((templates / sources.get(name, name)).read_text())
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(folder)) from error
    out.print(f"wrote {', '.join([*names, 'digits.npz'])} to {folder}", highlight=False, soft_wrap=True)
    out.print(f"next: fedpipe run {folder / 'federation.yaml'}", highlight=False, soft_wrap=True)


def _write_digits(path: Path) -> None:
    import numpy as np

    from fedpipe.errors import MissingExtraError

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "demo") from error
    digits = load_digits()
    np.savez_compressed(path, x=(digits.images / 16).astype(np.float32)[..., None], y=digits.target.astype(np.int64))


@app.command(epilog="Example: fedpipe check federation.yaml")
def check(
    file: FederationFile,
    no_store: Annotated[bool, typer.Option("--no-store", help="Do not contact the store.")] = False,
) -> None:
    """Check a federation file, its data, model and store; change nothing."""
    from fedpipe.commands.check import check as run_checks

    with err.status("checking"):
        findings = run_checks(file, store=not no_store)
    for subject, what in findings:
        out.print(f"[green]✓[/] [bold]{subject}[/] {_escaped(what)}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: fedpipe explore federation.yaml -o data.html")
def explore(
    file: FederationFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("data.html"),
) -> None:
    """Show what the learners hold: labels, pictures, features, and how much they differ."""
    from fedpipe.commands.explore import explore as look
    from fedpipe.data.exploration import advice, heterogeneity
    from fedpipe.reports.exploration_page import label_line, table

    with err.status("looking"):
        found = look(file, output)
    rows = [dict(list(row.items())[:-1]) for row in table(found)]  # the features are for the page
    shown = Table(*(rows[0] if rows else []), *(["labels"] if found.classes else []), box=None, padding=(0, 2, 0, 0))
    for view, row in zip(found.views, rows, strict=True):
        shown.add_row(*row.values(), *([label_line(found, view)] if found.classes else []))
    out.print(shown)
    if found.classes:
        value = heterogeneity(found)
        out.print(f"heterogeneity of labels {value:.3f}: {advice(value)}", highlight=False, soft_wrap=True)
    for name, why in found.left_out.items():
        err.print(f"[yellow]note:[/] {name} was left out: {_escaped(why)}", highlight=False, soft_wrap=True)
    out.print(f"wrote {output}", highlight=False, soft_wrap=True)


@app.command(
    "compile",
    epilog="Examples: fedpipe compile federation.yaml -o pipeline.yaml  ·  "
    "fedpipe compile federation.yaml --manifest objects.yaml",
)
def compile_command(
    file: FederationFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The pipeline file.")] = Path("pipeline.yaml"),
    simulation: Annotated[
        bool, typer.Option("--simulation", help="The rehearsal of `fedpipe simulate` instead.")
    ] = False,
    manifest: Annotated[
        Path | None,
        typer.Option("--manifest", help="Write it as Pipeline and PipelineVersion objects too, for `kubectl apply`."),
    ] = None,
) -> None:
    """Compile a federation to one Kubeflow pipeline file."""
    from fedpipe.compiled.compiler import compile_pipeline, manifest_of
    from fedpipe.federation.file import read_federation
    from fedpipe.store.files import write_whole

    if output.suffix not in (".yaml", ".yml"):
        raise InputError("is not a .yaml file", where=str(output), remedy="Kubeflow takes pipelines as .yaml.")
    estimate = compile_pipeline(read_federation(file), output, simulation=simulation)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("steps", f"{estimate.steps}, in {estimate.pods} pods")
    table.add_row("pipeline", f"{estimate.pipeline_bytes / 1000:.0f} kB")
    table.add_row("workflow", f"about {estimate.workflow_bytes / 1000:.0f} kB of Argo's 1049 kB, with its status")
    table.add_row(
        "overhead",
        f"about {estimate.overhead_seconds} s of Kubeflow's own over {estimate.critical_steps} steps in a row",
    )
    if manifest:
        write_whole(manifest, manifest_of(output.read_bytes()).encode())
    out.print(f"wrote {' and '.join(map(str, filter(None, (output, manifest))))}", highlight=False, soft_wrap=True)
    out.print(table)
    for warning in estimate.warnings:
        err.print(f"[yellow]note:[/] {_escaped(warning)}", highlight=False, soft_wrap=True)


@app.command(
    epilog="Examples: fedpipe run federation.yaml --out results  ·  "
    "fedpipe run pipeline.yaml --store s3://bucket/prefix -p learning_rate=0.01"
)
def run(
    file: Annotated[Path, typer.Argument(help="A federation file or a compiled pipeline.", metavar="FILE")],
    store: StoreOption = None,
    out_folder: OutOption = None,
    name: Annotated[str, typer.Option("--run", help="The run's name; the same name resumes.")] = "run-1",
    parameters: ParameterOption = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Worker processes; 0: one per core.")] = 0,
) -> None:
    """Run a federation on this machine; a second run of the same name resumes."""
    _run(file, store, out_folder, name, parameters, workers=workers)


def _run(
    file: Path, store: str | None, folder: Path | None, name: str, parameters: list[str] | None, **how: Any
) -> None:
    from fedpipe.cli.progress import Progress
    from fedpipe.commands.run import run as run_source

    given = given_parameters(parameters)
    with Progress(out) as progress:
        result = run_source(file, store=store, out=folder, name=name, parameters=given, listener=progress, **how)
    _tell_result(result)


def _tell_result(result: Result) -> None:
    for label, value in result.summary.get("evaluation", {}).items():
        if label in ("central", "federated") and value:
            numbers = ", ".join(f"{k} {v:.4f}" for k, v in value["metrics"].items())
            out.print(f"{label}: {numbers} ({value['examples']} examples)", highlight=False)
    for path in ("summary.json", "report.html", "model.onnx"):
        if (result.folder / path).exists():
            out.print(f"{path.split('.')[0]}: {result.folder / path}", highlight=False, soft_wrap=True)


@app.command(
    epilog="Examples: fedpipe simulate federation.yaml  ·  fedpipe simulate federation.yaml --run trial-2 -p rounds=20"
)
def simulate(
    file: FederationFile,
    store: StoreOption = None,
    out_folder: OutOption = None,
    name: Annotated[str, typer.Option("--run", help="The run's name; the same name resumes.")] = "simulation-1",
    parameters: ParameterOption = None,
) -> None:
    """Rehearse a federation on this machine with TensorFlow Federated; a second run of the same name resumes."""
    _run(file, store, out_folder, name, parameters, simulation=True)


def _near(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose store may be inside a cluster that this machine is not: it is given one that it reaches."""

    @functools.wraps(command)
    def nearer(**given: Any) -> None:
        from fedpipe.federation.file import read_federation
        from fedpipe.store import chosen_uri

        own = read_federation(given["file"]).store_uri
        uri = chosen_uri(given["store"], own)
        if ".svc" not in uri:
            command(**given)
            return
        from fedpipe.kubeflow.forwarding import reachable_store

        with reachable_store(uri, Where(context=given.get("context", ""))) as near:
            command(**{**given, "store": near})

    return nearer


RunName = Annotated[str, typer.Argument(help="The run's name, as `fedpipe run --run` takes it.", metavar="RUN")]
FederationOption = Annotated[Path, typer.Option("--federation", "-f", help="The federation file.")]


@app.command(epilog="Examples: fedpipe plot run-1  ·  fedpipe plot run-1 -f demo/federation.yaml -o votes.png --once")
@_near
def plot(
    run_name: RunName,
    file: FederationOption = Path("federation.yaml"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="An .html, .svg or .png file; RUN.html by default.")
    ] = None,
    store: StoreOption = None,
    once: Annotated[bool, typer.Option("--once", help="Draw what is there, and end.")] = False,
) -> None:
    """Draw a run's scores and ballots; draw them again after each round until the run has ended."""
    from fedpipe.commands.plot import plot as draw

    path = output or Path(f"{run_name}.html")

    def tell(state: str) -> None:
        out.print(f"{path}: {_escaped(state)}", highlight=False, soft_wrap=True)

    draw(file, run_name, path, store=store, live=not once, listener=tell)


@app.command(
    epilog="Examples: fedpipe watch run-1  ·  fedpipe watch run-1 -f demo/federation.yaml  ·  "
    "fedpipe watch run-1 --namespace hospitals"
)
@_near
@connected
def watch(
    run_name: RunName,
    file: FederationOption = Path("federation.yaml"),
    store: StoreOption = None,
    *,
    where: Where,
) -> None:
    """Follow a run from its store, wherever it runs: rounds, metrics, who is awaited, seconds of each phase.

    With --host or --namespace, Kubernetes is asked too: which pods wait, and why.
    """
    from fedpipe.commands.watch import watch as follow

    pods = None
    if where.host or where.namespace:
        from fedpipe.kubeflow.pods import watcher

        pods = watcher(run_name, where)

    with out.status("looking") as status:

        def tell(line: str, state: str) -> None:
            if line:
                out.print(_escaped(line), highlight=False, soft_wrap=True)
            status.update(_escaped(state))

        follow(file, run_name, store=store, listener=tell, pods=pods)


LearnerName = Annotated[str, typer.Argument(help="A learner of the federation file.", metavar="[LEARNER]")]
CoordinatorOption = Annotated[
    bool, typer.Option("--coordinator", help="The coordinator instead: its key signs the models that it publishes.")
]
KeysOption = Annotated[
    Path | None, typer.Option("--keys", help="Folder of the key files; `keys` beside the federation file by default.")
]
AccessKeyOption = Annotated[
    str | None, typer.Option("--access-key", help="A user of the store that was made already.", metavar="KEY")
]
SecretKeyOption = Annotated[
    Path | None, typer.Option("--secret-key-file", help="A file with that user's secret key.", metavar="FILE")
]


@app.command(
    epilog="Examples: fedpipe enroll hospital-a  ·  fedpipe enroll --coordinator  ·  "
    "fedpipe enroll hospital-a --access-key KEY --secret-key-file FILE"
)
@_near
def enroll(
    learner: LearnerName = "",
    coordinator: CoordinatorOption = False,
    file: FederationOption = Path("federation.yaml"),
    store: StoreOption = None,
    keys: KeysOption = None,
    access_key: AccessKeyOption = None,
    secret_key_file: SecretKeyOption = None,
) -> None:
    """Give a learner its identity: a key that signs its updates, a user of the store, a Kubernetes Secret."""
    from fedpipe.commands.identities import enroll as make

    given = _given_user(access_key, secret_key_file)
    made = make(file, _whose(learner, coordinator), store=store, keys=keys, given=given)
    _tell_identity(made, "is enrolled")
    if coordinator:
        _tell_to_sign("versions that were published before")


@app.command(epilog="Examples: fedpipe rotate hospital-a -f demo/federation.yaml  ·  fedpipe rotate --coordinator")
@_near
def rotate(
    learner: LearnerName = "",
    coordinator: CoordinatorOption = False,
    file: FederationOption = Path("federation.yaml"),
    store: StoreOption = None,
    keys: KeysOption = None,
    access_key: AccessKeyOption = None,
    secret_key_file: SecretKeyOption = None,
) -> None:
    """Give an enrolled learner new keys; the old ones are worth nothing from then on."""
    from fedpipe.commands.identities import rotate as make

    given = _given_user(access_key, secret_key_file)
    made = make(file, _whose(learner, coordinator), store=store, keys=keys, given=given)
    _tell_identity(made, "has new keys")
    if coordinator:
        _tell_to_sign("versions that the old key signed")


@app.command(epilog="Examples: fedpipe revoke hospital-a -f demo/federation.yaml  ·  fedpipe revoke --coordinator")
@_near
def revoke(
    learner: LearnerName = "",
    coordinator: CoordinatorOption = False,
    file: FederationOption = Path("federation.yaml"),
    store: StoreOption = None,
) -> None:
    """Take a learner's identity away: no update of it counts any more."""
    from fedpipe.commands.identities import revoke as take

    left = take(file, _whose(learner, coordinator), store=store)
    told = "the coordinator is revoked: its models" if coordinator else f"{learner} is revoked: its updates"
    out.print(f"{told} are refused", highlight=False)
    if left:
        out.print(f"remove its user of the store, {_escaped(left)}: fedpipe did not make it", highlight=False)


def _whose(learner: str, coordinator: bool) -> str:
    """The learner, or the coordinator. Raises InputError."""
    from fedpipe.identity.signing import COORDINATOR

    if coordinator == bool(learner):
        raise InputError("whose identity it is must be said", remedy="Give a LEARNER, or --coordinator.")
    return COORDINATOR if coordinator else learner


@app.command(epilog="Examples: fedpipe sign digits 3 -f demo/federation.yaml  ·  fedpipe sign digits 1 2 3 --keys keys")
@_near
def sign(
    name: Annotated[str, typer.Argument(help="The model's name.", metavar="NAME")],
    versions: Annotated[list[int], typer.Argument(help="Published versions.", metavar="VERSION...")],
    file: FederationOption = Path("federation.yaml"),
    store: StoreOption = None,
    keys: KeysOption = None,
) -> None:
    """Sign published models with the coordinator's key, where it was enrolled, or got a new key, after them."""
    from fedpipe.commands.identities import sign as put

    for entry in put(file, name, versions, store=store, keys=keys):
        out.print(f"{entry} is signed by the coordinator", highlight=False)


@app.command(epilog="Examples: fedpipe policy hospital-a  ·  fedpipe policy  ·  fedpipe policy --server")
def policy(
    learner: Annotated[str, typer.Argument(help="A learner; without it, the coordinator.", metavar="[LEARNER]")] = "",
    file: FederationOption = Path("federation.yaml"),
    store: StoreOption = None,
    server: Annotated[bool, typer.Option("--server", help="That of `fedpipe serve`.")] = False,
) -> None:
    """Print what a learner, the coordinator or the server may do in the store, as a policy of S3."""
    from fedpipe.commands.identities import policy_of

    print(json.dumps(policy_of(file, learner, store=store, server=server), indent=2))


SecretFolder = Annotated[
    Path | None, typer.Option(help="A folder with the files accesskey and secretkey, as a Secret is mounted.")
]


@app.command(epilog="Example: fedpipe prepare 's3://bucket/hospitals/digits?endpoint=http://minio:9000' --server keys")
def prepare(
    uri: Annotated[str, typer.Argument(help="The federation's part of the store.", metavar="s3://BUCKET/PREFIX/NAME")],
    coordinator: SecretFolder = None,
    server: SecretFolder = None,
) -> None:
    """Make a federation's bucket, and users for its coordinator and its server, as the store's administrator."""
    from fedpipe.commands.identities import prepare as make
    from fedpipe.store import SECRET_DIR
    from fedpipe.store.s3_client import find_credentials

    users = [find_credentials({SECRET_DIR: str(folder)}) if folder else None for folder in (coordinator, server)]
    for line in make(uri, coordinator=users[0], server=users[1]):
        out.print(_escaped(line), highlight=False, soft_wrap=True)


def _given_user(access_key: str | None, secret_key_file: Path | None) -> Credentials | None:
    """The keys of a user that was made already. Raises InputError."""
    from fedpipe.store.s3_client import Credentials

    if access_key is None and secret_key_file is None:
        return None
    if access_key is None or secret_key_file is None:
        raise InputError("a user has two keys", where="--access-key", remedy="Give --access-key and --secret-key-file.")
    try:
        return Credentials(access_key, secret_key_file.read_text().strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=str(secret_key_file)) from error


def _tell_identity(made: Identity, what: str) -> None:
    out.print(f"{made.who} {what}", highlight=False)
    for path in made.files:
        out.print(f"wrote {path}", highlight=False, soft_wrap=True)
    if made.user:
        manifest = made.files[-1]
        out.print(f"its user of the store: {_escaped(made.user)}", highlight=False)
        out.print(f"next: kubectl apply -n NAMESPACE -f {manifest}", highlight=False, soft_wrap=True)
        out.print(f"and in the federation file, for {made.who}: secret: {made.secret}", highlight=False)


def _tell_to_sign(which: str) -> None:
    out.print(
        f"{which} are not served any more, unless you `fedpipe sign NAME VERSION`", highlight=False, soft_wrap=True
    )


@app.command(epilog="Examples: fedpipe runs -f demo/federation.yaml  ·  fedpipe runs --json")
@_near
def runs(
    file: FederationOption = Path("federation.yaml"),
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the runs of a federation, the latest first."""
    from fedpipe.commands.compare import runs as find

    found = find(file, store=store)
    if as_json:
        print(json.dumps([line._asdict() for line in found], indent=2))
        return
    if not found:
        out.print("no run has begun here", highlight=False)
        return
    table = Table("run", "rounds", "state", "last round", "ago", box=None, pad_edge=False, header_style="dim")
    for line in found:
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in line.metrics.items() if "/" not in name)
        mark = " (HEAD)" if line.at_head else ""
        planned = "?" if line.planned is None else line.planned
        table.add_row(f"{line.name}{mark}", f"{line.rounds} of {planned}", line.state, numbers, _ago(line.age))
    out.print(table)


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


@app.command(epilog="Examples: fedpipe compare run-1 run-2  ·  fedpipe compare run-1 run-2 run-3 --json")
@_near
def compare(
    names: Annotated[list[str], typer.Argument(help="Two runs or more.", metavar="RUN RUN...")],
    file: FederationOption = Path("federation.yaml"),
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show in which settings runs differ, and what came out; `fedpipe report --beside` draws them."""
    from fedpipe.commands.compare import compare as put_beside

    if len(names) < 2:
        raise InputError("one run is beside nothing", remedy="Name two: fedpipe compare RUN RUN.")
    found = put_beside(file, names, store=store)
    if as_json:
        print(json.dumps(found._asdict(), indent=2))
        return
    table = Table("", *found.runs, box=None, pad_edge=False, header_style="bold")
    for path, values in found.settings.items():
        table.add_row(path, *values)
    if not found.settings:
        table.add_row("[dim]the same settings[/]")
    table.add_section()
    for name, numbers in found.results.items():
        table.add_row(name, *("" if value is None else f"{value:.6g}" for value in numbers))
    out.print(table)


@app.command(epilog="Example: fedpipe stop run-1 -f demo/federation.yaml")
@_near
def stop(run_name: RunName, file: FederationOption = Path("federation.yaml"), store: StoreOption = None) -> None:
    """End a session after its current round; the model of then is evaluated and exported."""
    from fedpipe.commands.stop import stop as ask

    out.print(_escaped(ask(file, run_name, store=store)), highlight=False, soft_wrap=True)


@app.command(
    epilog="Examples: fedpipe tensorboard run-1 -f demo/federation.yaml  ·  fedpipe tensorboard run-1 --copy events"
)
@_near
def tensorboard(
    run_name: RunName,
    file: FederationOption = Path("federation.yaml"),
    store: StoreOption = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen at.")] = "localhost",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0: a free one.")] = 6006,
    copy: Annotated[
        Path | None, typer.Option("--copy", help="Only copy the event files to this folder.", metavar="DIR")
    ] = None,
) -> None:
    """Show a run's event files in TensorBoard, also while it goes on."""
    import tempfile

    from fedpipe.commands.opened import open_federation
    from fedpipe.commands.tensorboard import fetch_events, show

    opened, _ = open_federation(file, store)
    if copy is not None:
        out.print(f"{fetch_events(opened, run_name, copy)} event files in {copy}", highlight=False, soft_wrap=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        code = show(opened, run_name, Path(folder), host=host, port=port)
    raise typer.Exit(code)


@app.command(epilog="Example: fedpipe report run-2 --beside run-1 -o report.html")
@_near
def report(
    run_name: RunName,
    file: FederationOption = Path("federation.yaml"),
    beside: Annotated[
        list[str] | None, typer.Option("--beside", help="Another run of the federation to show beside it; repeatable.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    store: StoreOption = None,
) -> None:
    """Write a run's report anew from the store, with other runs beside it."""
    from fedpipe.commands.compare import report as write

    with err.status("drawing"):
        write(file, run_name, output, store=store, beside=beside or [])
    out.print(f"wrote {output}", highlight=False, soft_wrap=True)


@app.command(epilog="Example: fedpipe export federation.yaml -o model.onnx")
def export(
    file: FederationFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file.")] = Path("model.onnx"),
    store: StoreOption = None,
    name: Annotated[str | None, typer.Option("--run", help="A run; by default the one at HEAD.")] = None,
) -> None:
    """Write the shared model as an ONNX file, verified against Keras."""
    from fedpipe.commands.export import export as export_model

    with err.status("converting"):
        origin = export_model(file, output, store=store, name=name)
    out.print(
        f"wrote {output}: opset {origin['opset']}, differs from Keras by {origin['max_abs_difference']:.2g} over "
        f"{origin['compared']} {origin['samples']} samples",
        highlight=False,
        soft_wrap=True,
    )
    out.print(origin["digest"], highlight=False)


@app.command(
    epilog="Examples: fedpipe predict model.onnx data.npz  ·  fedpipe predict http://localhost:8080 digit.png  ·  "
    "fedpipe predict http://host/v2/models/digits/versions/3 rows.csv"
)
def predict(
    model: Annotated[str, typer.Argument(help="An ONNX model, or the URL of a server.", metavar="FILE|URL")],
    data: Annotated[Path, typer.Argument(help="An .npz, .npy, .csv or .png file.", metavar="DATA")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write all outputs to an .npz file.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Rows to show.")] = 10,
) -> None:
    """Predict with an ONNX model, or with one that a server has."""
    import numpy as np

    from fedpipe.registry.features import read_features
    from fedpipe.registry.prediction import Predictor, open_model
    from fedpipe.registry.prediction import predict as predict_batch

    opened: Predictor
    if model.startswith(("http://", "https://")):
        from fedpipe.serving.client import RemoteModel

        opened = RemoteModel(model)
    else:
        opened = open_model(Path(model))
    features, labels = read_features(data, opened.inputs[0], opened.card.spread)
    found = predict_batch(opened, features)
    table = Table(
        "example",
        "prediction",
        *(["probability"] if found.classes is not None else []),
        *(["label"] if labels is not None else []),
    )
    for row in range(min(rows, len(features))):
        answer = (
            found.name(row)
            if found.classes is not None
            else np.array2string(found.outputs[row], precision=4, threshold=8)
        )
        extra = [f"{found.probabilities[row]:.4f}"] if found.probabilities is not None else []
        table.add_row(str(row), _escaped(answer), *extra, *([str(labels[row])] if labels is not None else []))
    out.print(table)
    if len(features) > rows:
        out.print(f"{rows} of {len(features)} shown", highlight=False)
    if found.classes is not None and labels is not None and labels.shape == found.classes.shape:
        out.print(f"accuracy {np.mean(found.classes == labels):.4f} over {len(labels)} examples", highlight=False)
    if output is not None:
        kept: dict[str, Any] = {"outputs": found.outputs}
        if found.classes is not None:
            kept["classes"] = found.classes
        try:
            with output.open("wb") as file:
                np.savez_compressed(file, **kept)
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", where=str(output)) from error
        out.print(f"wrote {output}", highlight=False, soft_wrap=True)


@app.command(
    epilog="Examples: fedpipe serve -f demo/federation.yaml  ·  fedpipe serve --store s3://bucket/prefix/digits  ·  "
    "fedpipe serve --models folder --port 0"
)
def serve(
    store: Annotated[
        str | None,
        typer.Option("--store", help="A store, or one federation in it: s3://bucket/prefix[/NAME] or a folder."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--federation", "-f", help="A federation file, which names the store; ./federation.yaml by default."
        ),
    ] = None,
    models: Annotated[
        Path | None, typer.Option("--models", help="A folder of NAME/VERSION/model.onnx.", metavar="DIR")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0: a free one.")] = 8080,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder for copies, so that a restart needs no store.", metavar="DIR")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the bearer token that clients must show.")
    ] = None,
    poll: Annotated[float, typer.Option("--poll", min=0.1, help="Seconds between looks for new versions.")] = 5.0,
    sessions: Annotated[int, typer.Option("--sessions", min=0, help="Runs at a time; 0: one per four cores.")] = 0,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads of one run; 0: cores by sessions.")] = 0,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Most examples of requests that are run together; 1: none are.")
    ] = 1,
    batch_delay: Annotated[
        float, typer.Option("--batch-delay", min=0.0, help="Milliseconds that a request waits for others.")
    ] = 2.0,
    body_limit: Annotated[float, typer.Option("--body-limit", min=0.001, help="Largest request, in MiB.")] = 64.0,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that a request may take.")] = 30.0,
    drain: Annotated[
        float, typer.Option("--drain", min=0.0, help="Seconds after SIGTERM in which requests are still taken.")
    ] = 0.0,
    access_log: Annotated[
        bool, typer.Option("--access-log/--no-access-log", help="A line of JSON for each request.")
    ] = True,
) -> None:
    """Serve the accepted models over HTTP with the Open Inference Protocol."""
    import logging

    from fedpipe.serving.app import Limits
    from fedpipe.serving.catalogue import locate
    from fedpipe.serving.runner import Batching
    from fedpipe.serving.server import Options
    from fedpipe.serving.server import serve as serve_models

    body = int(body_limit * 2**20)
    options = Options(
        host=host, port=port, cache=cache, token=_token(token_file), poll=poll, sessions=sessions, threads=threads,
        batching=Batching(batch, batch_delay / 1000), limits=Limits(body=body, bodies=4 * body, seconds=timeout),
        drain=drain, access_log=access_log,
    )  # fmt: skip
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("fedpipe").setLevel(logging.INFO)
    location = locate(source=_named(file, store, models), store=store, folder=models)
    serve_models(
        location,
        options,
        on_listening=lambda address: err.print(f"serving at {address}", highlight=False, soft_wrap=True),
    )


def _named(file: Path | None, store: str | None, models: Path | None) -> Path | None:
    """The federation file: the one in this folder when nothing else says where the models are."""
    here = Path("federation.yaml")
    return here if not (file or store or models) and here.is_file() else file


def _token(file: Path | None) -> str:
    """The token in a file, or in FEDPIPE_TOKEN."""
    if file is None:
        return os.environ.get("FEDPIPE_TOKEN", "")
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the token cannot be read", where=str(file)) from error
    if not token or not token.isascii():
        raise InputError("there is no token of ASCII characters in it", where=str(file))
    return token


@app.command(
    epilog="Examples: fedpipe promote digits 3 -f demo/federation.yaml  ·  fedpipe promote digits 4 --canary 0.1  ·  "
    "fedpipe promote digits --latest"
)
def promote(
    name: Annotated[str, typer.Argument(help="The model's name.", metavar="NAME")],
    version: Annotated[
        int | None, typer.Argument(help="A version; an older one to go back.", metavar="VERSION")
    ] = None,
    latest: Annotated[bool, typer.Option("--latest", help="The newest version that loads, from now on.")] = False,
    canary: Annotated[
        float | None,
        typer.Option(
            "--canary", min=0.0, max=1.0, help="Share of the requests; the version that answers keeps the rest."
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option("--federation", "-f", help="The federation file.")] = None,
    store: Annotated[str | None, typer.Option("--store", help="A store, as of `fedpipe serve`.")] = None,
    models: Annotated[Path | None, typer.Option("--models", help="A folder, as of `fedpipe serve`.")] = None,
) -> None:
    """Decide which version of a model answers; servers follow within seconds."""
    from fedpipe.serving.catalogue import locate
    from fedpipe.serving.promotion import promote as decide
    from fedpipe.serving.promotion import split_for

    home = locate(source=_named(file, store, models), store=store, folder=models).find_folder(name).models
    split = decide(home, name, split_for(home, name, version, latest=latest, canary=canary)).split
    out.print(f"{name}: {_escaped(str(split))} from now on", highlight=False, soft_wrap=True)


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example, as Kubeflow calls it: fedpipe step train '{{$}}'",
)
def step(
    name: Annotated[str, typer.Argument(help="The step.")],
    executor_input: Annotated[str, typer.Argument(help="KFP's executor input, JSON.")],
) -> None:
    """Run one step of a pipeline: what the containers do."""
    from fedpipe.steps.contract import main as run_step

    sys.exit(run_step([name, executor_input]))
