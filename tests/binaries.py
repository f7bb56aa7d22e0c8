"""Programs that tests and benchmarks run: from PATH, or built once with Go and kept.

Each has a module of its own in tests/modules, with all that it is built from pinned by hash. They cannot share one: helm
wants a newer Kubernetes than the one of tests/e2e/go.mod.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

PACKAGES = {
    "helm": "helm.sh/helm/v3/cmd/helm",
    "mc": "github.com/minio/mc",
    "minio": "github.com/minio/minio",
    "registry": "github.com/distribution/distribution/v3/cmd/registry",
    "versitygw": "github.com/versity/versitygw/cmd/versitygw",
}


def cache_folder() -> Path:
    """Where built programs are kept."""
    root = os.environ.get("FEDPIPE_TEST_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "fedpipe-tests"


def find_binary(name: str) -> Path:
    """A program of PACKAGES, built when it is not on PATH. Raises RuntimeError with the remedy."""
    if found := shutil.which(name):
        return Path(found)
    return build(name, Path(__file__).parent / "modules" / name, {name: PACKAGES[name]})[name]


def build(what: str, module: Path, packages: Mapping[str, str], flags: str = "") -> dict[str, Path]:
    """Binaries of a module's packages, built by one command when they are not kept from an earlier time.

    Args:
        what: a name for the cache and for messages.
        module: the folder of go.mod and go.sum.
        packages: by the name of the binary.
        flags: for the linker.

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
            _built(what, module, packages, flags, folder)
    return found


def _built(what: str, module: Path, packages: Mapping[str, str], flags: str, folder: Path) -> None:
    go = shutil.which("go") or ("/usr/local/go/bin/go" if Path("/usr/local/go/bin/go").exists() else None)
    if go is None:
        raise RuntimeError(f"tests need {what}: put it on PATH, or install Go 1.24 or newer and it is built once")
    scratch = folder / "build"
    scratch.mkdir(exist_ok=True)
    command = [go, "build", "-trimpath", "-ldflags", f"-s -w {flags}", "-o", f"{scratch}/", *packages.values()]
    environment = {**os.environ, "GOTOOLCHAIN": "auto", "CGO_ENABLED": "0"}
    done = subprocess.run(command, cwd=module, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} could not be built with Go: {done.stderr[-2000:]}")
    for name, package in packages.items():
        (scratch / Path(package.removesuffix("/v3")).name).replace(folder / name)  # as Go names a binary
