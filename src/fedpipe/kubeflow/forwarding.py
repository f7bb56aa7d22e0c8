"""A store inside the cluster, reached from a laptop: its service's port forwarded through Kubernetes' API server."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode, urlsplit

from fedpipe.errors import ClusterError
from fedpipe.kubeflow.clients import Kubernetes, mapped, open_kubernetes
from fedpipe.kubeflow.where import Where
from fedpipe.store import endpoint_of

_SERVICE = re.compile(r"(?P<name>[a-z0-9-]+)\.(?P<namespace>[a-z0-9-]+)\.svc(\.[a-z0-9.-]+)?\Z")
_PIECE = 2**16


@contextlib.contextmanager
def reached(uri: str, where: Where) -> Iterator[str]:
    """The URI by which this machine reaches a store: its own, or that of a port that is forwarded meanwhile.

    Forwarded is what is a service of a cluster by its name, over http, and whose name is not known here.

    Args:
        uri: of the store.
        where: where the cluster is.

    Raises:
        ClusterError: the service has no pod that is ready, or Kubernetes does not answer.
    """
    endpoint = urlsplit(endpoint_of(uri)) if uri.startswith("s3://") else None
    service = _SERVICE.match(endpoint.hostname or "") if endpoint else None
    if endpoint is None or service is None or endpoint.scheme != "http" or _is_known(str(endpoint.hostname)):
        yield uri
        return
    cluster = open_kubernetes(where)
    pod, port = _behind(cluster, service["name"], service["namespace"], endpoint.port or 80)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        forwarder = _Forwarder(cluster, pod, service["namespace"], port, listener)
        threading.Thread(target=forwarder.accept, daemon=True).start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        yield urlsplit(uri)._replace(query=urlencode({"endpoint": address})).geturl()


def _is_known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def _behind(cluster: Kubernetes, service: str, namespace: str, port: int) -> tuple[str, int]:
    """A pod that is ready behind a service, and its port. Raises ClusterError."""
    with mapped(f"service {service}.{namespace}"):
        found = cluster.core.read_namespaced_endpoints(service, namespace, _request_timeout=20)
        ports = cluster.core.read_namespaced_service(service, namespace, _request_timeout=20).spec.ports
    name = next((one.name for one in ports if one.port == port), None)
    for subset in found.subsets or ():
        number = next((one.port for one in subset.ports or () if one.name == name), None)
        for address in subset.addresses or ():
            if number and address.target_ref and address.target_ref.kind == "Pod":
                return address.target_ref.name, number
    raise ClusterError(f"no pod is ready at port {port}", where=f"service {service}.{namespace}")


class _Forwarder:
    """Takes connections, and passes each on over a websocket of its own."""

    def __init__(self, cluster: Kubernetes, pod: str, namespace: str, port: int, listener: socket.socket) -> None:
        self._cluster, self._pod, self._namespace, self._port = cluster, pod, namespace, port
        self._listener = listener

    def accept(self) -> None:
        """Until the listener is closed."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        from kubernetes.stream import portforward

        with client, contextlib.suppress(Exception):  # the store's client tells of a connection that ends
            connect = self._cluster.core.connect_get_namespaced_pod_portforward
            forward = portforward(connect, self._pod, self._namespace, ports=str(self._port))
            with contextlib.closing(forward.socket(self._port)) as remote:
                remote.setblocking(True)
                back = threading.Thread(target=_pass, args=(remote, client), daemon=True)
                back.start()
                _pass(client, remote)
                back.join()


def _pass(source: Any, target: Any) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_PIECE):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
