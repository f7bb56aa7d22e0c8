"""Sites on a real cluster and in a container: the charts of a site and of a registrar, and the file for compose."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from kubernetes import client, dynamic

from fedpipe.commands.identities import enroll
from fedpipe.commands.init import Framework, init
from fedpipe.commands.invitations import invite
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.signing import public_key
from fedpipe.rounds.history import history
from fedpipe.sites.audit import find_flaw
from fedpipe.sites.journal import entries_of
from fedpipe.store import open_store
from fedpipe.store.base import Credentials
from tests import binaries, servers
from tests.e2e import cluster as clusters
from tests.e2e.cluster import NODE, Cluster
from tests.e2e.conftest import BUCKET, ENDPOINT, eventually
from tests.e2e.images import REGISTRY
from tests.e2e.sites import secret

ROOT = Path(__file__).parents[2]
PLACE = f"site-{secrets.token_hex(2)}"
USER = 10001
ON_CLUSTER, IN_CONTAINER = "hospital-b", "hospital-c"


def helm(*arguments: str) -> str:
    command = [str(binaries.find_binary("helm")), "--namespace", PLACE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def place(core: client.CoreV1Api) -> Iterator[str]:
    """A namespace in which only restricted pods may run."""
    level = {"pod-security.kubernetes.io/enforce": "restricted"}
    core.create_namespace({"metadata": {"name": PLACE, "labels": level}})
    yield PLACE
    core.delete_namespace(PLACE)


@pytest.fixture
def federation(tmp_path: Path, store: str) -> Path:
    """Three hospitals, of which two are sites; each has data of its own."""
    file = tmp_path / "operator" / "federation.yaml"
    init(file.parent, framework=Framework.numpy)
    content = yaml.safe_load(file.read_text())
    with np.load(file.parent / "digits.npz") as data:
        for position, name in enumerate(("hospital-a", ON_CLUSTER, IN_CONTAINER)):
            folder = tmp_path / "data" / name
            folder.mkdir(parents=True)
            np.savez(folder / "patients.npz", x=data["x"][position::3], y=data["y"][position::3])
    content["data"].pop("uri")
    content["data"].pop("shards")
    content |= {
        "store": f"s3://{BUCKET}/of-sites?endpoint={ENDPOINT}", "export": "none", "evaluation": {},
        "quorum": {"min_learners": 3, "deadline": 600},
        "learners": [
            {"name": "hospital-a", "data": str(tmp_path / "data" / "hospital-a" / "patients.npz")},
            {"name": ON_CLUSTER, "at": "site"}, {"name": IN_CONTAINER, "at": "site"},
        ],
    }  # fmt: skip
    content["training"]["rounds"] = 1
    file.write_text(yaml.safe_dump(content))
    return file


def volume(core: client.CoreV1Api, name: str, folder: Path, size: str) -> None:
    """A claim in the site's namespace with a folder of this machine: there is no provisioner here."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USER, USER)
    modes, storage = ["ReadWriteOnce"], {"storage": size}
    core.create_persistent_volume({
        "metadata": {"name": f"{PLACE}-{name}"},
        "spec": {"capacity": storage, "accessModes": modes, "hostPath": {"path": str(folder)}, "storageClassName": "",
                 "claimRef": {"namespace": PLACE, "name": name}},
    })  # fmt: skip


def install_registrar(core: client.CoreV1Api, federation: Path) -> None:
    """The chart of the federation, with nothing but its registrar."""
    secret(core, PLACE, "administrator-of-store", Credentials(servers.ACCESS_KEY, servers.SECRET_KEY))
    keys = {path.name: path.read_text() for path in (federation.parent / "keys").glob("_administrator.*")}
    core.create_namespaced_secret(PLACE, {"metadata": {"name": "administrator"}, "stringData": keys})
    uri = yaml.safe_load(federation.read_text())["store"]
    helm("install", "prod", str(ROOT / "helm" / "fedpipe"), "--set", "serving.enabled=false,registrar.enabled=true",
         "--set", "registrar.storeSecret=administrator-of-store,registrar.administratorSecret=administrator",
         "--set", f"bucket.image={REGISTRY}/core,store.uri={uri}",
         "--set-file", f"registrar.federation={federation}")  # fmt: skip


