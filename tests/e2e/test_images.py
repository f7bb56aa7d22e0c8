"""Every image does a step of its own where the root is read-only, no capability is left and only the store is reached."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedpipe.compiled.graph import Task
from fedpipe.version import __version__
from tests import servers
from tests.e2e import cluster as clusters
from tests.e2e.cluster import Cluster
from tests.e2e.driver import FailedError, Pipeline
from tests.e2e.images import NAMES, REGISTRY
from tests.e2e.sites import Site

LOCKS = {name: name for name in NAMES} | {"keras": os.environ.get("LOCK", "keras")}
"""The lock of an image: with `LOCK=keras-gpu` in the environment, it contains CUDA's libraries."""
LARGEST = {"core": 360, "keras": 1700, "keras-gpu": 8000, "serve": 420, "tff": 2500}
"""MB."""
PRIVACY = {"noise_multiplier": 1.0, "l2_norm_clip": 1.0, "microbatches": 16, "delta": 1e-4, "target_epsilon": 8.0}
# The network of the cluster's node: the store is in it, and there is no way out.
CONFINED = (
    "podman", "run", "--rm", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--read-only-tmpfs=false",
    "--tmpfs=/tmp:rw,mode=1777", f"--network=ns:/run/netns/{clusters.NAME}", "--ulimit=host", "--pull=never",
)  # fmt: skip


class Confined(Pipeline):
    """A compiled pipeline whose steps are run by podman, one after the other."""

    said: dict[str, str]

    def create(self, task: Task, inputs: dict[str, Any]) -> str:
        (container,) = self.manifest(task, inputs)["spec"]["template"]["spec"]["containers"]
        keys = {"AWS_ACCESS_KEY_ID": servers.ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": servers.SECRET_KEY}
        environment = [f"--env={name}={value}" for name, value in keys.items()]
        command, arguments = container["command"], container["args"]
        done = subprocess.run(
            [*CONFINED, *environment, f"--entrypoint={command[0]}", container["image"], *command[1:], *arguments],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.said = getattr(self, "said", {}) | {task.name: done.stdout}
        if done.returncode:
            raise FailedError(f"{task.name}: {done.stdout[-1500:]}{done.stderr[-1500:]}")
        return task.name

    def result(self, job: str, seconds: float) -> dict[str, Any]:
        return self._output(job)

    def log(self, job: str) -> str:
        return self.said[job]


def test_core_keras_and_tff_do_a_round(site: Callable[..., Site], containers: None) -> None:
    """shard in core, initialise in keras, private training in tff."""
    made = site("images", [{"name": "hospital-a", "privacy": PRIVACY}], enrolled=False, training={"rounds_per_step": 1})
    pipeline = Confined(made.api, made.namespace, made.pipeline, "images")
    results = pipeline.run({"run": "images"}, until="train")
    images = {task.image.rpartition("/")[2].partition("@")[0] for task in pipeline.graph.tasks if task.key in results}
    assert images == {"core", "keras", "tff"}
    trained = next(results[task.key] for task in pipeline.graph.tasks if task.step == "train")
    assert trained["parameterValues"]


def test_serve_answers(cluster: Cluster, containers: None, tmp_path: Path) -> None:
    port, name = 8099, "fedpipe-serve-test"
    tmp_path.chmod(0o755)
    command = [*CONFINED, f"--name={name}", f"--volume={tmp_path}:/mnt/models:ro", f"{REGISTRY}/serve:{__version__}",
               "serve", "--host", clusters.NODE, "--port", str(port), "--models", "/mnt/models"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            answer = _asked(f"http://{clusters.NODE}:{port}/v2", server)
        finally:
            subprocess.run(["podman", "kill", name], check=False, capture_output=True)
            server.communicate()
    assert answer["name"] == "fedpipe"
    assert answer["version"] == __version__


def _asked(url: str, server: subprocess.Popen[str]) -> Any:
    for _ in range(120):
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.loads(answer.read())
        except OSError:
            assert server.poll() is None, server.stdout and server.stdout.read()
            time.sleep(0.5)
    raise AssertionError("the server does not answer")


@pytest.mark.parametrize("name", NAMES)
class TestAnImage:
    def test_says_what_it_is(self, built: dict[str, str], name: str) -> None:
        (found,) = json.loads(_podman("image", "inspect", f"{REGISTRY}/{name}@{built[name]}"))
        assert found["Config"]["User"] == "10001:10001"
        assert found["Labels"]["org.opencontainers.image.title"] == f"fedpipe/{name}"
        assert found["Labels"]["org.opencontainers.image.version"] == __version__
        assert not LARGEST[LOCKS[name]] * 10**6 < found["Size"]

    def test_lists_what_is_in_it(self, containers: None, built: dict[str, str], name: str) -> None:
        """The SBOM has exactly the packages of the image's lock."""
        text = _podman("run", "--rm", "--ulimit=host", "--network=none", "--entrypoint=cat",
                       f"{REGISTRY}/{name}:{__version__}", "/opt/fedpipe/sbom.cdx.json")  # fmt: skip
        listed = {one["name"].lower().replace("_", "-"): one["version"] for one in json.loads(text)["components"]}
        lock = Path("requirements") / f"{LOCKS[name]}.txt"
        assert {f"{package}=={version}" for package, version in listed.items()} == set(_locked(lock))

    def test_has_no_kfp(self, containers: None, built: dict[str, str], name: str) -> None:
        done = subprocess.run(
            ["podman", "run", "--rm", "--ulimit=host", "--network=none", "--entrypoint=python3",
             f"{REGISTRY}/{name}:{__version__}", "-c", "import kfp"], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "No module named 'kfp'" in done.stderr


def _locked(lock: Path) -> Iterator[str]:
    for line in lock.read_text().splitlines():
        if "==" in line and not line.startswith((" ", "#")):
            package, _, version = line.partition("==")
            yield f"{package.lower().replace('_', '-')}=={version.split()[0]}"


def _podman(*arguments: str) -> str:
    return subprocess.run(["podman", *arguments], capture_output=True, text=True, check=True).stdout
