"""All errors, as one tree.

FedpipeError                    exit code
├── InputError                  2   a mistake in the user's input; nothing was changed
│   ├── FederationError         2   in federation.yaml, with the path of the key
│   ├── DataError               2   in examples or labels
│   ├── ModelError              2   in model.py or the model that it builds
│   ├── PipelineError           2   in a compiled pipeline file
│   └── MissingExtraError       2   a package that this command needs is not installed
├── StoreError                  2   the store refuses or cannot be reached
│   ├── StoreUnavailableError   2   no answer before the deadline
│   ├── NotFoundError           2   no such object
│   └── TooLargeError           2   an object above its reader's limit
├── ClusterError                2   Kubeflow or Kubernetes refuses or cannot be reached
├── ServiceError                2   a tracking server or a model registry refuses or cannot be reached
├── CorruptError                3   bytes that contradict their claims
│   └── WeightsError            3   weights that are malformed or do not fit
├── RoundError                  3   a round cannot be committed
│   ├── QuorumError             3   too few learners took part
│   ├── DroppedError            3   this learner cannot take part in this round
│   │   └── BudgetError         3   its privacy budget does not allow another training
│   └── ConflictError           3   another run moved HEAD
├── ExportError                 3   the ONNX model differs from the trained one
└── StepError                   3   a step of a pipeline failed
    └── WorkerDiedError         3   the process ended while it worked
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

_CREDENTIALS = re.compile(
    r"(?<=://)(?:[^\s'\"?#@]*:[^\s'\"?#]*|[^\s/'\"?#]*)@|(?<=%3A%2F%2F)[^\s'\"&]*%40", re.IGNORECASE
)
"""A user's name and password in a URI, or in one that is a parameter of another."""


def _without_credentials(text: str) -> str:
    return _CREDENTIALS.sub("***@", text)


def one_line(error: object, most: int = 200) -> str:
    """Return the text of a foreign error in one line of at most so many characters, to follow after "because"."""
    return " ".join(str(error).split())[:most]


class FedpipeError(Exception):
    """The root of every error that fedpipe raises on purpose.

    Args:
        what: the error and its cause, as subject and verb.
        where: the file, key or object that has the error.
        remedy: the next action of the reader, as an imperative.
    """

    exit_code = 3

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what = _without_credentials(what)
        self.where, self.remedy = (text and _without_credentials(text) for text in (where, remedy))
        super().__init__(self.what, self.where, self.remedy)

    def __str__(self) -> str:
        located = f"{self.where}: {self.what}" if self.where else self.what
        return f"{located.rstrip('.')}. {self.remedy}" if self.remedy else located


class InputError(FedpipeError):
    """A mistake in the user's input; nothing was changed."""

    exit_code = 2


class FederationError(InputError):
    """A mistake in federation.yaml; `where` is the file and the path of the key."""


class DataError(InputError):
    """Examples or labels that cannot be used."""


class ModelError(InputError):
    """A model.py, or the model it builds, that cannot be used."""


class PipelineError(InputError):
    """A compiled pipeline file that cannot be run here."""


class MissingExtraError(InputError):
    """A package that is needed is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed", remedy=f"Run: pip install 'fedpipe[{extra}]'")


class StoreError(FedpipeError):
    """The store refuses a request or cannot serve it."""

    exit_code = 2


class StoreUnavailableError(StoreError):
    """The store gave no usable answer before the deadline."""


class NotFoundError(StoreError):
    """The store has no object with that key."""


class TooLargeError(StoreError):
    """An object is larger than its reader allows."""


class ClusterError(FedpipeError):
    """Kubeflow Pipelines or Kubernetes refuses a request or cannot be reached; `status` is HTTP's, 0 without one."""

    exit_code = 2
    status = 0


class ServiceError(FedpipeError):
    """A tracking server or a model registry refuses a request or cannot be reached.

    `status` is HTTP's, 0 without an answer; `code` is the server's own name of the error.
    """

    exit_code = 2
    status = 0
    code = ""


class CorruptError(FedpipeError):
    """Bytes that contradict their claims, such as a digest or a format."""


class WeightsError(CorruptError):
    """Weights that are malformed, or that do not fit the model of the round."""


class RoundError(FedpipeError):
    """A round cannot be committed; `lasting` when another attempt at it would end in the same way."""

    lasting = False

    def __init__(
        self, what: str, *, where: str | None = None, remedy: str | None = None, lasting: bool = False
    ) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.lasting = lasting


class QuorumError(RoundError):
    """Fewer learners than the quorum took part in a round; `missing` are those that did not."""

    missing: tuple[str, ...] = ()

    def __init__(
        self, what: str, *, where: str | None = None, remedy: str | None = None, lasting: bool = False,
        missing: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(what, where=where, remedy=remedy, lasting=lasting)
        self.missing = missing


class DroppedError(RoundError):
    """This learner cannot take part in this round, which continues without it."""


class BudgetError(DroppedError):
    """The privacy budget of this learner does not allow another training; `spent` is the spent part."""

    spent: Any = None

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None, spent: Any = None) -> None:
        super().__init__(what, where=where, remedy=remedy, lasting=True)
        self.spent = spent


class ConflictError(RoundError):
    """Another run moved HEAD, and the history is a single chain."""


class ExportError(FedpipeError):
    """The exported model and the trained one give different answers."""


class StepError(FedpipeError):
    """A step of a pipeline failed."""


class WorkerDiedError(StepError):
    """The process ended while it worked: killed, or out of memory."""


class Failure(NamedTuple):
    """An error on its way between processes."""

    kind: str
    what: str
    where: str | None
    remedy: str | None

    @classmethod
    def of(cls, error: FedpipeError) -> Failure:
        """Return the failure for an error."""
        return cls(type(error).__name__, error.what, error.where, error.remedy)

    def error(self) -> FedpipeError:
        """Return the error, with its original class."""
        kind: type[FedpipeError] = globals().get(self.kind, FedpipeError)
        error = kind.__new__(kind)
        FedpipeError.__init__(error, self.what, where=self.where, remedy=self.remedy)
        return error
