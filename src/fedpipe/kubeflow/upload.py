"""Compiles a federation and uploads it to KFP; when that fails, everything created for it is removed again."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedpipe.compiled.compiler import compile_pipeline, version_of, without_local_defaults
from fedpipe.compiled.graph import check_arguments, parse_graph
from fedpipe.errors import ClusterError, FedpipeError, InputError
from fedpipe.federation.federation import Federation
from fedpipe.federation.sources import Source, read_source
from fedpipe.kubeflow.clients import Kfp, cluster_errors, quiet
from fedpipe.rounds.plan import Settings
from fedpipe.store import is_uri

_PAGE_SIZE = 100
_ID_FIELD = {"pipelines": "pipeline_id", "pipeline_versions": "pipeline_version_id", "experiments": "experiment_id"}


class Compiled(NamedTuple):
    """Holds a federation, its pipeline file, the given run-time parameters, and its store's URI as pods reach it."""

    federation: Federation
    text: bytes
    parameters: dict[str, Any]
    pod_uri: str


class Uploaded(NamedTuple):
    """Identifies a version of the federation's pipeline on KFP, and the experiment for its runs."""

    pipeline_id: str
    version_id: str
    version: str
    experiment_id: str


def compile_source(source: Source, parameters: Mapping[str, Any]) -> Compiled:
    """Compiles a federation and checks it completely, before any request to KFP."""
    federation = read_source(source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compile_pipeline(federation, path)
        text = path.read_bytes()
    graph = parse_graph(next(iter(yaml.load_all(text, Loader=yaml.CSafeLoader))))
    checked = check_arguments(graph, parameters)
    Settings(**{name: checked[name] for name in Settings.__struct_fields__ if name in checked}).applied(federation)
    _check_reach(federation, checked, str(source) if isinstance(source, str | Path) else "federation")
    return Compiled(
        federation, without_local_defaults(text), {name: checked[name] for name in parameters}, str(checked["store"])
    )


def _check_reach(federation: Federation, arguments: Mapping[str, Any], source: str) -> None:
    """Refuses a store or data that only this machine can reach. Raises InputError."""
    if not str(arguments.get("store", "")).startswith("s3://"):
        raise InputError(
            f"the pods cannot reach the store {arguments.get('store')!r}",
            where=source,
            remedy="Set `store` to an s3:// URI with the endpoint that pods use, or pass -p store=s3://...",
        )
    for what, uri in [("data", str(arguments.get("data", "")))] + [
        (f"data of {m.name}", m.data) for m in federation.learners
    ]:
        if uri and not is_uri(uri):
            raise InputError(
                f"the pods cannot read the {what}: {uri!r} is a file on this machine",
                where=source,
                remedy="Run `fedpipe put FILE`, and use the URI that it prints.",
            )


class Undo(contextlib.ExitStack):
    """Removes created objects, and records those that could not be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.remaining: list[str] = []

    def remove_later(self, what: str, remove: Callable[[], Any]) -> None:
        """Removes an object if the body fails."""

        def undo() -> None:
            try:
                with cluster_errors(what):
                    remove()
            except ClusterError:
                self.remaining.append(what)

        self.callback(undo)


@contextlib.contextmanager
def undo_on_failure() -> Iterator[Undo]:
    """Removes the created objects if the body fails, and names those that remain in the error."""
    undo = Undo()
    try:
        yield undo
        undo.pop_all()
    except BaseException as error:
        undo.close()
        if undo.remaining and isinstance(error, FedpipeError):
            remedy = f"{error.remedy or ''} Remove by hand: {', '.join(undo.remaining)}.".strip()
            raise type(error)(error.what, where=error.where, remedy=remedy) from error
        raise


def upload(kfp: Kfp, compiled: Compiled, experiment: str, undo: Undo) -> Uploaded:
    """Finds or creates the pipeline, the version with exactly this content, and the experiment."""
    client, name = kfp.client, compiled.federation.name
    version = version_of(compiled.text)
    with tempfile.TemporaryDirectory() as folder, quiet(), cluster_errors(kfp.host):
        path = Path(folder) / "pipeline.yaml"
        path.write_bytes(compiled.text)
        pipeline_id = _find_id(kfp, client.list_pipelines, "pipelines", name, kfp.namespace)
        if not pipeline_id:
            body = kfp_api().V2beta1Pipeline(display_name=name, namespace=kfp.namespace)
            pipeline_id = client._pipelines_api.pipeline_service_create_pipeline(body).pipeline_id
            undo.remove_later(f"pipeline {name}", lambda: client.delete_pipeline(pipeline_id))

        def list_versions(**page: Any) -> Any:
            return client.list_pipeline_versions(pipeline_id, **page)

        version_id = _find_id(kfp, list_versions, "pipeline_versions", version)
        if not version_id:
            uploaded = client.upload_pipeline_version(str(path), version, pipeline_id=pipeline_id)
            version_id = uploaded.pipeline_version_id
            undo.remove_later(f"version {version}", lambda: client.delete_pipeline_version(pipeline_id, version_id))
        title = experiment or name
        experiment_id = _find_id(kfp, client.list_experiments, "experiments", title, kfp.namespace)
        if not experiment_id:
            experiment_id = client.create_experiment(title, namespace=kfp.namespace).experiment_id
            undo.remove_later(f"experiment {title}", lambda: client.delete_experiment(experiment_id))
    return Uploaded(pipeline_id, version_id, version, experiment_id)


def kfp_api() -> Any:
    """Returns the module of KFP's request models."""
    import kfp_server_api

    return kfp_server_api


def _find_id(kfp: Kfp, list_page: Callable[..., Any], kind: str, name: str, namespace: str | None = None) -> str:
    """Returns the id of the object with this name, or the empty string."""
    found = [one for one in list_all(kfp, list_page, kind, name, namespace) if one.display_name == name]
    return str(getattr(found[0], _ID_FIELD[kind])) if found else ""


def list_all(kfp: Kfp, list_page: Callable[..., Any], kind: str, name: str, namespace: str | None = None) -> list[Any]:
    """Lists the objects of all pages, optionally only those with a name."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    arguments: dict[str, Any] = {"filter": json.dumps({"predicates": [predicate]})} if name else {}
    if namespace:
        arguments["namespace"] = namespace
    found: list[Any] = []
    token = ""
    while True:
        with quiet(), cluster_errors(kfp.host):
            page = list_page(page_token=token, page_size=_PAGE_SIZE, **arguments)
        found += getattr(page, kind) or []
        token = page.next_page_token or ""
        if not token:
            return found
