"""Publish the final model as ONNX, verified against the trained one."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from msgspec import Struct

from fedpipe.registry.gate import refusal
from fedpipe.rounds.agreement import agreed_plan
from fedpipe.rounds.history import history, is_trained
from fedpipe.rounds.plan import RunPlace
from fedpipe.steps.contract import ModelArtifact
from fedpipe.store import keys
from fedpipe.store.objects import encode
from fedpipe.store.objects import find as find_object

log = logging.getLogger("fedpipe")


class Inputs(Struct, frozen=True, kw_only=True):
    """The weights to publish."""

    place: RunPlace
    weights: str


class Outputs(Struct, frozen=True, kw_only=True):
    """The published version, or why none is published; empty when nothing was trained."""

    onnx: dict[str, Any]
    model: ModelArtifact


def find(inputs: Inputs) -> Outputs | None:
    """Return the version when these weights are already published with these settings, or are not trained."""
    store, run = inputs.place.open(), inputs.place.run
    onnx = find_object(store, keys.onnx(run), dict)
    if onnx is None or onnx.get("weights") != inputs.weights:
        if is_trained(history(store, run)):
            return None
        log.warning("run %s has trained nothing, so no model is published", run)
        return Outputs(onnx={}, model=ModelArtifact())
    if onnx.get("settings") != agreed_plan(store, inputs.place).exporting:
        return None
    return _outputs(onnx) if "rejected" in onnx or store.size(onnx["path"]) is not None else None


def run(inputs: Inputs) -> Outputs:
    """Publish once; a repeated step finds the version."""
    if found := find(inputs):
        return found
    from fedpipe.registry.export import publish

    store = inputs.place.open()
    plan = agreed_plan(store, inputs.place)
    if why := refusal(store, plan, inputs.weights):
        log.warning("run %s publishes no model: %s", plan.run, why)
        onnx: dict[str, Any] = {"rejected": why, "weights": inputs.weights, "settings": plan.exporting}
    else:
        exported = publish(store, plan, inputs.weights)
        onnx = {
            "path": exported.path, "version": exported.version, "settings": plan.exporting,
            **msgspec.to_builtins(exported.origin),
        }  # fmt: skip
    store.replace(keys.onnx(inputs.place.run), encode(onnx))
    return _outputs(onnx)


def _outputs(onnx: dict[str, Any]) -> Outputs:
    shown = {k: v for k, v in onnx.items() if k not in ("federation", "settings")}
    return Outputs(onnx=onnx, model=ModelArtifact(metadata=shown))
