"""Connects to KFP and to Kubernetes, from a laptop or from a pod; all failures become ClusterErrors.

With a host, requests to KFP go there. Without one, a pod uses KFP's service in its own cluster. A laptop uses that of
its kubeconfig's cluster, through Kubernetes' API server, so that no port has to be forwarded.
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

from fedpipe.errors import ClusterError, FedpipeError, InputError, MissingExtraError, one_line
from fedpipe.kubeflow.kubeconfig import load_kubeconfig, namespace_of
from fedpipe.kubeflow.where import Where
from fedpipe.store.bodies import bound
from fedpipe.store.network import explained, find_proxy, named_bundles, remedy_of, trusted
from fedpipe.store.userinfo import check_no_credentials

_REQUEST_SECONDS = 20.0
"""How long a request to KFP may take."""
_MOST_ANSWER = 64 * 2**20
"""Bytes of an answer of KFP or Kubernetes, such as a list of pods."""
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Kfp(NamedTuple):
    """Holds KFP's client, the answer of its health check, and the namespace in a multi-user deployment."""

    client: Any
    health: dict[str, Any]
    namespace: str | None

    @property
    def host(self) -> str:
        """Returns the URL of its API."""
        return str(self.client._existing_config.host)

    def url(self, path: str) -> str:
        """Returns the URL of a page of the UI; without its host when only the API is known."""
        prefix = self.client._get_url_prefix()
        return f"{prefix}/#/{path}" if prefix.startswith("http") else f"#/{path} of the Kubeflow UI"


class Kubernetes(NamedTuple):
    """Holds Kubernetes' core API, and the namespace of the runs."""

    core: Any
    namespace: str


def open_kfp(where: Where) -> Kfp:
    """Connects to KFP and checks its health.

    Raises:
        ClusterError: it cannot be reached, refuses the token, or another server answers there.
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
        """Replaces KFP's health check, which prints and retries five times, five seconds apart."""

        def _load_config(self, *arguments: Any, **more: Any) -> Any:
            if where.host or token or own_namespace():
                settings = super()._load_config(*arguments, **more)
            else:
                settings = _through_api_server(kfp_api.Configuration(), where)
            _use_proxy(settings)
            return settings

        @functools.cached_property
        def health(self) -> dict[str, Any]:
            pool = self._healthz_api.api_client.rest_client.pool_manager
            _use_bundles(self._existing_config, pool)
            bound(pool, _MOST_ANSWER)
            return _read_health(self)

        def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
            if not where.host and self._existing_config.host == kfp_api.Configuration().host:
                raise ClusterError(
                    "no address of Kubeflow Pipelines is configured",
                    remedy="Pass its URL with --host, or set KUBECONFIG.",
                )
            return kfp_api.V2beta1GetHealthzResponse(multi_user=bool(self.health.get("multi_user")))

    import kfp_server_api as kfp_api

    _check_host(where.host)
    token = _read_token(where.token_file)
    with warnings.catch_warnings(), quiet(), cluster_errors(where.host or "Kubeflow Pipelines"):
        warnings.simplefilter("ignore")
        client = Client(
            host=where.host or None, existing_token=token or None, namespace=where.kfp_namespace,
            kube_context=where.context or None,
        )  # fmt: skip
    client._run_api.api_client.rest_client.pool_manager.connection_pool_kw["timeout"] = urllib3.Timeout(
        _REQUEST_SECONDS
    )
    namespace = (where.namespace or own_namespace()) if client.health.get("multi_user") else None
    return Kfp(client, client.health, namespace)


def _check_host(host: str) -> None:
    """Checks the form of the URL of Kubeflow, such as one copied from a browser. Raises InputError."""
    check_no_credentials(host, "--host")
    if not host:
        return
    scheme, slashes, rest = host.rpartition("://")
    page = re.sub(r"(/_)?/?#.*", "", host)
    if not slashes or not rest:
        remedy = f"Write https://{rest or 'kubeflow.example'}."
        raise InputError(f"{host!r} has no scheme", where="--host", remedy=remedy)
    if scheme not in ("http", "https"):
        raise InputError(f"{host!r} is not an http(s) URL", where="--host", remedy=f"Write https://{rest}.")
    if page != host:
        raise InputError(f"{host!r} is a page of the UI, not the UI's address", where="--host", remedy=f"Write {page}.")


def _through_api_server(settings: Any, where: Where) -> Any:
    """Configures requests to KFP by a kubeconfig, through its API server; unchanged when there is no kubeconfig."""
    from kubernetes import config

    with contextlib.suppress(config.ConfigException):
        load_kubeconfig(settings, where)
        proxied = f"api/v1/namespaces/{where.kfp_namespace}/services/ml-pipeline:http/proxy"
        settings.host = f"{settings.host.rstrip('/')}/{proxied}"
        _keep_host(settings)
    return settings


def _keep_host(settings: Any) -> None:
    """Keeps the path of the host: the hook that renews a kubeconfig's token resets it, and itself, at each request."""
    renew, host = settings.refresh_api_key_hook, settings.host

    def renewed(settings: Any) -> None:
        renew(settings)
        settings.host, settings.refresh_api_key_hook = host, renewed

    if renew is not None:
        settings.refresh_api_key_hook = renewed


def _use_proxy(settings: Any) -> None:
    """Sets the proxy of the environment, unless the kubeconfig names one."""
    proxy = find_proxy(settings.host)
    if proxy is not None and not settings.proxy:
        settings.proxy, settings.proxy_headers = proxy.url, proxy.headers


