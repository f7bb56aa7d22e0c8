"""Settings of the tracking server that shows a run's curves."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from fedpipe.federation.names import Section

TRACKING_KEYS = {
    "token": "MLFLOW_TRACKING_TOKEN",
    "username": "MLFLOW_TRACKING_USERNAME",
    "password": "MLFLOW_TRACKING_PASSWORD",
}
"""Maps keys of the Secret to the variables that MLflow's own clients read, and steps too."""


class Tracking(Section, frozen=True, kw_only=True):
    """Sends a run's parameters, curves, report and model to MLflow, and never holds up a run."""

    mlflow: Annotated[
        str,
        Meta(description="`http(s)://host[:port]` of the server; empty: MLFLOW_TRACKING_URI, and none without it"),
    ] = ""
    experiment: Annotated[
        str,
        Meta(
            max_length=250,
            description="experiment of the runs; empty: MLFLOW_EXPERIMENT_NAME, or else the federation's name",
        ),
    ] = ""
    secret: Annotated[
        str,
        Meta(
            description="Kubernetes secret with the server's `token`, or `username` and `password`; empty: pods have "
            "the credentials of their environment"
        ),
    ] = ""
