"""Publish the final model as ONNX, verified against the trained one."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from fedpipe.errors import NotFoundError
from fedpipe.rounds.plan import RunPlace, read_plan
from fedpipe.steps.contract import ModelArtifact
from fedpipe.store import keys
from fedpipe.store.objects import decode, encode


class Inputs(Struct, frozen=True, kw_only=True):
    """The weights to publish."""

    place: RunPlace
    weights: str


class Outputs(Struct, frozen=True, kw_only=True):
    """The published version."""

    onnx: dict[str, Any]
    model: ModelArtifact


def find(inputs: Inputs) -> Outputs | None:
    """Return the version when these weights are already published."""
    store, key = inputs.place.open(), keys.onnx(inputs.place.run)
    try:
        onnx = decode(store.read(key).data, dict, where=key)
    except NotFoundError:
        return None
    return _outputs(onnx) if onnx.get("weights") == inputs.weights and store.size(onnx["path"]) is not None else None


def run(inputs: Inputs) -> Outputs:
    """Publish once; a repeated step finds the version."""
    if found := find(inputs):
        return found
    from fedpipe.registry.export import publish

    store = inputs.place.open()
    exported = publish(store, read_plan(store, inputs.place.plan), inputs.weights)
    onnx = {"path": exported.path, "version": exported.version, **msgspec.to_builtins(exported.origin)}
    store.replace(keys.onnx(inputs.place.run), encode(onnx))
    return _outputs(onnx)


def _outputs(onnx: dict[str, Any]) -> Outputs:
    return Outputs(onnx=onnx, model=ModelArtifact(metadata={k: v for k, v in onnx.items() if k != "federation"}))