def _use_bundles(settings: Any, pool: Any) -> None:
    """Trusts the authorities of the environment, unless the kubeconfig names one; first of all requests."""
    if named_bundles() and settings.host.startswith("https:") and not settings.ssl_ca_cert and settings.verify_ssl:
        pool.connection_pool_kw |= {"ssl_context": trusted(), "ca_certs": None}


def _read_token(path: Path | None) -> str:
    if path is None:
        return ""
    in_folder = "/" in str(path) and path.parent.is_dir()
    if re.fullmatch(r"[\w+/=.-]{80,}", str(path)) and not in_folder and not os.path.lexists(path):
        remedy = "Write it to a file that only you can read, and pass the path."
        raise InputError("this option takes a file, not the token itself", where="--token-file", remedy=remedy)
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        remedy = "Check the path of --token-file and its permissions."
        raise InputError("the token file cannot be read", where=str(path), remedy=remedy) from error
    if not token:
        raise InputError("the token file is empty", where=str(path), remedy="Write the token to it.")
    return token


def _read_health(client: Any) -> dict[str, Any]:
    """Reads the raw answer of `healthz`: KFP's own client accepts any answer."""
    host = client._existing_config.host
    try:
        with quiet(), cluster_errors(host):
            answer = client._healthz_api.healthz_service_get_healthz(
                _preload_content=False, _request_timeout=_REQUEST_SECONDS
            )
    except ClusterError as error:
        if not host.endswith("/proxy") or error.status not in _OF_THE_PROXY:
            raise
        raise ClusterError(error.what, where=host, remedy=_OF_THE_PROXY[error.status]) from error
    try:
        health = json.loads(answer.data)
    except ValueError:
        health = None
    if not isinstance(health, dict) or not ({"multi_user", "tag_name", "commit_sha", "pipeline_store"} & set(health)):
        kind = answer.headers.get("content-type", "an unknown type").partition(";")[0]
        raise ClusterError(
            f"this is not the API of Kubeflow Pipelines: it answered with {kind}",
            where=host,
            remedy="Pass the URL of the service ml-pipeline or of the UI. For a login page, pass --token-file.",
        )
    return health


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences KFP's client, which prints links and logs failures that fedpipe reports itself."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def open_kubernetes(where: Where) -> Kubernetes:
    """Connects to Kubernetes with the kubeconfig, or with the service account of the pod that this runs in.

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
            path = load_kubeconfig(settings, where)
            namespace = namespace or namespace_of(path, where.context)
        except config.ConfigException:
            config.load_incluster_config(client_configuration=settings)
    except config.ConfigException as error:
        raise ClusterError(
            "no cluster is configured: there is no kubeconfig, and this is not a pod",
            remedy="Set KUBECONFIG, or pass --context.",
        ) from error
    settings.retries = urllib3.Retry(1)
    _use_proxy(settings)
    api = client.ApiClient(settings)
    bound(api.rest_client.pool_manager, _MOST_ANSWER)
    return Kubernetes(client.CoreV1Api(api), namespace or own_namespace() or "kubeflow")


def own_namespace() -> str:
    """Returns the namespace of the pod that this runs in; empty outside of a pod."""
    try:
        return _POD_NAMESPACE.read_text().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def cluster_errors(where: str) -> Iterator[None]:
    """Turns errors of the clients of KFP and Kubernetes into ClusterErrors.

    Args:
        where: the host, or the object, that the requests inside concern.
    """
    try:
        yield
    except FedpipeError:
        raise
    except Exception as error:
        status = getattr(error, "status", None)
        if isinstance(error, urllib3.exceptions.HTTPError):
            error = explained(error, where)
            remedy = remedy_of(error, "Check the address, and whether the server is running.")
            raise ClusterError(_unreachable_reason(error), where=where, remedy=remedy) from error
        if not isinstance(status, int):
            raise
        refusal = ClusterError(_refusal_reason(error, status), where=where, remedy=_REMEDIES.get(status))
        refusal.status = status
        raise refusal from error


_OF_THE_PROXY = {
    404: "Pass the namespace of Kubeflow Pipelines with --kfp-namespace, or its URL with --host.",
    503: "Check the pods of ml-pipeline in the namespace of Kubeflow Pipelines.",
}
"""Remedies when the API server finds no service, or no pod of it."""
_REMEDIES = {
    401: "Get a new token and pass it with --token-file, or log in again.",
    403: "Ask for permission, or use another context or token.",
}


def _refusal_reason(error: Any, status: int) -> str:
    """Returns the reason in the JSON body: KFP's `message` or `error`, or Kubernetes' `message`."""
    try:
        body = json.loads(error.body)
        text = str(body.get("message") or body.get("error_message") or body.get("error") or "")
    except (TypeError, ValueError, AttributeError):
        text = ""
    default = {401: "the request was not authenticated", 403: "the request is not allowed", 404: "it does not exist"}
    return " ".join((text or default.get(status) or str(error.reason)).split())[:400] + f" (HTTP {status})"


def _unreachable_reason(error: Exception) -> str:
    """Returns the last cause, without the addresses of objects in memory."""
    reason = getattr(error, "reason", None) or error
    return "cannot be reached: " + one_line(re.sub(r"<[^>]*>:? ?", "", str(reason)), 300)
