"""Names, numbers and the base that all sections of the federation file share."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

SAFE_NAME = r"^[a-z0-9]([a-z0-9\-]{0,38}[a-z0-9])?\Z"
"""The form of a name that can be part of an object key, a pod's name and a short step name."""

Name = Annotated[str, Meta(pattern=SAFE_NAME)]
KUBEFLOWS_SECRET = "mlpipeline-minio-artifact"  # noqa: S105  (the name of a secret)
"""The Secret in which Kubeflow keeps the keys of its own store."""
Fraction = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[int, Meta(ge=1)]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the file; unknown keys are errors."""


def tag_of(settings: Struct) -> str:
    """Return the `name` of these settings in the federation file."""
    return str(settings.__struct_config__.tag)
