"""Sites in network namespaces of their own: they reach a TLS MinIO through squid, and send no packet anywhere else."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedpipe
from fedpipe.rounds.history import history
from fedpipe.store import keys
from fedpipe.store.network import BUNDLES
from tests import servers
from tests.e2e.delay import EACH, delaying
from tests.sites.hospitals import LOCAL, ROUNDS, SITES, Federation, until
from tests.store.surroundings import make_certificates

SQUID = """
http_port 0.0.0.0:{port}
acl store dst 127.0.0.1/32
acl store_port port {store}
http_access allow CONNECT store store_port
http_access deny all
cache deny all
access_log stdio:{folder}/access.log
cache_log {folder}/cache.log
pid_filename {folder}/squid.pid
coredump_dir {folder}
shutdown_lifetime 1 second
"""
RULES = (
    "-A OUTPUT -p tcp -d {host} --dport {port} -m statistic --mode random --probability 0.01 -j DROP",
    "-A OUTPUT -p tcp -d {host} --dport {port} -j ACCEPT",
    "-A OUTPUT -j DROP",
)
"""One packet of a hundred is lost on the way to the proxy; all others but those to it are counted, and dropped."""


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Space:
    """A network namespace with one cable, to this machine.

    Args:
        number: makes its name and its addresses.
        port: of this machine, at the other end of the cable, from which a line leads to the proxy.
    """

    def __init__(self, number: int, port: int) -> None:
        self.name, self._cable = f"fedpipe-site-{number}", f"fps{number}"
        self.host, self.address = f"10.213.{number}.1", f"10.213.{number}.2"
        self.within = ("ip", "netns", "exec", self.name)
        self._port = port

    def __enter__(self) -> Space:
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self._cable, "type", "veth", "peer", "name", "cable", "netns", self.name)
        run("ip", "addr", "add", f"{self.host}/30", "dev", self._cable)
        run("ip", "link", "set", self._cable, "up")
        inside = ("ip", "-n", self.name)
        run(*self.within, "sysctl", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
        run(*inside, "addr", "add", f"{self.address}/30", "dev", "cable")
        run(*inside, "link", "set", "cable", "up")
        run(*inside, "link", "set", "lo", "up")
        for rule in RULES:
            run(*self.within, "iptables", *rule.format(host=self.host, port=self._port).split())
        return self

    def __exit__(self, *_: object) -> None:
        run("ip", "netns", "del", self.name)
        with contextlib.suppress(subprocess.CalledProcessError):  # it goes with its other end
            run("ip", "link", "del", self._cable)

    def packets(self) -> list[int]:
        """Returns the packets that each rule met."""
        lines = run(*self.within, "iptables", "-L", "OUTPUT", "-v", "-x", "-n").splitlines()[2:]
        return [int(re.split(r"\s+", line.strip())[0]) for line in lines]


@contextlib.contextmanager
def squid(folder: Path, port: int, store: int) -> Iterator[subprocess.Popen[bytes]]:
    """A proxy that tunnels to the store, and nowhere else."""
    folder.chmod(0o777)  # squid gives up the rights of root
    (folder / "squid.conf").write_text(SQUID.format(port=port, store=store, folder=folder))
    program = shutil.which("squid") or "/usr/sbin/squid"
    process = subprocess.Popen([program, "-N", "-n", f"sites{os.getpid()}", "-f", str(folder / "squid.conf")])
    try:
        until(lambda: port in listening())
        yield process
    finally:
        process.terminate()  # it removes its memory segments
        process.wait(30)


def listening() -> set[int]:
    """The TCP ports on which this machine listens."""
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {int(line[1].rpartition(":")[2], 16) for line in lines if line[3] == "0A"}


def test_no_packet_of_a_site_goes_anywhere_but_to_its_proxy(
    numpy_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3_keys: None
) -> None:
    """Packets are lost and late, and the proxy dies in between; the model is that of five learners on one machine."""
    for name in BUNDLES:
        monkeypatch.delenv(name, raising=False)
    certificates = make_certificates(tmp_path / "certificates")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    port, proxy = servers.free_port(), servers.free_port()
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as logs:
        minio = stack.enter_context(servers.running("minio", tmp_path / "minio", certificates=certificates))
        store_port = int(minio.endpoint.rpartition(":")[2])
        proxies = stack.enter_context(contextlib.ExitStack())
        proxies.enter_context(squid(Path(logs), proxy, store_port))
        line = stack.enter_context(delaying(port, proxy))
        federation = Federation(numpy_digits, minio.uri.replace("s3://tests", "s3://tests/spaces"))
        file = federation.write()
        spaces = {name: stack.enter_context(Space(number, port)) for number, name in enumerate(SITES, 1)}
        for name, space in spaces.items():
            federation.join(name, ca=str(certificates / "ca.pem"))
            stack.callback(federation.start(name, "--once", within=space.within, **proxied(space, port)).kill)
        command = [sys.executable, "-m", "fedpipe", "run", str(file), "--run", "r1", "--out", str(tmp_path / "out")]
        operator = subprocess.Popen(command)
        stack.callback(operator.kill)
        until(lambda: federation.store.size(keys.record("r1", 1)))
        proxies.close()
        time.sleep(2)
        proxies.enter_context(squid(Path(logs), proxy, store_port))
        assert operator.wait(300) == 0
        for name, process in federation.agents.items():
            assert process.wait(90) == 0, federation.log(name)
        for name, space in spaces.items():
            _lost, sent, elsewhere = space.packets()
            assert sent > 100, name
            assert elsewhere == 0, name
        assert line.pieces * EACH > 10
        assert line.stalls > 0
        asked = {line.split()[6] for line in Path(logs, "access.log").read_text().splitlines()}
        assert asked == {f"127.0.0.1:{store_port}"}
        records = history(federation.store, "r1")
        assert [len(record.contributors) for record in records[1:]] == [len(LOCAL) + len(SITES)] * ROUNDS
    alone = Federation(numpy_digits, f"file://{tmp_path}/alone")
    fedpipe.run(alone.write(sites=()), out=tmp_path / "alone-out", name="r1")
    assert history(alone.store, "r1")[-1].weights == records[-1].weights


def proxied(space: Space, port: int) -> dict[str, str]:
    """The environment of a site behind a proxy."""
    url = f"http://{space.host}:{port}"
    return {"HTTPS_PROXY": url, "https_proxy": url, "NO_PROXY": "", "no_proxy": ""}
