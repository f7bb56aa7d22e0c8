"""Programs that tests and benchmarks run: from PATH, or built once with Go and kept.

Each has a module of its own, with everything that it is built from pinned by hash. They cannot share one: helm needs a
newer Kubernetes than the one of tests/e2e/go.mod. `python -m tests.binaries NAME ...` builds them with no package
installed; by default those of `make test`.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = {
    "helm": "helm.sh/helm/v3/cmd/helm",
    "kube-network-policies": "sigs.k8s.io/kube-network-policies/cmd",
    "mc": "github.com/minio/mc",
    "minio": "github.com/minio/minio",
    "registry": "github.com/distribution/distribution/v3/cmd/registry",
    "versitygw": "github.com/versity/versitygw/cmd/versitygw",
}
KUBERNETES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubelet": "k8s.io/kubernetes/cmd/kubelet",
    "pause": "./pause",
}
QUICK = ("helm", "kube-network-policies", "registry")
"""Those that do little in tests, so that their compilation costs more than their work."""
TESTED = ("minio", "versitygw", "registry", "helm")
"""Those of `make test`, in the order in which it needs them; `mc` is for benchmarks, the policies' engine for
`make e2e`."""


_ROOT = os.environ.get("FEDPIPE_TEST_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
"""Read once: tests set another XDG_CACHE_HOME, in which no programs are built."""


def cache_folder() -> Path:
    """Where built programs are kept."""
    return Path(_ROOT) / "fedpipe-tests"


def find_binary(name: str) -> Path:
    """Returns a program of PACKAGES, built when it is not on PATH. Raises RuntimeError with the remedy."""
    if found := shutil.which(name):
        return Path(found)
    return build(name, HERE / "modules" / name, {name: PACKAGES[name]}, quick=name in QUICK)[name]


def find_kubernetes() -> dict[str, Path]:
    """Returns the binaries of KUBERNETES, built when they are not kept. Raises RuntimeError with the remedy."""
    module = HERE / "e2e"
    version = "v" + (module / "go.mod").read_text().partition("k8s.io/kubernetes v")[2].split()[0]
    major, minor = version[1:].split(".")[:2]
    where = "k8s.io/component-base/version"
    flags = f"-X {where}.gitVersion={version} -X {where}.gitMajor={major} -X {where}.gitMinor={minor}"
    return build("kubernetes", module, KUBERNETES, flags, quick=True)


def build(
    what: str, module: Path, packages: Mapping[str, str], flags: str = "", *, quick: bool = False
) -> dict[str, Path]:
    """Returns binaries of a module's packages, built by one command when they are not kept from an earlier time.

    Args:
        what: a name for the cache and for messages.
        module: the folder of go.mod and go.sum.
        packages: by the name of the binary.
        flags: for the linker.
        quick: compile without optimization, which takes half the time.

    Raises:
        RuntimeError: with the remedy.
    """
    pinned = hashlib.sha256((module / "go.mod").read_bytes() + (module / "go.sum").read_bytes()).hexdigest()
    folder = cache_folder() / f"{what}-{pinned[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: folder / name for name in packages}
    with (folder / "lock").open("w") as lock:  # test processes build it once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all(path.exists() for path in found.values()):
            _built(what, module, packages, flags, quick, folder)
    return found


def _built(what: str, module: Path, packages: Mapping[str, str], flags: str, quick: bool, folder: Path) -> None:
    go = shutil.which("go") or ("/usr/local/go/bin/go" if Path("/usr/local/go/bin/go").exists() else None)
    if go is None:
        raise RuntimeError(f"tests need {what}: put it on PATH, or install Go 1.24 or newer and it is built once")
    scratch = folder / "build"
    scratch.mkdir(exist_ok=True)
    compiling = "-gcflags=all=-dwarf=false" + (" -N -l" if quick else "")  # debug information is of no use here
    command = [
        go, "build", "-trimpath", compiling, "-ldflags", f"-s -w {flags}", "-o", f"{scratch}/", *packages.values(),
    ]  # fmt: skip
    environment = {**os.environ, "GOTOOLCHAIN": "auto", "CGO_ENABLED": "0"}
    done = subprocess.run(command, cwd=module, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} could not be built with Go: {done.stderr[-2000:]}")
    for name, package in packages.items():
        (scratch / Path(package.removesuffix("/v3")).name).replace(folder / name)  # as Go names a binary


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.binaries", description="Builds programs that tests need.")
    parser.add_argument(
        "names", nargs="*", default=TESTED, help=f"by default {', '.join(TESTED)}; also kubernetes and others"
    )
    for name in parser.parse_args().names:
        started = time.monotonic()
        if name == "kubernetes":
            find_kubernetes()
        else:
            find_binary(name)
        print(f"{name:<12}{time.monotonic() - started:6.0f} s", flush=True)


if __name__ == "__main__":
    main()