SITE = {
    "image": {"repository": f"{REGISTRY}/keras"},
    "data": {"claim": "patients"},
    "site": {"approve": "any", "policy": {"data": "/data/patients.npz", "algorithms": ["averaging"]}},
    "egress": {"store": [{"ipBlock": {"cidr": f"{NODE}/32"}}]},
    "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"cpu": "1", "memory": "2Gi"}},
}  # fmt: skip


def install_site(
    core: client.CoreV1Api, api: client.ApiClient, cluster: Cluster, data: Path, invitation: Path, folder: Path
) -> Path:
    """The chart of a site; returns the folder of its state."""
    state = cluster.folder / f"{PLACE}-state"
    volume(core, "patients", data, "1Gi")
    volume(core, f"{ON_CLUSTER}-fedpipe-site-state", state, "10Gi")
    patients = {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}
    core.create_namespaced_persistent_volume_claim(PLACE, {"metadata": {"name": "patients"}, "spec": patients})
    values = folder / "values.yaml"
    values.write_text(yaml.safe_dump(SITE))
    given = [str(ROOT / "helm" / "fedpipe-site"), "--values", str(values), "--set-file", f"invitation={invitation}"]
    objects = dynamic.DynamicClient(api)
    for body in filter(None, yaml.safe_load_all(helm("template", ON_CLUSTER, *given))):
        resource = objects.resources.get(api_version=body["apiVersion"], kind=body["kind"])
        resource.server_side_apply(
            body=body, namespace=PLACE, field_manager="test", dry_run="All", field_validation="Strict"
        )
    helm("install", ON_CLUSTER, *given)
    return state


def command_of(service: str, folder: Path, **variables: str) -> list[str]:
    """The command of podman for a service of the compose file, in the network of the cluster's node.

    It runs as root of this machine, which has no user to keep in a container, and may not have limits of cgroups.
    """
    file = ROOT / "examples" / "site" / "compose.yaml"
    found = yaml.safe_load(file.read_text())["services"][service]

    def filled(text: str) -> str:
        return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: variables.get(match[1], match[2]), text)

    for key in ("userns_mode", "profiles", "restart", "stop_grace_period", "mem_limit", "cpus", "pids_limit"):
        found.pop(key, None)
    image = found.pop("image").replace("fedpipe/", f"{REGISTRY}/")
    command = found.pop("command")
    words = ["--read-only"] if found.pop("read_only") else []
    words += [f"--user={found.pop('user')}", f"--workdir={found.pop('working_dir')}"]
    words += [f"--cap-drop={one}" for one in found.pop("cap_drop")]
    words += [f"--security-opt={one.removesuffix(':true')}" for one in found.pop("security_opt")]
    words += [f"--tmpfs={one}" for one in found.pop("tmpfs")]
    words += [f"--env={name}={filled(value)}" for name, value in found.pop("environment").items()]
    for one in found.pop("volumes"):
        source, target = filled(one).split(":", 1)
        words.append(f"--volume={folder / source}:{target}")
    assert not found, "a key of compose that this test does not know"
    surroundings = [f"--network=ns:/run/netns/{clusters.NAME}", "--ulimit=host", "--pull=never"]
    return ["podman", "run", "--rm", f"--name={PLACE}-{service}", *surroundings, *words, image, *command]


