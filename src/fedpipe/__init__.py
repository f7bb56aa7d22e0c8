"""fedpipe: federated training as Kubeflow Pipelines components.

check               a federation file, its data, its model and its store
compile_pipeline    a federation to one KFP pipeline file
export              the shared model to a verified ONNX file
open_store          file://, s3:// and memory:// stores
predict             an ONNX model's answers
read_federation     federation.yaml to typed structs
run                 a federation or a compiled pipeline on this machine
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedpipe.errors import FedpipeError
    from fedpipe.federation_file import read_federation
    from fedpipe.kubeflow.compilation import compile_pipeline
    from fedpipe.prediction import predict
    from fedpipe.runs import check, export, run
    from fedpipe.store import open_store

__version__ = "0.1.0"
__all__ = [
    "FedpipeError",
    "check",
    "compile_pipeline",
    "export",
    "open_store",
    "predict",
    "read_federation",
    "run",
]

_HOMES = {
    "FedpipeError": "errors",
    "check": "runs",
    "compile_pipeline": "kubeflow.compilation",
    "export": "runs",
    "open_store": "store",
    "predict": "prediction",
    "read_federation": "federation_file",
    "run": "runs",
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: a step must not pay for what it does not need."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedpipe' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fedpipe.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
