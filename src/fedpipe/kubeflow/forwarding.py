"""Reaches a store inside a cluster from a laptop: forwards its service's port through Kubernetes' API server."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import SplitResult, urlencode, urlsplit

from fedpipe.errors import ClusterError, MissingExtraError
from fedpipe.kubeflow.clients import Kubernetes, cluster_errors, open_kubernetes
from fedpipe.kubeflow.where import Where
from fedpipe.store import endpoint_of
from fedpipe.store.network import without_proxy

_SERVICE = re.compile(r"(?P<name>[a-z0-9-]+)(\.(?P<namespace>[a-z0-9-]+)(?P<full>\.svc(\.[a-z0-9.-]+)?)?)?\Z")
"""A service as pods name it: `minio`, `minio.store` or `minio.store.svc.cluster.local`."""
_CHUNK = 2**16
_REQUEST_SECONDS = 20


def names_service(uri: str) -> bool:
    """Returns whether the endpoint of a store names a service of a cluster, which other machines cannot resolve.

    Args:
        uri: URI of the store.
    """
    endpoint, service = _service_of(uri)
    if service is None:
        return False
    return bool(service["full"]) or (endpoint.scheme == "http" and not _resolves(str(endpoint.hostname)))


def _service_of(uri: str) -> tuple[SplitResult, re.Match[str] | None]:
    """Returns the endpoint of a store, and the parts of its name if that may be a service of a cluster."""
    endpoint = urlsplit(endpoint_of(uri) if uri.startswith("s3://") else "")
    return endpoint, _SERVICE.match(endpoint.hostname or "")


@contextlib.contextmanager
def reachable_store(uri: str, where: Where) -> Iterator[str]:
    """Yields a URI at which this machine reaches a store: its own, or that of a port forwarded in the meantime.

    A port is forwarded if the endpoint names a service of a cluster, over http, that this machine cannot resolve. The
    name may be short, such as `seaweedfs.kubeflow`.

    Args:
        uri: URI of the store, as pods reach it.
        where: where the cluster is.

    Raises:
        ClusterError: the service has no ready pod, or Kubernetes does not answer.
    """
    endpoint, service = _service_of(uri)
    if service is None or endpoint.scheme != "http" or _resolves(str(endpoint.hostname)):
        yield uri
        return
    try:
        cluster = open_kubernetes(where)
        namespace = service["namespace"] or cluster.namespace
        pod, port = _find_ready_pod(cluster, service["name"], namespace, endpoint.port or 80)
    except (ClusterError, MissingExtraError) as error:
        if service["full"] or getattr(error, "status", 0) not in (0, 403, 404):
            raise
        yield uri  # another name that this machine cannot resolve: the store's own error says so
        return
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        forwarder = _Forwarder(cluster, pod, namespace, port, listener)
        threading.Thread(target=forwarder.accept, daemon=True).start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with without_proxy(address):
            yield urlsplit(uri)._replace(query=urlencode({"endpoint": f"http://{address}"})).geturl()


@contextlib.contextmanager
def reachable_stores(where: Where) -> Iterator[Callable[[str], str]]:
    """Yields a function that returns a URI as `reachable_store` does, with one port for each endpoint.

    Args:
        where: where the cluster is.
    """
    near: dict[str, str] = {}
    with contextlib.ExitStack() as stack:

        def reached(uri: str) -> str:
            endpoint = endpoint_of(uri)
            if endpoint not in near:
                found = stack.enter_context(reachable_store(uri, where))
                near[endpoint] = "" if found == uri else urlsplit(found).query
            return urlsplit(uri)._replace(query=near[endpoint]).geturl() if near[endpoint] else uri

        yield reached


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def _find_ready_pod(cluster: Kubernetes, service: str, namespace: str, port: int) -> tuple[str, int]:
    """Returns a ready pod behind a service, and its port. Raises ClusterError."""
    with cluster_errors(f"service {service}.{namespace}"):
        endpoints = cluster.core.read_namespaced_endpoints(service, namespace, _request_timeout=_REQUEST_SECONDS)
        read = cluster.core.read_namespaced_service(service, namespace, _request_timeout=_REQUEST_SECONDS)
    name = next((one.name for one in read.spec.ports if one.port == port), None)
    for subset in endpoints.subsets or ():
        number = next((one.port for one in subset.ports or () if one.name == name), None)
        for address in subset.addresses or ():
            if number and address.target_ref and address.target_ref.kind == "Pod":
                return address.target_ref.name, number
    unready = ClusterError(
        f"no pod is ready at port {port}",
        where=f"service {service}.{namespace}",
        remedy="Check its pods and its ports with kubectl.",
    )
    unready.status = 503  # as the API server's own proxy answers
    raise unready


class _Forwarder:
    """Accepts connections, and forwards each over its own websocket."""

    def __init__(self, cluster: Kubernetes, pod: str, namespace: str, port: int, listener: socket.socket) -> None:
        self._cluster, self._pod, self._namespace, self._port = cluster, pod, namespace, port
        self._listener = listener

    def accept(self) -> None:
        """Accepts connections until the listener is closed."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        from kubernetes.stream import portforward

        with client, contextlib.suppress(Exception):  # the store's client reports a connection that ends
            connect = self._cluster.core.connect_get_namespaced_pod_portforward
            websocket = portforward(connect, self._pod, self._namespace, ports=str(self._port))
            with contextlib.closing(websocket.socket(self._port)) as remote:
                remote.setblocking(True)
                answers = threading.Thread(target=_copy, args=(remote, client), daemon=True)
                answers.start()
                _copy(client, remote)
                answers.join()


def _copy(source: Any, target: Any) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
