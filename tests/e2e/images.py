"""The images of this work tree, built by `images/build` over a base of Debian's own packages: no registry is needed.

Podman keeps the layers: one with the packages of a lock is built again when the lock, `images/install` or the base
changes, and a change of fedpipe's code rebuilds only the layer with the code. `python -m tests.e2e.images` builds all.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import binaries
from tests.e2e.cluster import Cluster

ROOT = Path(__file__).parents[2]
NAMES = ("core", "keras", "tff", "serve")
BASE, REGISTRY = "localhost/fedpipe-base:bookworm", "fedpipe.test/fedpipe"
# This machine may lack CAP_SYS_RESOURCE, and then neither crun nor podman's default limits work.
CONTAINERS = """[containers]
default_ulimits = []
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


@contextlib.contextmanager
def podman_settings() -> Iterator[None]:
    """Set podman up for machines with few rights, in this process and its children."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        config = Path(folder) / "containers.conf"
        config.write_text(CONTAINERS)
        patch.setenv("CONTAINERS_CONF", str(config))
        yield


def build(names: tuple[str, ...] = NAMES) -> dict[str, str]:
    """Build images, and return their digests by name."""
    environment = {
        **os.environ, "BUILDER": "podman", "REGISTRY": REGISTRY, "BASE_IMAGE": BASE, "BUILD_FLAGS": "--network host",
    }  # fmt: skip
    if subprocess.run(["podman", "image", "exists", BASE], env=environment, check=False).returncode:
        _make_base(environment)
    _checked(["images/build", *names], environment)
    digests: dict[str, str] = yaml.safe_load((ROOT / "images" / "digests.yaml").read_text())["digests"]
    return digests


def _make_base(environment: dict[str, str]) -> None:
    """Import Debian with Python 3.11, from Debian's packages."""
    archive = binaries.cache_folder() / "base-bookworm.tar"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        include = "--include=python3,python3-venv,ca-certificates"
        _checked(["debootstrap", "--variant=minbase", include, "bookworm", f"{archive}.new"], environment)
        # documentation and package lists do not belong in an image
        for waste in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"):
            subprocess.run(["rm", "-rf", f"{archive}.new/{waste}"], check=True)
        _checked(["tar", "--create", "--file", str(archive), "--directory", f"{archive}.new", "."], environment)
        subprocess.run(["rm", "-rf", f"{archive}.new"], check=True)
    _checked(["podman", "import", "--quiet", str(archive), BASE], environment)


def load_binary(cluster: Cluster, binary: Path, name: str) -> None:
    """Put an image on the node: the base with a binary in it."""
    recipe = f'FROM {BASE}\nCOPY {binary.name} /{binary.name}\nENTRYPOINT ["/{binary.name}"]\n'
    building = ["podman", "build", "--quiet", "--tag", name, "--file", "-", str(binary.parent)]
    subprocess.run(building, input=recipe, text=True, check=True, capture_output=True)
    cluster.import_image(name, name)


def load(cluster: Cluster, name: str, digest: str, version: str) -> None:
    """Put a built image on the cluster's node, under its tag and its digest."""
    tagged, named = f"{REGISTRY}/{name}:{version}", f"{REGISTRY}/{name}@{digest}"
    if cluster.has_image(named):
        return
    cluster.import_image(tagged, tagged, named)


def _checked(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stdout[-1500:]}{done.stderr[-1500:]}")


if __name__ == "__main__":
    with podman_settings():
        build()
