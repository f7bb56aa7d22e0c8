"""Registers a published model with Kubeflow's Model Registry, by its REST API v1alpha3.

A model of the registry has a version for each published one, and that has one artifact: its folder. All three are
found by name, so a repeated step registers nothing twice. The fields are those of the API's OpenAPI description.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from msgspec import Struct

from fedpipe.errors import FedpipeError, ServiceError
from fedpipe.federation.federation import Federation
from fedpipe.identity.signing import Signature
from fedpipe.registry.publication import ModelVersion
from fedpipe.reports.story import Story
from fedpipe.rounds.measures import main_metrics
from fedpipe.store import Store, keys
from fedpipe.store.network import read_address
from fedpipe.store.objects import find
from fedpipe.tracking.service import Service

TOKEN = "MODEL_REGISTRY_TOKEN"  # noqa: S105  (the name of a variable)
TOKEN_PATH = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105
"""Environment variables: a bearer token, or the file of one, as Kubeflow mounts it."""
API = "api/model_registry/v1alpha3"
"""The path of the registry's API."""
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
Property = str | int | float | bool


class Resource(Struct, frozen=True):
    """Identifies a model, a version or an artifact, as the registry returns it."""

    id: str


class Registered(NamedTuple):
    """A version in the registry: name and number of the model, and the ids of its entries."""

    name: str
    version: int
    model_id: str
    version_id: str
    artifact_id: str


class Source(NamedTuple):
    """Where a model comes from, in the words of the registry.

    Args:
        kind: `kfp`, or `fedpipe` on a laptop.
        of: the class: `pipelinerun`, or `run`.
        group: the namespace.
        id: of the pipeline's run.
        name: of the federation's run.
    """

    kind: str
    of: str
    group: str
    id: str
    name: str


def source_of(run: str, job: str, namespace: Path = _NAMESPACE) -> Source:
    """Returns the source of a run's model.

    Args:
        run: its name.
        job: id of the pipeline's run; that of a laptop begins with `local-`.
        namespace: the file with a pod's namespace.
    """
    if not job or job.startswith("local-"):
        return Source("fedpipe", "run", "", run, run)
    try:
        group = namespace.read_text().strip()
    except OSError:
        group = ""
    return Source("kfp", "pipelinerun", group, job, run)


def register(
    store: Store, story: Story, registry: str, source: Source, environ: Mapping[str, str] = os.environ
) -> Registered:
    """Registers the model of a run, or brings its entries up to date.

    Args:
        store: the federation's store.
        story: of the run, whose model is published.
        registry: URL of the registry.
        source: the pipeline's run.
        environ: variables with the token.

    Raises:
        ServiceError: the registry refuses or is away.
        FedpipeError: the token or the store cannot be read.
    """
    service = open_registry(registry, environ)
    entry = ModelVersion(*_entry(story))
    described = _properties(story, _signer(store, entry))
    federation = story.plan.federation
    model = _kept(
        service, "registered_model", {"name": entry.name}, "registered_models",
        {"name": entry.name, "description": f"ONNX models of the federation {federation.name}"},
        {"customProperties": _as_metadata({"federation": federation.name}), "state": "LIVE"},
    )  # fmt: skip
    version = _kept(
        service, "model_version", {"name": str(entry.version), "parentResourceId": model}, "model_versions",
        {"name": str(entry.version), "registeredModelId": model, "description": _sentence(story)},
        {"customProperties": _as_metadata(described), "state": "LIVE"},
    )  # fmt: skip
    artifact = _kept(
        service, "model_artifact", {"name": entry.name, "parentResourceId": version},
        f"model_versions/{version}/artifacts",
        {"name": entry.name, "artifactType": "model-artifact"},
        {
            "artifactType": "model-artifact", "uri": uri_of(story.store, federation, str(story.onnx["path"])),
            "modelFormatName": "onnx", "modelFormatVersion": str(story.onnx["opset"]), "modelSourceKind": source.kind,
            "modelSourceClass": source.of, "modelSourceGroup": source.group, "modelSourceId": source.id,
            "modelSourceName": source.name, "customProperties": _as_metadata({**described, **server_of(story.store)}),
            "state": "LIVE",
        },
        updates="model_artifacts",
    )  # fmt: skip
    return Registered(*entry, model, version, artifact)


def open_registry(url: str, environ: Mapping[str, str] = os.environ) -> Service:
    """Returns the registry at a URL, with the token of the environment.

    Raises:
        ServiceError: the URL is not one of a server.
        FedpipeError: the token cannot be read.
    """
    address = read_address(url)
    if address is None:
        raise ServiceError("the model registry has no URL http(s)://host[:port]", where=url)
    token = _token(environ)
    if token:
        address = address._replace(authorization=f"Bearer {token}")
    return Service("the model registry", address)


