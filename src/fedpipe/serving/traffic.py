"""Which versions of a model answer: the latest, a pinned one, or a canary beside it. Recorded by compare-and-swap."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from fedpipe.errors import CorruptError, NotFoundError
from fedpipe.store import Store, keys
from fedpipe.store.objects import decode

Version = Annotated[int, Meta(ge=1, le=2**53)]
KEPT = 100
"""Changes of a policy that it remembers."""


class Split(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who answers.

    Args:
        kind: `latest`, the newest version that loads; `pinned`, `version`; `canary`, `canary` for a share of the
            requests and `version` for the others.
    """

    kind: Literal["latest", "pinned", "canary"] = "latest"
    version: Version | None = None
    canary: Version | None = None
    share: Annotated[float, Meta(ge=0, le=1)] = 0.0

    def __post_init__(self) -> None:
        wanted = {"latest": (False, False), "pinned": (True, False), "canary": (True, True)}[self.kind]
        if (self.version is not None, self.canary is not None) != wanted:
            raise ValueError(f"the versions do not fit a policy that is {self.kind}")

    def __str__(self) -> str:
        if self.kind == "canary":
            return f"version {self.canary} for {self.share:.1%} of the requests, version {self.version} for the others"
        return f"version {self.version}" if self.kind == "pinned" else "the latest version"


class Change(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was decided, and when, in seconds since 1970."""

    rule: Split
    time: float


class Traffic(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rule that holds and the last hundred decisions, the newest last."""

    format: int = 1
    rule: Split = Split()
    changes: tuple[Change, ...] = ()


def read_traffic(models: Store, name: str) -> tuple[Traffic, str]:
    """The policy and its version in the store; the default and "" when there is none. Raises CorruptError."""
    key = keys.traffic(name)
    try:
        blob = models.read(key)
    except NotFoundError:
        return Traffic(), ""
    try:
        return decode(blob.data, Traffic, where=f"{models.uri}/{key}"), blob.version
    except ValueError as error:  # of __post_init__ where msgspec passes it on
        raise CorruptError(str(error), where=f"{models.uri}/{key}") from error
