"""Where Kubeflow is, as a user says it: apart from the clients, whose imports other commands need not pay."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Where(NamedTuple):
    """Where Kubeflow is; what is empty is what the environment and the kubeconfig say.

    Args:
        host: URL of KFP.
        namespace: where the pods of runs are.
        kfp_namespace: where KFP itself is.
        context: of the kubeconfig.
        token_file: a file with a bearer token for KFP.
    """

    host: str = ""
    namespace: str = ""
    kfp_namespace: str = "kubeflow"
    context: str = ""
    token_file: Path | None = None
