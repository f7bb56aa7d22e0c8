"""A finding of `fedpipe doctor`."""

from __future__ import annotations

from typing import Literal, NamedTuple

COORDINATOR = "the coordinator"
SECONDS = 20


class Finding(NamedTuple):
    """Something that was looked at: what it is, whether it is well, and what to do if it is not."""

    level: Literal["ok", "warning", "error"]
    subject: str
    what: str
    remedy: str = ""
