"""Options and arguments that several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fedpipe.errors import InputError
from fedpipe.kubeflow.where import Where


def given_folder(text: str) -> Path:
    """Return the path of a folder. Raises InputError for an empty text, which would mean the current folder."""
    if not text.strip():
        raise InputError("the folder's name is empty", remedy="Name a folder; `.` is the current one.")
    return Path(text)


FederationFile = Annotated[Path, typer.Argument(help="The federation file.", metavar="FILE")]
FederationOption = Annotated[Path, typer.Option("--federation", "-f", help="The federation file.")]
FEDERATION = Path("federation.yaml")
"""The federation file of commands that follow a run."""
StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="s3://bucket/prefix or file:///folder, instead of the store in the federation file."),
]
RunName = Annotated[str, typer.Argument(help="The run's name, as in `fedpipe run --run`.", metavar="RUN")]
RunOption = Annotated[
    str | None, typer.Option("--run", help="The run's name, by default run-1; the same name resumes.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", parser=given_folder, metavar="DIR", help="Folder for summary.json, report.html and model.onnx."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
ParameterOption = Annotated[
    list[str] | None, typer.Option("--parameter", "-p", help="A run-time parameter, NAME=VALUE; repeatable.")
]
KeysOption = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        parser=given_folder,
        metavar="DIR",
        help="Folder of the key files; by default `keys` next to the federation file.",
    ),
]


def given_parameters(parameters: list[str] | None) -> dict[str, str]:
    """Return run-time parameters from texts of the form NAME=VALUE. Raises InputError."""
    given = {}
    for text in parameters or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"{text!r} is not NAME=VALUE", where="--parameter", remedy="Write it like -p rounds=20.")
        given[key] = value
    return given


def given_days(text: str | None, where: str) -> float | None:
    """Return an age or a life in days; None without one. Raises InputError, which names the option `where`."""
    if text is None:
        return None
    from fedpipe.commands.arguments import AGES, DAY, seconds_of_age

    if (seconds := seconds_of_age(text)) is None:
        raise InputError(f"{text!r} is not an age", where=where, remedy=f"Write {AGES}.")
    return seconds / DAY


_CONNECTION: dict[str, tuple[Any, Any]] = {
    "host": (
        Annotated[
            str,
            typer.Option("--host", envvar="KF_PIPELINES_ENDPOINT", help="URL of Kubeflow; by default from kubeconfig."),
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
        Annotated[str, typer.Option("--context", help="Context of the kubeconfig; by default the current one.")], "",
    ),
    "token_file": (
        Annotated[
            Path | None,
            typer.Option("--token-file", envvar="FEDPIPE_KFP_TOKEN_FILE", help="File with a bearer token."),
        ],
        None,
    ),
}  # fmt: skip
"""The options that locate Kubeflow: annotation and default of each field of `Where`."""


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `where` of a command by the options that locate Kubeflow."""
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


def forwarded(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command reach a store inside a cluster from a machine outside it, by port forwarding."""

    @functools.wraps(command)
    def with_forwarding(**given: Any) -> None:
        from fedpipe.federation.file import read_federation
        from fedpipe.store import chosen_uri

        uri = chosen_uri(given["store"], read_federation(given["file"]).store_uri)
        if not uri.startswith("s3://"):
            command(**given)
            return
        from fedpipe.kubeflow.forwarding import reachable_store

        where = Where(context=given.get("context", ""), namespace=given.get("namespace", ""))
        with reachable_store(uri, where) as near:
            command(**(given if near == uri else {**given, "store": near}))

    return with_forwarding
