"""Publishes the final model as ONNX, verified against Keras."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from fedpipe.objects import encode
from fedpipe.plan import Place, read_plan
from fedpipe.steps.contract import Model


class Inputs(Struct, frozen=True, kw_only=True):
    """Which weights."""

    place: Place
    weights: str


class Outputs(Struct, frozen=True, kw_only=True):
    """The published version."""

    onnx: dict[str, Any]
    model: Model


def run(inputs: Inputs) -> Outputs:
    """Publishes once; a repeated step finds the version."""
    store = inputs.place.open()
    plan = read_plan(store, inputs.place.plan)
    from fedpipe.onnx_export import publish

    exported = publish(store, plan, inputs.weights)
    onnx = {"path": exported.path, "version": exported.version, **msgspec.to_builtins(exported.origin)}
    store.replace(f"runs/{plan.run}/onnx", encode(onnx))
    return Outputs(onnx=onnx, model=Model(metadata={k: v for k, v in onnx.items() if k != "federation"}))