@contextlib.contextmanager
def container(folder: Path, invitation: Path, data: Path) -> Iterator[Path]:
    """A site in containers, as the comments of the compose file say; yields the folder of its files."""
    site = folder / "site"
    site.mkdir(parents=True)
    shutil.copy(invitation, site / "invitation.yaml")
    os.chown(site, USER, USER)
    os.chown(site / "invitation.yaml", USER, USER)
    joined = subprocess.run(command_of("join", folder), capture_output=True, text=True, check=False)
    assert joined.returncode == 0, joined.stdout + joined.stderr
    file = site / "site.yaml"
    content = yaml.safe_load(file.read_text()) | {"approve": "any", "policy": {"data": "/data/patients.npz"}}
    file.write_text(yaml.safe_dump(content))
    with (folder / "agent.log").open("wb") as log:
        agent = subprocess.Popen(command_of("agent", folder, SITE_DATA=str(data)), stdout=log, stderr=log)
    try:
        yield site
        stopped = subprocess.run(
            ["podman", "exec", f"{PLACE}-agent", "fedpipe", "site", "stop", "-c", "/site/site.yaml"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert stopped.returncode == 0, stopped.stderr
        assert agent.wait(60) == 0, (folder / "agent.log").read_text()
    finally:
        subprocess.run(["podman", "rm", "--force", "--ignore", f"{PLACE}-agent"], check=False, capture_output=True)
        agent.wait()


def test_sites_join_and_train_a_round(
    core: client.CoreV1Api, api: client.ApiClient, cluster: Cluster, federation: Path, place: str, tmp_path: Path
) -> None:
    """The run waits for two sites that have not joined yet: one is a Deployment, one a container."""
    invited = {
        name: invite(federation, name, out=tmp_path / f"{name}.yaml").file for name in (ON_CLUSTER, IN_CONTAINER)
    }
    enroll(federation, "hospital-a")
    command = [sys.executable, "-m", "fedpipe", "run", str(federation), "--run", "r1", "--out", str(tmp_path / "out")]
    with (tmp_path / "run.log").open("wb") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        install_registrar(core, federation)
        state = install_site(core, api, cluster, tmp_path / "data" / ON_CLUSTER, invited[ON_CLUSTER], tmp_path)
        with container(tmp_path / "compose", invited[IN_CONTAINER], tmp_path / "data" / IN_CONTAINER) as files:
            assert run.wait(240) == 0
    except BaseException:
        print(logs(core, tmp_path))
        raise
    finally:
        run.kill()
        run.wait()
    held = open_store(yaml.safe_load(federation.read_text())["store"]).below("digits")
    assert set(history(held, "r1")[1].contributors) == {"hospital-a", ON_CLUSTER, IN_CONTAINER}
    enrolled = read_enrolled(held).learners
    for name, folder in {ON_CLUSTER: state / "site", IN_CONTAINER: files / "state"}.items():
        assert enrolled[name].key == public_key((folder / f"{name}.key").read_text().strip())
        assert find_flaw(folder / "journal") is None
        assert [entry.fields["round"] for entry in entries_of(folder / "journal") if entry.event == "trained"] == [1]
    (pod,) = core.list_namespaced_pod(place, label_selector="app.kubernetes.io/name=fedpipe-site").items
    assert pod.status.container_statuses[0].restart_count == 0
    helm("uninstall", ON_CLUSTER)
    eventually(lambda: not core.list_namespaced_pod(place, label_selector="app.kubernetes.io/name=fedpipe-site").items)
    claims = {claim.metadata.name for claim in core.list_namespaced_persistent_volume_claim(place).items}
    assert f"{ON_CLUSTER}-fedpipe-site-state" in claims, "the site's key and journal outlive an uninstall"


def logs(core: client.CoreV1Api, folder: Path) -> str:
    """The output of the run, the container and the pods."""
    found = [path.read_text() for path in (folder / "run.log", folder / "compose" / "agent.log") if path.exists()]
    for pod in core.list_namespaced_pod(PLACE).items:
        for part in (*(pod.spec.init_containers or ()), *pod.spec.containers):
            with contextlib.suppress(client.ApiException):
                found.append(core.read_namespaced_pod_log(pod.metadata.name, PLACE, container=part.name))
    return "\n".join(found)
