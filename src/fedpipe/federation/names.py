"""Names, numbers and the base that all sections of the federation file share.

Every number has two finite bounds. Infinity, NaN and numbers that no machine can hold are refused where they are read.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

SAFE_NAME = r"^[a-z0-9]([a-z0-9\-]{0,38}[a-z0-9])?\Z"
"""The form of a name that can be part of an object key, a pod's name and a short step name."""
SAFE_NAME_OR_NONE = r"^([a-z0-9]([a-z0-9\-]{0,38}[a-z0-9])?)?\Z"
CODE = r"^[^:]+\.py(:[A-Za-z_]\w*)?\Z"
CODE_OR_NONE = r"^([^:]+\.py(:[A-Za-z_]\w*)?)?\Z"
CORES = r"^(\d{1,9}(\.\d{1,9})?m?)?\Z"
BYTES = r"^(\d{1,15}(\.\d{1,9})?(E|P|T|G|M|K|Ei|Pi|Ti|Gi|Mi|Ki)?)?\Z"
_NAMED = "Use at most 40 lower-case letters, digits and '-', with a letter or digit at both ends."
FORMS = {
    SAFE_NAME: ("not a safe name", _NAMED),
    SAFE_NAME_OR_NONE: ("not a safe name", _NAMED),
    CODE: ("does not name a function", "Write FILE.py:FUNCTION, such as model.py:build."),
    CODE_OR_NONE: ("does not name a function", "Write FILE.py:FUNCTION, or leave it empty."),
    CORES: ("is not a number of cores", "Write cores such as '4' or '500m', in quotes."),
    BYTES: ("is not a size", "Write a size such as '8Gi' or '500Mi', in quotes."),
    r"^sha256:[0-9a-f]{64}\Z": ("is not a digest", "Write sha256: and 64 hexadecimal digits, as `make images` does."),
}
"""Each pattern of the file: the mistake in a text that does not match it, and the remedy."""

Name = Annotated[str, Meta(pattern=SAFE_NAME)]
KUBEFLOWS_SECRET = "mlpipeline-minio-artifact"  # noqa: S105  (the name of a secret)
"""The Secret in which Kubeflow keeps the keys of its own store."""

YEAR = 366 * 24 * 3600
"""Most seconds of a deadline or a timeout."""
MOST = 10**9
"""Most examples, steps or pieces; larger counts have no use, and overflow the libraries below."""
MOST_ROUNDS = 10**6
MOST_LEARNERS = 10_000
MOST_TRIES = 1000
MOST_NOISE = 1e4
"""Most noise, in clipping norms; accountants lose their precision above it."""
LEAST_NOISE = {"rdp": 1e-9, "pld": 0.1}
"""Least noise by accountant: with less, one divides by zero, and the other takes hours."""
MOST_STEPS = 20_000
"""Most steps of learners in a pipeline file; Argo's limit is far below."""
MOST_DIFFERENCE = 1e6
LARGE = 1e9
"""The largest number that is not a count, such as a norm or a learning rate."""

Fraction = Annotated[float, Meta(ge=0, le=1)]
Share = Annotated[float, Meta(ge=0, lt=1)]
InnerShare = Annotated[float, Meta(gt=0, lt=1)]
Count = Annotated[int, Meta(ge=0, le=MOST)]
Positive = Annotated[int, Meta(ge=1, le=MOST)]
Rounds = Annotated[int, Meta(ge=1, le=MOST_ROUNDS)]
Learners = Annotated[int, Meta(ge=0, le=MOST_LEARNERS)]
Interval = Annotated[int, Meta(ge=0, le=MOST_ROUNDS)]
Tries = Annotated[int, Meta(ge=0, le=MOST_TRIES)]
Seed = Annotated[int, Meta(ge=0, lt=2**31)]
Seconds = Annotated[float, Meta(ge=0, le=YEAR)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=YEAR)]
Amount = Annotated[float, Meta(ge=0, le=LARGE)]
PositiveAmount = Annotated[float, Meta(gt=0, le=LARGE)]
WholeSeconds = Annotated[int, Meta(ge=0, le=YEAR)]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the file; unknown keys are errors."""


def split_code(named: str) -> tuple[str, str]:
    """Split `FILE.py:FUNCTION` into its parts; the function is `build` by default.

    >>> split_code("/a:b/model.py:make"), split_code("model.py")
    (('/a:b/model.py', 'make'), ('model.py', 'build'))
    """
    file, colon, function = named.rpartition(":")
    return (file, function) if colon and file.endswith(".py") else (named, "build")


def tag_of(settings: Struct) -> str:
    """Return the `name` of these settings in the federation file."""
    return str(settings.__struct_config__.tag)
