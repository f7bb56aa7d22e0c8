"""fedpipe: federated training as Kubeflow Pipelines components.

check               a federation file, its data, its model and its store
compile_pipeline    a federation to one KFP pipeline file
export              the shared model to a verified ONNX file
open_store          file://, s3:// and memory:// stores
predict             an ONNX model's answers
prune               old runs from a store
read_federation     federation.yaml to typed structs
run                 a federation or a compiled pipeline on this machine
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedpipe.version import __version__ as __version__

if TYPE_CHECKING:
    from fedpipe.commands.check import check
    from fedpipe.commands.export import export
    from fedpipe.commands.prune import prune
    from fedpipe.commands.run import run
    from fedpipe.compiled.compiler import compile_pipeline
    from fedpipe.errors import FedpipeError
    from fedpipe.federation.file import read_federation
    from fedpipe.registry.prediction import predict
    from fedpipe.store import open_store

__all__ = [
    "FedpipeError",
    "check",
    "compile_pipeline",
    "export",
    "open_store",
    "predict",
    "prune",
    "read_federation",
    "run",
]

_HOMES = {
    "FedpipeError": "errors",
    "check": "commands.check",
    "compile_pipeline": "compiled.compiler",
    "export": "commands.export",
    "open_store": "store",
    "predict": "registry.prediction",
    "prune": "commands.prune",
    "read_federation": "federation.file",
    "run": "commands.run",
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: a step must not import unneeded modules."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedpipe' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fedpipe.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
