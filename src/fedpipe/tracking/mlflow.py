"""Keeps a federation's run in MLflow, by its REST API.

Nothing of the state is here: a run is found by its tags, and its latest points say how far it has come. So a retried
pod, another pod and a laptop continue the same run, and send no point twice. The experiment, the run and its points are
those of MLflow 2 and 3 (https://mlflow.org/docs/latest/rest-api.html).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from msgspec import Struct

from fedpipe.errors import ServiceError
from fedpipe.federation.tracking import TRACKING_KEYS, Tracking
from fedpipe.store.network import Address, basic, read_address
from fedpipe.tracking.points import Point
from fedpipe.tracking.service import ANSWER_SECONDS, Service

MOST_POINTS = 900
"""Points of one request; MLflow takes 1000 metrics, parameters and tags together."""
_API = "api/2.0/mlflow"
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TRUE = ("true", "1")


class _Metric(Struct, frozen=True):
    key: str
    step: int | str = 0


class _Info(Struct, frozen=True):
    run_id: str
    experiment_id: str
    start_time: int | str = 0
    status: str = "RUNNING"
    artifact_uri: str = ""


class _Item(Struct, frozen=True):
    """A tag of a run, or a parameter."""

    key: str
    value: str = ""


class _Data(Struct, frozen=True):
    metrics: tuple[_Metric, ...] = ()
    params: tuple[_Item, ...] = ()
    tags: tuple[_Item, ...] = ()


class _Run(Struct, frozen=True):
    info: _Info
    data: _Data = _Data()


class _One(Struct, frozen=True):
    run: _Run


class _Found(Struct, frozen=True):
    runs: tuple[_Run, ...] = ()


class _Experiment(Struct, frozen=True):
    experiment_id: str


class _Named(Struct, frozen=True):
    experiment: _Experiment


class _Empty(Struct, frozen=True):
    """An answer without content that matters."""


class Place(NamedTuple):
    """The server and the experiment that the federation file and the environment name.

    Args:
        address: of the server, with its credentials.
        headers: of each request.
        verified: whether the server's certificate is checked.
        experiment: its name; empty for the federation's.
        experiment_id: its id, which counts before the name.
        parent: the run of KFP's step, below whose parent the run belongs; empty without one.
        seconds: the longest wait for an answer.
    """

    address: Address
    headers: Mapping[str, str] = {}
    verified: bool = True
    experiment: str = ""
    experiment_id: str = ""
    parent: str = ""
    seconds: float = ANSWER_SECONDS


def find_place(tracking: Tracking, environ: Mapping[str, str] = os.environ) -> Place | None:
    """Returns where runs are tracked; None without an MLflow server.

    The file's server and experiment count before MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME. MLFLOW_RUN_ID and
    MLFLOW_EXPERIMENT_ID are those of KFP's plugin, so they count on the environment's server only.

    Raises:
        ServiceError: MLFLOW_TRACKING_URI is not an http:// or https:// URL.
    """
    given = environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not (tracking.mlflow or given):
        return None
    own, named = read_address(given), read_address(tracking.mlflow)
    address = named or own
    if address is None:
        error = "MLFLOW_TRACKING_URI is not the http:// or https:// URL of a server"
        raise ServiceError(error, remedy="Start one with `mlflow server`, and set its URL.")
    is_own = own is not None and own.url == address.url
    experiment = tracking.experiment or environ.get("MLFLOW_EXPERIMENT_NAME", "")
    return Place(
        address=Address(address.url, _authorization(environ) or (own.authorization if own and is_own else "")),
        headers=_workspace(environ), verified=environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() not in _TRUE,
        experiment=experiment,
        experiment_id=environ.get("MLFLOW_EXPERIMENT_ID", "") if is_own and not tracking.experiment else "",
        parent=environ.get("MLFLOW_RUN_ID", "") if is_own else "", seconds=_seconds(environ),
    )  # fmt: skip


def _authorization(environ: Mapping[str, str]) -> str:
    """Returns the header with the credentials that MLflow's own clients would use."""
    token, user, password = (environ.get(TRACKING_KEYS[key], "") for key in ("token", "username", "password"))
    if user:
        return basic(user, password)
    if environ.get("MLFLOW_TRACKING_AUTH", "").startswith("kubernetes"):
        token = token or _of_account("token")
    return f"Bearer {token.strip()}" if token.strip() else ""


