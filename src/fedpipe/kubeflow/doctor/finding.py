"""Defines a finding of `fedpipe doctor`, and the constants that its checks share."""

from __future__ import annotations

from typing import Literal, NamedTuple

THE_COORDINATOR = "the coordinator"
"""The coordinator where owners of Secrets and signing keys are named; no learner can have this name."""
REQUEST_SECONDS = 20
"""How long a request to Kubernetes may take."""


class Finding(NamedTuple):
    """Describes the result of one check: its level, its subject, the observation, and a remedy for a problem."""

    level: Literal["ok", "warning", "error"]
    subject: str
    what: str
    remedy: str = ""
