"""fedpipe: federated training as Kubeflow Pipelines components.

Each command is a function of its name; docs/python.md lists them. A federation is a file, a dictionary or a
`Federation`. Keyword arguments change keys of it: `fedpipe.run("federation.yaml", training={"rounds": 3})`.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from typing import TYPE_CHECKING, Any

from fedpipe.version import __version__ as __version__

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime, also in model.py, would report its use to its makers

if TYPE_CHECKING:
    from fedpipe.commands.check import check
    from fedpipe.commands.compare import compare, report, runs
    from fedpipe.commands.compile import compile
    from fedpipe.commands.explore import explore
    from fedpipe.commands.export import export
    from fedpipe.commands.identities import enroll, prepare, revoke, rotate
    from fedpipe.commands.identities import policy_of as policy
    from fedpipe.commands.init import init
    from fedpipe.commands.invitations import invite
    from fedpipe.commands.plot import plot
    from fedpipe.commands.predict import predict_file
    from fedpipe.commands.promote import promote
    from fedpipe.commands.prune import prune
    from fedpipe.commands.publish import sign
    from fedpipe.commands.put import put
    from fedpipe.commands.repair import repair
    from fedpipe.commands.run import run, simulate
    from fedpipe.commands.serve import serve
    from fedpipe.commands.stop import stop
    from fedpipe.commands.tensorboard import tensorboard
    from fedpipe.commands.watch import watch
    from fedpipe.compiled.compiler import compile_pipeline
    from fedpipe.errors import FedpipeError
    from fedpipe.federation.algorithms import Averaging, Collective, SimulationSettings, Vote
    from fedpipe.federation.data import Data
    from fedpipe.federation.federation import Federation, LearnerSettings
    from fedpipe.federation.file import read_federation
    from fedpipe.federation.methods import Ditto, FedNova, FedProx, MrMtl, Scaffold, Sharing
    from fedpipe.federation.placement import Images, Placement, StorePlace
    from fedpipe.federation.training import EvaluationSettings, Export, Privacy, Quorum, Training
    from fedpipe.kubeflow.doctor.diagnosis import diagnose as doctor
    from fedpipe.kubeflow.schedules import change_schedule, delete_schedule, schedule, schedules
    from fedpipe.kubeflow.submission import resume, submit
    from fedpipe.kubeflow.where import Where
    from fedpipe.registry.prediction import predict
    from fedpipe.store import open_store

__all__ = [
    "Averaging",
    "Collective",
    "Data",
    "Ditto",
    "EvaluationSettings",
    "Export",
    "FedNova",
    "FedProx",
    "Federation",
    "FedpipeError",
    "Images",
    "LearnerSettings",
    "MrMtl",
    "Placement",
    "Privacy",
    "QuantileBound",
    "Quorum",
    "Scaffold",
    "SecureSums",
    "Sharing",
    "SimulationSettings",
    "StorePlace",
    "Training",
    "Vote",
    "Where",
    "change_schedule",
    "check",
    "compare",
    "compile",
    "compile_pipeline",
    "delete_schedule",
    "doctor",
    "enroll",
    "explore",
    "export",
    "init",
    "invite",
    "open_store",
    "plot",
    "policy",
    "predict",
    "predict_file",
    "prepare",
    "promote",
    "prune",
    "put",
    "read_federation",
    "repair",
    "report",
    "resume",
    "revoke",
    "roster",
    "rotate",
    "run",
    "runs",
    "schedule",
    "schedules",
    "serve",
    "sign",
    "simulate",
    "stop",
    "submit",
    "tensorboard",
    "verify",
    "watch",
]

_HOMES = {
    "Averaging": "federation.algorithms",
    "Collective": "federation.algorithms",
    "Data": "federation.data",
    "Ditto": "federation.methods",
    "EvaluationSettings": "federation.training",
    "Export": "federation.training",
    "FedNova": "federation.methods",
    "FedProx": "federation.methods",
    "Federation": "federation.federation",
    "FedpipeError": "errors",
    "Images": "federation.placement",
    "LearnerSettings": "federation.federation",
    "MrMtl": "federation.methods",
    "Placement": "federation.placement",
    "Privacy": "federation.training",
    "QuantileBound": "federation.algorithms",
    "Quorum": "federation.training",
    "Scaffold": "federation.methods",
    "SecureSums": "federation.algorithms",
    "Sharing": "federation.methods",
    "SimulationSettings": "federation.algorithms",
    "StorePlace": "federation.placement",
    "Training": "federation.training",
    "Vote": "federation.algorithms",
    "Where": "kubeflow.where",
    "change_schedule": "kubeflow.schedules",
    "delete_schedule": "kubeflow.schedules",
    "check": "commands.check",
    "compare": "commands.compare",
    "compile": "commands.compile",
    "compile_pipeline": "compiled.compiler",
    "doctor": "kubeflow.doctor.diagnosis:diagnose",
    "enroll": "commands.identities",
    "explore": "commands.explore",
    "export": "commands.export",
    "init": "commands.init",
    "invite": "commands.invitations",
    "open_store": "store",
    "plot": "commands.plot",
    "policy": "commands.identities:policy_of",
    "predict": "registry.prediction",
    "predict_file": "commands.predict",
    "prepare": "commands.identities",
    "promote": "commands.promote",
    "prune": "commands.prune",
    "put": "commands.put",
    "read_federation": "federation.file",
    "repair": "commands.repair",
    "report": "commands.compare",
    "resume": "kubeflow.submission",
    "revoke": "commands.identities",
    "roster": "commands.roster",
    "rotate": "commands.identities",
    "run": "commands.run",
    "runs": "commands.compare",
    "schedule": "kubeflow.schedules",
    "schedules": "kubeflow.schedules",
    "serve": "commands.serve",
    "sign": "commands.publish",
    "simulate": "commands.run",
    "stop": "commands.stop",
    "submit": "kubeflow.submission",
    "tensorboard": "commands.tensorboard",
    "verify": "commands.verify",
    "watch": "commands.watch",
}


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: a step must not import unneeded modules."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedpipe' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    module, _, own_name = _HOMES[name].partition(":")
    found = getattr(importlib.import_module(f"fedpipe.{module}"), own_name or name)
    if isinstance(found, types.FunctionType):
        from fedpipe.commands.arguments import checked

        found = checked(found, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
