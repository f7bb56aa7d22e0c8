"""Describes the traffic of a model as an InferenceService of KServe, which splits requests between two revisions.

KServe keeps the revision that it rolled out last, and gives the new one a percentage. So the manifest names the version
on trial with its share, or else the version that answers. The server reads `/mnt/models/NAME/VERSION/model.onnx`, as
`fedpipe serve --models` and Triton do.

Source: `storageUris` and `canaryTrafficPercent` of serving.kserve.io/v1beta1 (kserve/kserve at aaac4e294).
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from fedpipe.errors import InputError, NotFoundError
from fedpipe.registry.publication import versions
from fedpipe.serving.traffic import read_traffic
from fedpipe.store import Store

_READABLE = ("s3", "gs", "https", "http")
"""Schemes of stores of models that KServe reads too."""


def inference_service(models: Store, name: str, *, runtime: str = "fedpipe") -> dict[str, Any]:
    """Returns the manifest for the current traffic of a model.

    Args:
        models: the folder that holds the model.
        name: the model.
        runtime: the ServingRuntime, such as the chart's release or `kserve-tritonserver`.

    Raises:
        InputError: KServe cannot read the store.
        NotFoundError: the model has no version.
    """
    split = read_traffic(models, name)[0].split
    version = split.canary or split.version or max(versions(models).get(name, []), default=None)
    if version is None:
        raise NotFoundError(f"model {name!r} has no version", where=models.uri, remedy="Run the federation first.")
    predictor: dict[str, Any] = {}
    if split.kind == "canary":
        predictor["canaryTrafficPercent"] = _percent(split.share)
    predictor["model"] = {"modelFormat": {"name": "onnx"}, "protocolVersion": "v2", "runtime": runtime}
    uri = f"{_folder_uri(models)}/{name}/{version}/"  # without the slash, KServe also reads versions that begin so
    predictor["storageUris"] = [{"uri": uri, "mountPath": f"/mnt/models/{name}/{version}"}]
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": _service_name(name), "annotations": {"fedpipe/version": str(version)}},
        "spec": {"predictor": predictor},
    }


def _percent(share: float) -> int:
    """Returns a share in whole per cent, as KServe takes it; a small one is not lost.

    >>> [_percent(share) for share in (0.0, 0.001, 0.125, 0.999, 1.0)]
    [0, 1, 12, 99, 100]
    """
    return round(share * 100) if share in (0, 1) else min(max(round(share * 100), 1), 99)


def check_readable(models: Store) -> None:
    """Checks that KServe reads stores of this kind. Raises InputError."""
    scheme = urlsplit(models.uri).scheme
    if scheme not in _READABLE:
        what = f"KServe cannot read a store of the kind {scheme!r}"
        raise InputError(what, where=models.uri, remedy="Use a federation whose store is a bucket.")


def _folder_uri(models: Store) -> str:
    """Returns the folder's URI without endpoint and region, which KServe takes from the account's Secret."""
    check_readable(models)
    return models.uri.partition("?")[0].rstrip("/")


def _service_name(name: str) -> str:
    """Returns a name that KServe accepts: small letters, digits and `-`, with a letter in front.

    >>> _service_name("Digits_v2.1"), _service_name("8x8")
    ('digits-v2-1', 'model-8x8')
    """
    text = re.sub(r"[^a-z0-9]+", "-", name.lower())
    return (text if text[:1].isalpha() else f"model-{text}")[:53].strip("-")