def _seconds(environ: Mapping[str, str]) -> float:
    """Returns the timeout of MLflow's own clients, if it is shorter than ours."""
    found = re.fullmatch(r"\d{1,4}(\.\d{1,9})?", environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", ""))
    return min(float(found[0]), ANSWER_SECONDS) if found and float(found[0]) else ANSWER_SECONDS


def _workspace(environ: Mapping[str, str]) -> dict[str, str]:
    found = environ.get("MLFLOW_WORKSPACE", "")
    if environ.get("MLFLOW_TRACKING_AUTH") == "kubernetes-namespaced":
        found = found or _of_account("namespace")
    return {"X-MLFLOW-WORKSPACE": found.strip()} if found.strip() else {}


def _of_account(name: str) -> str:
    """Returns a file of the pod's service account; empty outside a pod."""
    try:
        return (_ACCOUNT / name).read_text()
    except OSError:
        return ""


class Run:
    """A run in MLflow, found or created.

    Args:
        service: the server.
        found: the run as the server described it.
    """

    def __init__(self, service: Service, found: _Run) -> None:
        self._service, self._info = service, found.info
        self.status = found.info.status
        self.latest = {metric.key: int(metric.step) for metric in found.data.metrics}
        self.parameters = {item.key for item in found.data.params}
        self.tags = {item.key: item.value for item in found.data.tags}

    @property
    def page(self) -> str:
        """The address of the run's page."""
        return f"{self._service.url}/#/experiments/{self._info.experiment_id}/runs/{self._info.run_id}"

    def log(self, points: Sequence[Point], *, milliseconds: Mapping[int, int], tags: Mapping[str, str] = {}) -> None:
        """Sends points that the server does not have, in as few requests as it takes, and tags with the last.

        Args:
            points: as `fedpipe.tracking.points.unsent` returns them.
            milliseconds: the time of each round, since 1970.
            tags: to set.

        Raises:
            ServiceError: the server refuses or is away; the points of earlier requests are sent.
        """
        changed = {key: value for key, value in tags.items() if self.tags.get(key) != value}
        pieces = [points[start : start + MOST_POINTS] for start in range(0, len(points), MOST_POINTS)]
        for piece in pieces[:-1]:
            self._log(metrics=_metrics(piece, milliseconds))
        if pieces or changed:
            last = pieces[-1] if pieces else []
            self._log(metrics=_metrics(last, milliseconds), tags=_items(changed))
        self.latest |= {point.key: point.step for point in points}
        self.tags |= changed

    def log_parameters(self, parameters: Mapping[str, str]) -> None:
        """Sends the parameters that the server does not have: it refuses to change one. Raises ServiceError."""
        left = {key: value for key, value in parameters.items() if key not in self.parameters}
        if left:
            self._log(params=_items(left))
            self.parameters |= left.keys()

    def _log(self, **content: Any) -> None:
        body = {"run_id": self._info.run_id, **content}
        self._service.send("POST", f"{_API}/runs/log-batch", body, _Empty)

    def set_status(self, status: str, milliseconds: int = 0) -> None:
        """Sets RUNNING, FINISHED, FAILED or KILLED, with the time of the end. Raises ServiceError."""
        if status == self.status:
            return
        body: dict[str, Any] = {"run_id": self._info.run_id, "status": status}
        body |= {"end_time": milliseconds} if milliseconds else {}
        self._service.send("POST", f"{_API}/runs/update", body, _Empty)
        self.status = status

    def keeps_artifacts(self) -> bool:
        """Returns whether the server itself takes files, as `mlflow server` does by default."""
        parts = urlsplit(self._info.artifact_uri)
        own = urlsplit(self._service.url)
        return parts.scheme == "mlflow-artifacts" and parts.netloc in ("", own.netloc)

    def upload(self, name: str, file: Path, seconds: float) -> None:
        """Uploads a file among the run's artifacts. Raises ServiceError."""
        folder = urlsplit(self._info.artifact_uri).path.strip("/")
        self._service.upload(f"api/2.0/mlflow-artifacts/artifacts/{folder}/{name}", file, seconds)


def _items(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _metrics(points: Sequence[Point], milliseconds: Mapping[int, int]) -> list[dict[str, Any]]:
    return [
        {"key": p.key, "value": _number(p.value), "step": p.step, "timestamp": milliseconds[p.step]} for p in points
    ]


def _number(value: float) -> float | str:
    """Returns a number as protobuf's JSON has it.

    >>> _number(0.5), _number(float("nan")), _number(float("-inf"))
    (0.5, 'NaN', '-Infinity')
    """
    if value != value:
        return "NaN"
    return {float("inf"): "Infinity", float("-inf"): "-Infinity"}.get(value, value)


def open_run(place: Place, federation: str, name: str, tags: Mapping[str, str], milliseconds: int) -> Run:
    """Finds the run that has these tags, or creates it.

    Of processes that create it at once, each keeps the first and deletes the others: the last one to look sees all. One
    whose run is deleted is refused, and finds the first when it opens the run again.

    Args:
        place: server and experiment.
        federation: names the experiment, if nothing else does.
        name: of the run in MLflow.
        tags: all that identify it.
        milliseconds: the time of its start, since 1970.

    Raises:
        ServiceError: the server refuses or is away.
    """
    service = Service("MLflow", place.address, headers=place.headers, verified=place.verified, seconds=place.seconds)
    experiment = place.experiment_id or _experiment(service, place.experiment or federation)
    found = next(_search(service, experiment, tags), None)
    if found is None:
        body = {
            "experiment_id": experiment, "run_name": name, "start_time": milliseconds,
            "tags": _items({**tags, **_parent(service, place.parent)}),
        }  # fmt: skip
        made = service.send("POST", f"{_API}/runs/create", body, _One).run
        found, *others = list(_search(service, experiment, tags)) or [made]
        for other in others:
            _delete(service, other)  # of a process that began at the same time
    whole = service.get(f"{_API}/runs/get", _One, run_id=found.info.run_id).run
    return Run(service, whole)


def _search(service: Service, experiment: str, tags: Mapping[str, str]) -> Iterator[_Run]:
    """Yields the runs with these tags, the first one first."""
    conditions = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    body = {
        "experiment_ids": [experiment], "filter": conditions, "run_view_type": "ACTIVE_ONLY", "max_results": 100,
    }  # fmt: skip
    found = service.send("POST", f"{_API}/runs/search", body, _Found).runs
    yield from sorted(found, key=lambda run: (int(run.info.start_time), run.info.run_id))


def _delete(service: Service, run: _Run) -> None:
    try:
        service.send("POST", f"{_API}/runs/delete", {"run_id": run.info.run_id}, _Empty)
    except ServiceError as error:
        if not 400 <= error.status < 500:
            raise  # otherwise another process has deleted it


def _experiment(service: Service, name: str) -> str:
    """Returns the id of an experiment, which is created when there is none."""
    path = f"{_API}/experiments/get-by-name"
    if found := service.find(path, _Named, experiment_name=name):
        return found.experiment.experiment_id
    try:
        return service.send("POST", f"{_API}/experiments/create", {"name": name}, _Experiment).experiment_id
    except ServiceError as error:
        if error.code != "RESOURCE_ALREADY_EXISTS":
            raise
        return service.get(path, _Named, experiment_name=name).experiment.experiment_id  # another process was faster


def _parent(service: Service, step: str) -> dict[str, str]:
    """Returns the tag that nests a run below the one of KFP's pipeline, or of its step where that has no parent."""
    if not step:
        return {}
    found = service.find(f"{_API}/runs/get", _One, run_id=step)
    if found is None:
        return {}  # a run of another server, or one that was deleted
    return {_PARENT: next((tag.value for tag in found.run.data.tags if tag.key == _PARENT), step)}


_PARENT = "mlflow.parentRunId"
