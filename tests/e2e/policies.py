"""Enforces a NetworkPolicy on the node by rules of iptables, as network plugins do that can. Debian's cannot.

It knows what the chart's policies use: selectors of pods and namespaces by labels, addresses, and ports with a protocol.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Any

from kubernetes import client

from tests.e2e.cluster import NAME

_ENTRANCES = ("INPUT", "FORWARD")
"""Packets of pods to the node itself, and to all others."""


@contextlib.contextmanager
def enforced(core: client.CoreV1Api, policy: dict[str, Any], namespace: str) -> Iterator[None]:
    """Refuses what a policy does not allow to the pods that it selects now, until the body has ended."""
    selected = _addresses(core, namespace, policy["spec"]["podSelector"])
    assert selected, "the policy selects no pod"
    chain = "fedpipe-e2e"
    _tables("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")  # between pods of the node
    _iptables("-N", chain)
    try:
        _iptables("-A", chain, "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT")
        for pod in selected:
            for target, protocol, port in _allowed(core, policy["spec"]["egress"], namespace):
                _iptables("-A", chain, "-s", pod, "-d", target, "-p", protocol, "--dport", str(port), "-j", "ACCEPT")
            _iptables("-A", chain, "-s", pod, "-j", "REJECT")
            assert not policy["spec"]["ingress"]
            _iptables("-A", chain, "-d", pod, "-j", "REJECT")
        for entrance in _ENTRANCES:
            _iptables("-I", entrance, "-j", chain)
        yield
    finally:
        for entrance in _ENTRANCES:
            with contextlib.suppress(subprocess.CalledProcessError):
                _iptables("-D", entrance, "-j", chain)
        _iptables("-F", chain)
        _iptables("-X", chain)


def _allowed(core: client.CoreV1Api, egress: list[dict[str, Any]], namespace: str) -> Iterator[tuple[str, str, int]]:
    """Yields target, protocol and port of all that rules allow."""
    for rule in egress:
        targets = [target for peer in rule["to"] for target in _targets(core, peer, namespace)]
        for port in rule["ports"]:
            for target in targets:
                yield target, port["protocol"].lower(), port["port"]


def _targets(core: client.CoreV1Api, peer: dict[str, Any], namespace: str) -> list[str]:
    if block := peer.get("ipBlock"):
        return [block["cidr"]]
    spaces = [namespace]
    if "namespaceSelector" in peer:
        labels = _text_of(peer["namespaceSelector"])
        spaces = [one.metadata.name for one in core.list_namespace(label_selector=labels).items]
    return [address for space in spaces for address in _addresses(core, space, peer.get("podSelector") or {})]


def _addresses(core: client.CoreV1Api, namespace: str, selector: dict[str, Any]) -> list[str]:
    pods = core.list_namespaced_pod(namespace, label_selector=_text_of(selector)).items
    return [pod.status.pod_ip for pod in pods if pod.status.pod_ip and pod.status.phase == "Running"]


def _text_of(selector: dict[str, Any]) -> str:
    assert set(selector) <= {"matchLabels"}, selector
    return ",".join(f"{key}={value}" for key, value in selector.get("matchLabels", {}).items())


def _iptables(*arguments: str) -> None:
    _tables("iptables", "--wait", *arguments)


def _tables(*command: str) -> None:
    inside = ["nsenter", f"--net=/run/netns/{NAME}", *command]
    subprocess.run(inside, check=True, capture_output=True, text=True)
