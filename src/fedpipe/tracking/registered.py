"""Finds published models by their entry in Kubeflow's Model Registry, as KServe does.

Source: `model-registry://[HOST/]NAME[/VERSION]` of the registry's storage initializer (kubeflow/model-registry).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from msgspec import Struct

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


class _Artifact(Struct, frozen=True):
    """The artifact of a version, with the URI of the model's file."""

    uri: str = ""


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
    store, number = _place_of(artifact.uri if artifact else "", name, address)
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


def _place_of(uri: str, name: str, address: str) -> tuple[str, int]:
    """Returns the URI of the federation's part of the store, and the version, from the URI of a model's file.

    >>> _place_of("s3://bucket/f/models/digits/3/model.onnx?endpoint=http://minio:9000&defaultRegion=eu", "digits", "")
    ('s3://bucket/f?endpoint=http://minio:9000&region=eu', 3)
    """
    head, _, query = uri.partition("?")
    place, models, key = head.rpartition(f"/{keys.MODELS}/")
    entry = keys.parse_model(key)
    if not models or entry is None:
        what = f"the entry of model {name!r} is not one that fedpipe made: its file is {uri!r}"
        raise InputError(what, where=address, remedy="Serve it with --models and a folder.")
    given = dict(parse_qsl(query))
    known = {"endpoint": given.get("endpoint", ""), "region": given.get("defaultRegion", "")}
    text = urlencode({word: value for word, value in known.items() if value}, safe=":/")
    return (f"{place}?{text}" if text and urlsplit(place).scheme == "s3" else place), entry[1]
