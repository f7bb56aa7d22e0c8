"""A real Kubernetes on this machine: etcd, apiserver, controller-manager, scheduler, kube-proxy, kubelet and containerd.

All of it runs in a network namespace of its own, which a pair of veth joins to this machine's: the node is NODE there.
The binaries are built once from the modules of tests/e2e/go.mod and kept. Nothing is left behind when it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import urllib3
import yaml
from Crypto.PublicKey import RSA

from tests import binaries

HOST, NODE = "10.97.0.1", "10.97.0.2"
PODS, SERVICES, DNS = "10.98.0.0/24", "10.96.0.0/24", NODE
NAME = "fedpipe-e2e"
TOOLS = ("containerd", "runc", "podman", "debootstrap", "iptables", "ip", "nsenter", "dnsmasq", "conntrack")
PACKAGES = (
    "containerd runc podman debootstrap iptables iproute2 util-linux dnsmasq-base conntrack containernetworking-plugins"
)
CNI = Path("/usr/lib/cni")
ALONE = "10.99.0.1"
"""The address of an apiserver without nodes, and of what it proxies to: it refuses loopback addresses."""


class Cluster(NamedTuple):
    """A running cluster with one node."""

    folder: Path
    kubeconfig: Path
    containerd: Path
    start: Callable[..., None]

    def import_image(self, image: str, *names: str) -> None:
        """Puts an image of podman's on the node, under these names."""
        save = ["podman", "save", "--format", "docker-archive", image]
        with subprocess.Popen(save, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as saving:
            done = self._ctr("images", "import", "-", stdin=saving.stdout)
        held = done.split()[1]
        for wanted in names:
            if wanted != held:
                self._ctr("images", "tag", "--force", held, wanted)

    def has_image(self, name: str) -> bool:
        """Whether the node holds an image of this name."""
        return name in self._ctr("images", "list", "--quiet").split()

    def import_binary(self, binary: Path, name: str) -> None:
        """Puts an image with one binary on the node."""
        with _image_of(binary) as image:
            self.import_image(image, name)

    def tell_name(self, name: str, address: str) -> None:
        """Makes a name of the cluster known to its pods: there is no CoreDNS here."""
        (self.folder / "names" / name).write_text(f"{address} {name}\n")

    def kill(self, container: str) -> None:
        """Ends a container as the kernel does when memory is short."""
        self._ctr("tasks", "kill", "-s", "KILL", container)

    def kill_work(self, container: str) -> int:
        """Ends the process that works in a step's container, but not its parent; returns how many there were."""
        listed = self._ctr("tasks", "ps", container).splitlines()[1:]
        working = [
            number for number in (int(line.split()[0]) for line in listed)
            if b"fedpipe.steps.work" in Path(f"/proc/{number}/cmdline").read_bytes()
        ]  # fmt: skip
        for number in working:
            os.kill(number, signal.SIGKILL)
        return len(working)

    def _ctr(self, *arguments: str, stdin: IO[bytes] | None = None) -> str:
        """Return the output of containerd's client in the namespace of Kubernetes."""
        command = ["ctr", "--address", str(self.containerd), "--namespace", "k8s.io", *arguments]
        return subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=True).stdout


