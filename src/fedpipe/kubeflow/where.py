"""Defines the options that locate Kubeflow; apart from the clients, so that other commands need not import those."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Where(NamedTuple):
    """Locates Kubeflow; empty values come from the environment and the kubeconfig.

    Args:
        host: URL of KFP.
        namespace: namespace of the pods of runs.
        kfp_namespace: namespace of KFP itself.
        context: context of the kubeconfig.
        token_file: file with a bearer token for KFP.
    """

    host: str = ""
    namespace: str = ""
    kfp_namespace: str = "kubeflow"
    context: str = ""
    token_file: Path | None = None