def _kept(
    service: Service, found_by: str, query: dict[str, str], collection: str, fixed: dict[str, Any],
    changing: dict[str, Any], *, updates: str = "",
) -> str:  # fmt: skip
    """Creates an entry, or updates the one of this name; returns its id."""
    found = find_entry(service, found_by, query)
    if found is None:
        try:
            return service.send("POST", f"{API}/{collection}", {**fixed, **changing}, Resource).id
        except ServiceError as error:
            if error.status != 409 or (found := find_entry(service, found_by, query)) is None:
                raise  # otherwise another process was faster
    return service.send("PATCH", f"{API}/{updates or collection}/{found}", changing, Resource).id


def find_entry(service: Service, found_by: str, query: dict[str, str]) -> str | None:
    """Returns the id of an entry; None if there is none. Raises ServiceError."""
    found = service.find(f"{API}/{found_by}", Resource, **query)
    return found.id if found else None


def uri_of(store: str, federation: Federation, key: str) -> str:
    """Returns the URI of the folder of a version's objects, as the registry's storage initializer reads it for KServe.

    That takes all after the bucket as a prefix, so the URI has no query, and ends with a slash: version 1 is not 10.

    >>> from fedpipe.federation.file import parse_federation
    >>> tiny = parse_federation({"name": "f", "learners": [{"name": "a"}], "training": {"rounds": 1, "batch_size": 1},
    ...                          "data": {"uri": "x.npz"}})
    >>> uri_of("s3://bucket/prefix?endpoint=http://minio:9000", tiny, "models/f/1/model.onnx")
    's3://bucket/prefix/f/models/f/1/'
    """
    return f"{store.partition('?')[0].rstrip('/')}/{federation.name}/{key.rpartition('/')[0]}/"


def server_of(store: str) -> dict[str, Property]:
    """Returns endpoint and region of a bucket, which are properties of the artifact."""
    query = dict(parse_qsl(urlsplit(store).query))
    return {name: query[name] for name in ("endpoint", "region") if query.get(name)}


def _entry(story: Story) -> tuple[str, int]:
    path = str(story.onnx["path"]).removeprefix(f"{keys.MODELS}/")
    found = keys.parse_model(path)
    if found is None:
        raise ServiceError(f"{story.onnx['path']!r} is not the key of a model")
    return found


def _signer(store: Store, entry: ModelVersion) -> str:
    """Returns the public key of the coordinator that signed the version; empty without a signature."""
    signature = find(store.below(keys.MODELS), keys.signature(*entry), Signature)
    return signature.key if signature else ""


def _properties(story: Story, signer: str) -> dict[str, Property]:
    """Returns what describes the version: origin, digests, signature and metrics."""
    last = next(record for record in reversed(story.records) if record.accepted)
    found: dict[str, Property] = {
        "federation": story.plan.federation.name, "run": story.plan.run, "round": last.round,
        "record": last.ref.record, "weights": str(story.onnx["weights"]), "digest": str(story.onnx["digest"]),
    }  # fmt: skip
    if signer:
        found["signature_key"] = signer
    evaluation = story.evaluation
    for kind in ("central", "federated"):
        measured = getattr(evaluation, kind) if evaluation else None
        for name, value in main_metrics(measured.metrics, measured.measures).items() if measured else ():
            found[f"{kind}_{name}"] = float(value)
    return found


def _sentence(story: Story) -> str:
    learners = len(story.plan.federation.learners)
    return f"Run {story.plan.run} of the federation {story.plan.federation.name}: {learners} learners"


def _as_metadata(properties: Mapping[str, Property]) -> dict[str, dict[str, Any]]:
    """Returns properties as the API's MetadataValue; numbers that JSON lacks become text."""
    return {name: _metadata(value) for name, value in properties.items() if value != ""}


def _metadata(value: Property) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"metadataType": "MetadataBoolValue", "bool_value": value}
    if isinstance(value, int):
        return {"metadataType": "MetadataIntValue", "int_value": str(value)}
    if isinstance(value, float) and abs(value) < float("inf"):
        return {"metadataType": "MetadataDoubleValue", "double_value": value}
    return {"metadataType": "MetadataStringValue", "string_value": str(value)}


def _token(environ: Mapping[str, str]) -> str:
    if token := environ.get(TOKEN, "").strip():
        return token
    path = environ.get(TOKEN_PATH, "")
    try:
        return Path(path).read_text().strip() if path else ""
    except OSError as error:
        raise FedpipeError(f"the token cannot be read: {error.strerror}", where=f"{TOKEN_PATH}={path}") from error