def missing() -> str:
    """Return the reason why no cluster can run here; empty when one can."""
    if os.geteuid() != 0:
        return "it needs root, for a network namespace and containers"
    lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
    if lacking or not (CNI / "bridge").exists():
        return f"it needs {', '.join(lacking) or 'CNI plugins'}: apt-get install {PACKAGES}"
    probe = subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True)
    return "" if probe.returncode == 0 else "it may not make a network namespace"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Starts the cluster, and ends all that belongs to it."""
    programs = binaries.find_kubernetes()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_network())
        stack.callback(_unmount, folder)
        start = _Starter(folder, stack)
        tokens = {name: secrets.token_hex(16) for name in ("admin", "node", "manager", "scheduler", "proxy")}
        containerd = _start_containerd(start, programs["pause"])
        _start_control_plane(start, programs, tokens)
        configs = {name: _kubeconfig(folder, name, token) for name, token in tokens.items()}
        _await(lambda: _get(folder, tokens["admin"], "/readyz") == "ok", "the apiserver")
        _start_controllers(start, programs, configs)
        _start_node(start, programs, configs, containerd)
        _await(lambda: _is_ready(folder, tokens["admin"]), "the node")
        yield Cluster(folder, configs["admin"], containerd, start.start)


@contextlib.contextmanager
def control_plane(folder: Path, *authorities: str | Path) -> Iterator[Path]:
    """Starts etcd and an apiserver without nodes, next to any cluster; yields its administrator's kubeconfig.

    Args:
        folder: where its files are.
        authorities: more options of the apiserver, such as one for clients' certificates.
    """
    programs, tokens = binaries.find_kubernetes(), {"admin": secrets.token_hex(16)}
    _run("ip", "addr", "replace", f"{ALONE}/32", "dev", "lo")
    with contextlib.ExitStack() as stack:
        stack.callback(_run, "ip", "addr", "del", f"{ALONE}/32", "dev", "lo")
        start = _Starter(folder, stack, space="")
        _start_control_plane(start, programs, tokens, *authorities, address=ALONE)
        config = _kubeconfig(folder, "admin", tokens["admin"], ALONE)
        _await(lambda: _get(folder, tokens["admin"], "/readyz", ALONE) == "ok", "the apiserver")
        yield config


@contextlib.contextmanager
def attached(folder: Path) -> Iterator[Cluster]:
    """A cluster that another process has started: what is started in it here is ended here."""
    with contextlib.ExitStack() as stack:
        start = _Starter(folder, stack).start
        yield Cluster(folder, folder / "admin.kubeconfig", folder / "containerd" / "containerd.sock", start)


class _Starter(NamedTuple):
    """Starts processes in the cluster's network, or in this machine's, and ends them in reverse."""

    folder: Path
    stack: contextlib.ExitStack
    space: str = NAME

    def start(self, name: str, *command: str | Path) -> None:
        log = self.stack.enter_context((self.folder / f"{name}.log").open("wb"))
        inside = ["nsenter", f"--net=/run/netns/{self.space}"] if self.space else []
        process = subprocess.Popen(
            [*inside, *map(str, command)], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        self.stack.callback(_end, process)

    def write(self, name: str, text: str | dict[str, Any]) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
        return path


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
        return
    process.kill()
    process.wait()


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """A network namespace with the node's address, joined to this machine."""
    _drop_network()
    _run("ip", "netns", "add", NAME)
    try:
        _run("ip", "link", "add", "fedpipe-host", "type", "veth", "peer", "name", "node", "netns", NAME)
        _run("ip", "addr", "add", f"{HOST}/24", "dev", "fedpipe-host")
        _run("ip", "link", "set", "fedpipe-host", "up")
        for net in (SERVICES, PODS):
            _run("ip", "route", "add", net, "via", NODE)
        for command in (
            ("addr", "add", f"{NODE}/24", "dev", "node"), ("link", "set", "node", "up"), ("link", "set", "lo", "up"),
            # kube-proxy and the kubelet want a way out; there is none
            ("route", "add", "default", "via", HOST),
        ):  # fmt: skip
            _run("ip", "-n", NAME, *command)
        _run("nsenter", f"--net=/run/netns/{NAME}", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        yield
    finally:
        _drop_network()


def _drop_network() -> None:
    """Also of a cluster whose tests were killed: what still runs in it ends."""
    left = subprocess.run(["ip", "netns", "pids", NAME], check=False, capture_output=True, text=True).stdout.split()
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)
    for command in (["ip", "link", "del", "fedpipe-host"], ["ip", "netns", "del", NAME]):
        subprocess.run(command, check=False, capture_output=True)


def _unmount(folder: Path) -> None:
    """Ends what still runs in this cluster's pods, and takes away what containers and the kubelet have mounted."""
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError, ProcessLookupError):
            if any(line.split()[4] == "/" and f"{folder}/" in line for line in path.read_text().splitlines()):
                os.kill(int(path.parent.name), signal.SIGKILL)
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError, ProcessLookupError):
            line = process.read_bytes()
            if b"containerd-shim" in line and str(folder).encode() in line:
                os.kill(int(process.parent.name), signal.SIGKILL)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in reversed(mounts):
        if mount.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    for space in Path("/run/netns").glob("cni-*"):
        listing = ["ip", "-netns", space.name, "-oneline", "-4", "address"]
        addresses = subprocess.run(listing, check=False, capture_output=True, text=True).stdout
        if f" {PODS.removesuffix('0/24')}" in addresses:
            subprocess.run(["ip", "netns", "del", space.name], check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)  # gigabytes of images


