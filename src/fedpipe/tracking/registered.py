"""Finds published models by their entry in Kubeflow's Model Registry, as KServe does.

Source: `model-registry://[HOST/]NAME[/VERSION]` of the registry's storage initializer (kubeflow/model-registry).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode

from msgspec import Struct, field

from fedpipe.errors import InputError, NotFoundError
from fedpipe.store import keys
from fedpipe.store.userinfo import check_no_credentials
from fedpipe.tracking.model_registry import API, Resource, find_entry, open_registry

SCHEME = "model-registry://"
BASE_URL = "MODEL_REGISTRY_BASE_URL"
"""Environment variable with the registry's address, as of KServe's storage initializer."""
_FORM = f"Write {SCHEME}HOST:PORT/NAME[/VERSION], or set {BASE_URL} and write {SCHEME}NAME[/VERSION]."


class Found(NamedTuple):
    """A registered model: URI of its federation's part of the store, its name, and its version; 0 for all."""

    store: str
    name: str
    version: int


class _Value(Struct, frozen=True):
    """A property of an entry; only texts count here."""

    string_value: str = ""


class _Artifact(Struct, frozen=True):
    """The artifact of a version, with the URI of its folder, or of its file, and the place of the bucket."""

    uri: str = ""
    properties: dict[str, _Value] | None = field(default=None, name="customProperties")


class _Versions(Struct, frozen=True):
    """A page of a model's versions."""

    items: tuple[Resource, ...] = ()


def find_registered(uri: str, environ: Mapping[str, str] = os.environ) -> Found:
    """Finds where the models of an entry are.

    Args:
        uri: `model-registry://[HOST:PORT/]NAME[/VERSION]`.
        environ: variables with the registry's address and a token.

    Raises:
        InputError: the URI is malformed, or the entry is not of a model that fedpipe published.
        NotFoundError: the registry has no such entry.
        ServiceError: the registry refuses or is away.
        FedpipeError: the token cannot be read.
    """
    address, name, version = _parsed(uri, environ)
    registry = open_registry(address, environ)
    remedy = "Register it with `export.registry`, or check the name."
    model = find_entry(registry, "registered_model", {"name": name})
    if model is None:
        raise NotFoundError(f"the model registry has no model {name!r}", where=address, remedy=remedy)
    if version:
        entry = find_entry(registry, "model_version", {"name": version, "parentResourceId": model})
    else:
        newest = {"orderBy": "CREATE_TIME", "sortOrder": "DESC", "pageSize": "1"}
        listed = registry.get(f"{API}/registered_models/{model}/versions", _Versions, **newest)
        entry = next((one.id for one in listed.items), None)
    if entry is None:
        what = f"the model registry has no version{f' {version!r}' if version else ''} of model {name!r}"
        raise NotFoundError(what, where=address, remedy=remedy)
    artifact = registry.find(f"{API}/model_artifact", _Artifact, name=name, parentResourceId=entry)
    store, number = _place_of(artifact or _Artifact(), name, address)
    return Found(store, name, number if version else 0)


def _parsed(uri: str, environ: Mapping[str, str]) -> tuple[str, str, str]:
    """Returns the registry's address, and the names of model and version. Raises InputError."""
    check_no_credentials(uri, "store")
    first, *rest = parts = [unquote(part) for part in uri.removeprefix(SCHEME).split("/")]
    if rest and (":" in first or len(parts) == 3):
        address, parts = f"http://{first}", rest
    else:
        address = environ.get(BASE_URL, "").rstrip("/")
        address = address if not address or "://" in address else f"http://{address}"
    if not all(parts) or len(parts) > 2 or any(c in uri for c in "?#"):
        raise InputError("the URI names no model of a registry", where=uri, remedy=_FORM)
    if not address:
        raise InputError("the URI does not name the registry's address", where=uri, remedy=_FORM)
    name, version = [*parts, ""][:2]
    return address, name, version


_PLACE = re.compile(rf"(.*)/{keys.MODELS}/([^/]+/[^/]+)/(?:model\.onnx)?\Z")
"""The federation's part of a store, and a version of a model in it."""


def _place_of(artifact: _Artifact, name: str, address: str) -> tuple[str, int]:
    """Returns the URI of the federation's part of the store, and the version, from the artifact of a version.

    >>> _place_of(_Artifact("s3://bucket/f/models/digits/3/", {"endpoint": _Value("http://minio:9000")}), "digits", "")
    ('s3://bucket/f?endpoint=http://minio:9000', 3)
    """
    head, _, query = artifact.uri.partition("?")
    match = _PLACE.match(head)
    entry = keys.parse_model(f"{match[2]}/model.onnx") if match else None
    if match is None or entry is None:
        what = f"the entry of model {name!r} is not one that fedpipe made: its URI is {artifact.uri!r}"
        raise InputError(what, where=address, remedy="Serve it with --models and a folder.")
    given = {key: value.string_value for key, value in (artifact.properties or {}).items()} | dict(parse_qsl(query))
    known = {"endpoint": given.get("endpoint", ""), "region": given.get("defaultRegion") or given.get("region", "")}
    text = urlencode({word: value for word, value in known.items() if value}, safe=":/")
    return (f"{match[1]}?{text}" if text and match[1].startswith("s3://") else match[1]), entry[1]
