"""Tests that the end of the cluster ends what it started, and nothing of another cluster on the same machine."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import binaries
from tests.e2e import cluster as clusters


@pytest.fixture
def spaces() -> Iterator[dict[str, str]]:
    """Network namespaces of a pod of this cluster, and of one of another: their addresses."""
    made = {"cni-fedpipe-own": clusters.PODS.replace("0/24", "7/24"), "cni-fedpipe-other": "10.244.0.7/24"}
    try:
        for name, address in made.items():
            subprocess.run(["ip", "netns", "add", name], check=True)
            subprocess.run(["ip", "-netns", name, "address", "add", address, "dev", "lo"], check=True)
        yield made
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextlib.contextmanager
def container(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose root is an overlay of layers in a folder, as containerd makes it."""
    lower, upper, root = (folder / "snapshots" / name for name in ("lower", "upper", "root"))
    for path in (lower, upper, root):
        path.mkdir(parents=True)
    (lower / "pause").write_bytes(binaries.find_kubernetes()["pause"].read_bytes())
    (lower / "pause").chmod(0o755)
    layers = f"lowerdir={upper}:{lower}"
    script = f"mount -t overlay -o {layers} overlay {root} && exec chroot {root} /pause"
    process = subprocess.Popen(["unshare", "--mount", "sh", "-c", script])
    try:
        while Path(f"/proc/{process.pid}/root").readlink() == Path("/"):
            assert process.poll() is None
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


def test_only_what_belongs_to_the_cluster_ends(tmp_path: Path, spaces: dict[str, str]) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    with container(own) as ours, container(other) as theirs:
        clusters._unmount(own)
        assert ours.wait(10) == -9
        assert theirs.poll() is None
    assert not own.exists()
    assert (other / "snapshots").exists()
    left = {path.name for path in Path("/run/netns").glob("cni-fedpipe-*")}
    assert left == {"cni-fedpipe-other"}
