"""Connections to KFP and to Kubernetes, from a laptop or from a pod; what goes wrong there is a ClusterError.

With a host, KFP is asked there. Without one, a pod asks the service of its cluster and a laptop the one of its
kubeconfig, through Kubernetes' own API server: no port has to be forwarded.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import urllib3

from fedpipe.errors import ClusterError, FedpipeError, InputError, MissingExtraError
from fedpipe.kubeflow.where import Where

_SECONDS = 20.0
"""How long a request to KFP or Kubernetes may take."""
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Kfp(NamedTuple):
    """KFP's client, and what it says of itself."""

    client: Any
    health: dict[str, Any]
    namespace: str | None

    @property
    def host(self) -> str:
        """The URL of its API."""
        return str(self.client._existing_config.host)

    def url(self, path: str) -> str:
        """A page of the UI, or how to reach it where only the API is known."""
        prefix = self.client._get_url_prefix()
        return f"{prefix}/#/{path}" if prefix.startswith("http") else f"#/{path} of the Kubeflow UI"


class Kubernetes(NamedTuple):
    """Kubernetes' core API, and the namespace of the runs."""

    core: Any
    namespace: str


def open_kfp(where: Where) -> Kfp:
    """Connects to KFP and asks how it is.

    Raises:
        ClusterError: it cannot be reached, refuses the token, or something else answers there.
        InputError: the token file cannot be read.
        MissingExtraError: kfp is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import kfp
    except ImportError as error:
        raise MissingExtraError("kfp", "kubeflow") from error

    class Client(kfp.Client):  # type: ignore[misc]
        """Without KFP's five tries of five seconds, and without what it prints."""

        @functools.cached_property
        def health(self) -> dict[str, Any]:
            return _health(self)

        def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
            if not where.host and self._existing_config.host == kfp_api.Configuration().host:
                raise ClusterError(
                    "Kubeflow Pipelines is not known", remedy="Give its URL with --host, or set a kubeconfig."
                )
            return kfp_api.V2beta1GetHealthzResponse(multi_user=bool(self.health.get("multi_user")))

    import kfp_server_api as kfp_api

    token = _token(where.token_file)
    with warnings.catch_warnings(), quiet(), mapped(where.host or "Kubeflow Pipelines"):
        warnings.simplefilter("ignore")
        client = Client(
            host=where.host or None, existing_token=token or None, namespace=where.kfp_namespace,
            kube_context=where.context or None,
        )  # fmt: skip
    client._run_api.api_client.rest_client.pool_manager.connection_pool_kw["timeout"] = urllib3.Timeout(_SECONDS)
    namespace = (where.namespace or own_namespace()) if client.health.get("multi_user") else None
    return Kfp(client, client.health, namespace)


def _token(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the token cannot be read", where=str(path)) from error
    if not token:
        raise InputError("there is no token in it", where=str(path))
    return token


def _health(client: Any) -> dict[str, Any]:
    """What `healthz` answers, read as it came: KFP's own client takes any answer for a good one."""
    host = client._existing_config.host
    with quiet(), mapped(host):
        answer = client._healthz_api.healthz_service_get_healthz(_preload_content=False, _request_timeout=_SECONDS)
    try:
        health = json.loads(answer.data)
    except ValueError:
        health = None
    if not isinstance(health, dict) or not ({"multi_user", "tag_name", "commit_sha", "pipeline_store"} & set(health)):
        kind = answer.headers.get("content-type", "nothing known").partition(";")[0]
        raise ClusterError(
            f"this is not the API of Kubeflow Pipelines: its answer is {kind}",
            where=host,
            remedy="Give the URL of the service ml-pipeline, or that of the UI. A login page wants --token-file.",
        )
    return health


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """KFP's client prints links and logs failures; ours are told once, in one form."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def open_kubernetes(where: Where) -> Kubernetes:
    """Connects to Kubernetes: by the kubeconfig, or as the pod that this is.

    Raises:
        ClusterError: there is neither.
        MissingExtraError: the client is not installed.
    """
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise MissingExtraError("kubernetes", "kubeflow") from error
    settings = client.Configuration()
    namespace = where.namespace
    try:
        try:
            path = os.environ.get("KUBECONFIG") or None  # the client would look for it only once
            config.load_kube_config(path, context=where.context or None, client_configuration=settings)
            if not namespace:
                contexts, active = config.list_kube_config_contexts(path)
                chosen = next((c for c in contexts if c["name"] == where.context), active)
                namespace = chosen["context"].get("namespace", "")
        except config.ConfigException as error:
            if where.context:
                raise ClusterError(_sentence(error), where="kubeconfig") from error
            config.load_incluster_config(client_configuration=settings)
    except config.ConfigException as error:
        raise ClusterError(
            "there is no cluster: no kubeconfig, and this is no pod", remedy="Set KUBECONFIG, or give --context."
        ) from error
    settings.retries = urllib3.Retry(1)
    return Kubernetes(client.CoreV1Api(client.ApiClient(settings)), namespace or own_namespace() or "kubeflow")


def own_namespace() -> str:
    """The namespace of the pod that this is; empty elsewhere."""
    try:
        return _POD_NAMESPACE.read_text().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def mapped(where: str) -> Iterator[None]:
    """Raises what the clients of KFP and Kubernetes raise as a ClusterError."""
    try:
        yield
    except FedpipeError:
        raise
    except Exception as error:
        status = getattr(error, "status", None)
        if isinstance(error, urllib3.exceptions.HTTPError):
            raise ClusterError(_unreached(error), where=where, remedy="Is the address right, and is it up?") from error
        if not isinstance(status, int):
            raise
        told_error = ClusterError(_refused(error, status), where=where, remedy=_REMEDIES.get(status))
        told_error.status = status
        raise told_error from error


_REMEDIES = {
    401: "The token is missing, wrong or expired: get a new one and give it with --token-file, or log in again.",
    403: "Ask for the right, or use another context or token.",
}


def _refused(error: Any, status: int) -> str:
    """KFP says why in JSON with `message` or `error`, Kubernetes with `message`."""
    try:
        body = json.loads(error.body)
        text = str(body.get("message") or body.get("error_message") or body.get("error") or "")
    except (TypeError, ValueError, AttributeError):
        text = ""
    words = {401: "the request was not authenticated", 403: "this is not allowed", 404: "there is no such thing"}
    return " ".join((text or words.get(status) or str(error.reason)).split())[:400] + f" (HTTP {status})"


def _unreached(error: Exception) -> str:
    """The last cause, without the addresses of objects in memory."""
    reason = getattr(error, "reason", None) or error
    return "cannot be reached: " + _sentence(re.sub(r"<[^>]*>:? ?", "", str(reason)))


def _sentence(error: object) -> str:
    return " ".join(str(error).split())[:300]