def _start_containerd(start: _Starter, pause: Path) -> Path:
    folder = start.folder / "containerd"
    address = folder / "containerd.sock"
    network = {
        "cniVersion": "0.4.0", "name": "pods", "type": "bridge", "bridge": "pods", "isGateway": True, "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}],
                 "dataDir": str(folder / "addresses")},
    }  # fmt: skip
    start.write("containerd/cni/10-pods.conf", json.dumps(network))
    config = f"""version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{address}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "fedpipe.test/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI}"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""
    start.start("containerd", "containerd", "--config", start.write("containerd/config.toml", config))
    cluster = Cluster(start.folder, Path(), address, start.start)
    _await(lambda: _quietly("ctr", "--address", str(address), "version"), "containerd")
    cluster.import_binary(pause, "fedpipe.test/pause:1")
    return address


@contextlib.contextmanager
def _image_of(binary: Path) -> Iterator[str]:
    """An image with one binary in it, as long as it is needed."""
    name = f"localhost/fedpipe-{binary.name}:1"
    packing = ["tar", "--create", "--directory", str(binary.parent), "--mode=0755", binary.name]
    packed = subprocess.run(packing, capture_output=True, check=True).stdout
    changes = [f'--change=ENTRYPOINT ["/{binary.name}"]', "--change=USER 65535:65535"]
    subprocess.run(["podman", "import", "--quiet", *changes, "-", name], input=packed, check=True, capture_output=True)
    try:
        yield name
    finally:
        _run("podman", "rmi", "--force", name)


def _start_control_plane(
    start: _Starter, programs: dict[str, Path], tokens: dict[str, str], *more: str | Path, address: str = NODE
) -> None:
    folder, local = start.folder, f"http://{address if address == ALONE else '127.0.0.1'}"
    start.start(
        "etcd", programs["etcd"], "--data-dir", folder / "etcd", "--listen-client-urls", f"{local}:2379",
        "--advertise-client-urls", f"{local}:2379", "--listen-peer-urls", f"{local}:2380", "--unsafe-no-fsync",
        "--initial-advertise-peer-urls", f"{local}:2380", "--initial-cluster", f"default={local}:2380",
    )  # fmt: skip
    key = RSA.generate(2048)
    private = start.write("accounts.key", key.export_key().decode())
    public = start.write("accounts.pub", key.public_key().export_key().decode())
    users = {
        "admin": "admin,admin,system:masters", "node": "system:node:node-1,node,system:nodes",
        "manager": "system:kube-controller-manager,manager,", "scheduler": "system:kube-scheduler,scheduler,",
        "proxy": "system:kube-proxy,proxy,",
    }  # fmt: skip
    listed = start.write("tokens.csv", "".join(f"{token},{users[name]}\n" for name, token in tokens.items()))
    start.start(
        "kube-apiserver", programs["kube-apiserver"], "--etcd-servers", f"{local}:2379", "--cert-dir", folder / "certs",
        "--bind-address", address, "--advertise-address", address, "--secure-port", "6443",
        "--service-cluster-ip-range", SERVICES, "--token-auth-file", listed, "--authorization-mode", "Node,RBAC",
        "--service-account-key-file", public, "--service-account-signing-key-file", private,
        "--service-account-issuer", "https://kubernetes.default.svc", "--enable-admission-plugins", "NodeRestriction",
        "--allow-privileged=true", "--kubelet-preferred-address-types", "InternalIP", *more,
    )  # fmt: skip


def _kubeconfig(folder: Path, name: str, token: str, address: str = NODE) -> Path:
    certificate = folder / "certs" / "apiserver.crt"
    _await(certificate.exists, "the apiserver's certificate")
    path = folder / f"{name}.kubeconfig"
    path.write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "e2e",
        "clusters": [{"name": "e2e", "cluster": {
            "server": f"https://{address}:6443", "certificate-authority": str(certificate)}}],
        "users": [{"name": "e2e", "user": {"token": token}}],
        "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "e2e"}}],
    }))  # fmt: skip
    path.chmod(0o600)
    return path


def _start_controllers(start: _Starter, programs: dict[str, Path], configs: dict[str, Path]) -> None:
    start.start(
        "kube-controller-manager", programs["kube-controller-manager"], "--kubeconfig", configs["manager"],
        "--leader-elect=false", "--service-account-private-key-file", start.folder / "accounts.key",
        "--root-ca-file", start.folder / "certs" / "apiserver.crt", "--bind-address", "127.0.0.1",
        "--use-service-account-credentials=true", "--horizontal-pod-autoscaler-sync-period", "300s",
        "--cert-dir", start.folder / "manager-certs",
    )  # fmt: skip
    start.start(
        "kube-scheduler", programs["kube-scheduler"], "--kubeconfig", configs["scheduler"], "--leader-elect=false",
        "--bind-address", "127.0.0.1", "--cert-dir", start.folder / "scheduler-certs",
    )  # fmt: skip


def _start_node(start: _Starter, programs: dict[str, Path], configs: dict[str, Path], containerd: Path) -> None:
    config = start.write("kubelet.yaml", {
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", "address": NODE,
        "containerRuntimeEndpoint": f"unix://{containerd}", "cgroupDriver": "cgroupfs", "failCgroupV1": False,
        "failSwapOn": False, "clusterDNS": [DNS], "clusterDomain": "cluster.local", "readOnlyPort": 0,
        "evictionHard": {"memory.available": "50Mi"}, "authorization": {"mode": "AlwaysAllow"},
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "enforceNodeAllocatable": [], "resolvConf": str(start.write("resolv.conf", "")), "serializeImagePulls": False,
        "nodeStatusUpdateFrequency": "2s", "syncFrequency": "2s", "imageGCHighThresholdPercent": 100,
        "podLogsDir": str(start.folder / "pod-logs"),
    })  # fmt: skip
    start.start(
        "kubelet", programs["kubelet"], "--config", config, "--kubeconfig", configs["node"], "--node-ip", NODE,
        "--hostname-override", "node-1", "--root-dir", start.folder / "kubelet", "--cert-dir", start.folder / "kubelet-certs",
    )  # fmt: skip
    proxy = start.write("proxy.yaml", {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": "iptables",
        "clusterCIDR": PODS, "hostnameOverride": "node-1", "clientConnection": {"kubeconfig": str(configs["proxy"])},
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })  # fmt: skip
    start.start("kube-proxy", programs["kube-proxy"], "--config", proxy)
    (start.folder / "names").mkdir()
    start.start(
        "dnsmasq", "dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--port", "53", "--user=root",
        "--listen-address", DNS, "--bind-interfaces", f"--hostsdir={start.folder / 'names'}",
    )  # fmt: skip


def _get(folder: Path, token: str, path: str, address: str = NODE) -> str:
    pool = urllib3.PoolManager(ca_certs=str(folder / "certs" / "apiserver.crt"), timeout=5, retries=False)
    try:
        answer = pool.request("GET", f"https://{address}:6443{path}", headers={"Authorization": f"Bearer {token}"})
    except (urllib3.exceptions.HTTPError, OSError):
        return ""
    return answer.data.decode()


def _is_ready(folder: Path, token: str) -> bool:
    try:
        nodes = json.loads(_get(folder, token, "/api/v1/nodes"))["items"]
    except (ValueError, KeyError):
        return False
    return any(c["type"] == "Ready" and c["status"] == "True" for n in nodes for c in n["status"].get("conditions", ()))


def _await(done: Callable[[], Any], what: str, seconds: float = 90) -> None:
    for _ in range(int(seconds * 5)):
        if done():
            return
        time.sleep(0.2)
    raise RuntimeError(f"{what} did not come up in {seconds:.0f} s")


def _quietly(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-1000:]}")
    return done


if __name__ == "__main__":  # for work on the tests: FEDPIPE_E2E_CLUSTER=FOLDER pytest tests/e2e
    if sys.argv[1:] == ["--missing"]:  # for CI
        print(missing())
        sys.exit()
    place = Path(sys.argv[1])
    place.mkdir(parents=True)
    with running(place) as started:
        print(f"export FEDPIPE_E2E_CLUSTER={place} KUBECONFIG={started.kubeconfig}", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        signal.pause()
