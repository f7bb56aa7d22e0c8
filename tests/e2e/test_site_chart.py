"""A site on its owner's own Kubernetes: its chart joins by the registrar of the other chart, and attends a session.

Its namespace takes restricted pods only. The network of this cluster enforces no NetworkPolicy: the server checks that
of the chart, and tests/e2e/test_site_network.py counts a site's packets.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client
from kubernetes.stream import stream

import fedpipe
from fedpipe.commands.invitations import invite
from fedpipe.rounds.history import history
from fedpipe.sessions.presence import read_presence
from fedpipe.sites.audit import find_flaw
from fedpipe.sites.decisions import signer_in
from fedpipe.sites.journal import entries_of
from fedpipe.store import keys
from fedpipe.store.base import Credentials
from tests import binaries, servers
from tests.e2e import cluster as clusters
from tests.e2e.cluster import Cluster
from tests.e2e.images import REGISTRY
from tests.e2e.sites import secret
from tests.sites.hospitals import LOCAL, ROUNDS, SITES, Federation, until

CHARTS = Path(__file__).parents[2] / "helm"
NAME = SITES[0]
USER = 10001
CONFIG = "--config=/etc/fedpipe/site.yaml"
EGRESS = {"egress.store[0].ipBlock.cidr": f"{clusters.NODE}/32"}


class Place:
    """A namespace for a site, with a volume for its state and one with its data.

    Args:
        core: of the cluster's API.
        folder: for the volumes.
    """

    def __init__(self, core: client.CoreV1Api, folder: Path) -> None:
        self.core, self.name = core, f"owner-{secrets.token_hex(2)}"
        self.state, self.data = folder / f"{self.name}-state", folder / f"{self.name}-data"

    def __enter__(self) -> Place:
        level = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.core.create_namespace({"metadata": {"name": self.name, "labels": level}})
        for path in (self.state, self.data):
            path.mkdir()
            shutil.chown(path, USER, USER)
        self._volume(self.state, f"{NAME}-fedpipe-site-state")
        self._volume(self.data, "patients")
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        self.core.create_namespaced_persistent_volume_claim(
            self.name, {"metadata": {"name": "patients"}, "spec": claim}
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.core.delete_namespace(self.name)
        for path in (self.state, self.data):
            self.core.delete_persistent_volume(path.name)

    def _volume(self, path: Path, claim: str) -> None:
        spec = {
            "capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": str(path)},
            "claimRef": {"namespace": self.name, "name": claim},
        }  # fmt: skip
        self.core.create_persistent_volume({"metadata": {"name": path.name}, "spec": spec})

    def helm(self, *arguments: str) -> str:
        command = [str(binaries.find_binary("helm")), "--namespace", self.name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    def install(self, release: str, chart: str, *files: str, **values: str) -> None:
        given = [f"--set-file={one}" for one in files] + [f"--set={name}={value}" for name, value in values.items()]
        self.helm("install", release, str(CHARTS / chart), *given)

    def typed(self, *words: str) -> str:
        """The output of a command in the container of the agent, as its owner types it."""
        where = {"label_selector": f"app.kubernetes.io/instance={NAME}", "field_selector": "status.phase=Running"}

        def running() -> list[client.V1Pod]:
            return list(self.core.list_namespaced_pod(self.name, **where).items)

        (pod,) = until(running)  # the agent may say that it waits before the node says that its pod runs
        shown = {"stdout": True, "stderr": True, "stdin": False, "tty": False, "_preload_content": False}
        command = ["fedpipe", "site", *words, CONFIG]
        call = self.core.connect_get_namespaced_pod_exec
        process = stream(call, pod.metadata.name, self.name, container="agent", command=command, **shown)
        try:
            process.run_forever(timeout=60)
            return str(process.read_stdout())
        finally:
            process.sock.shutdown()  # `close` does nothing once the server has closed


@pytest.fixture
def place(core: client.CoreV1Api, cluster: Cluster) -> Iterator[Place]:
    with Place(core, cluster.folder) as made:
        yield made


@pytest.fixture
def federation(numpy_digits: Path, store: str, place: Place) -> Federation:
    """Five hospitals, one of them at the site; its data are in the site's volume and nowhere else."""
    made = Federation(numpy_digits, store.replace("?", f"/{place.name}?"))
    made.write(sites=(NAME,))
    shutil.move(made.folder / f"{NAME}.npz", place.data / "patients.npz")
    return made


def test_a_site_joins_attends_and_leaves(
    place: Place, federation: Federation, built: dict[str, str], core: client.CoreV1Api, api: client.ApiClient,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The owner approves the plan by a command in the pod. An uninstall ends the agent, and keeps keys and journal."""
    file, owned = federation.folder / "federation.yaml", tmp_path / "keys"
    invitation = invite(file, NAME, keys=owned, out=tmp_path / "invitation.yaml").file
    secret(core, place.name, "store", Credentials(servers.ACCESS_KEY, servers.SECRET_KEY))
    administrator = {name: (owned / name).read_text() for name in ("_administrator.key", "_administrator.pub")}
    core.create_namespaced_secret(place.name, {"metadata": {"name": "administrator"}, "stringData": administrator})
    registrar = {
        "registrar.enabled": "true", "registrar.storeSecret": "store", "registrar.administratorSecret": "administrator",
        "serving.enabled": "false", "store.uri": federation.uri.replace("?", f"/{federation.name}?"),
        "bucket.image": f"{REGISTRY}/core",
    }  # fmt: skip
    place.install("office", "fedpipe", f"registrar.federation={file}", **EGRESS, **registrar)
    agent = {
        "data.claim": "patients", "site.policy.data": "/data/patients.npz", "resources.requests.cpu": "100m",
        "resources.requests.memory": "256Mi", "image.repository": f"{REGISTRY}/keras", "image.digest": built["keras"],
    }  # fmt: skip
    place.install(NAME, "fedpipe-site", f"invitation={invitation}", **EGRESS, **agent)
    policies = client.NetworkingV1Api(api).list_namespaced_network_policy(place.name).items
    assert {policy.metadata.name for policy in policies} >= {f"{NAME}-fedpipe-site", "office-fedpipe-registrar"}

    command = [sys.executable, "-m", "fedpipe", "run", str(file), "--run", "r1", "--out", str(tmp_path / "out")]
    with (tmp_path / "run.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as run:
        try:
            until(lambda: (found := read_presence(federation.store, NAME)) and found.state == "waits")
            assert "+def build(" in place.typed("pending")
            assert place.typed("approve").startswith("approved sha256:")
            assert run.wait(180) == 0, (tmp_path / "run.log").read_text()
        finally:
            run.kill()
    status = json.loads(place.typed("status", "--json"))
    assert (status["running"], status["enrolled"], status["flaws"]) == (True, True, [])
    records = history(federation.store, "r1")
    assert [len(record.contributors) for record in records[1:]] == [len(LOCAL) + len(SITES)] * ROUNDS

    place.helm("uninstall", NAME, "--wait", "--timeout", "2m")
    until(lambda: (found := read_presence(federation.store, NAME)) and found.state == "ended")
    claim = core.read_namespaced_persistent_volume_claim(f"{NAME}-fedpipe-site-state", place.name)
    assert claim.status.phase == "Bound"
    state = place.state / "site"
    assert find_flaw(state / "journal", signer_in(state).public) is None
    noted = list(entries_of(state / "journal"))
    assert {"joined", "waits", "approved", "attends", "stopped"} <= {entry.event for entry in noted}
    assert [entry.fields["round"] for entry in noted if entry.event == "trained"] == list(range(1, ROUNDS + 1))
    (isolated,) = [entry.fields for entry in noted if entry.event == "isolated"]
    assert isolated == status["isolation"]
    assert isolated == {"files": True, "network": True}, "Landlock and seccomp need no right"
    assert {keys.update(NAME, "r1", number) for number in range(1, ROUNDS + 1)} <= {
        entry.fields["object"] for entry in noted if entry.event == "sent"
    }

    alone = Federation(federation.folder, f"file://{tmp_path}/alone")
    fedpipe.run(alone.write(sites=()), out=tmp_path / "alone-out", name="r1")
    assert history(alone.store, "r1")[-1].weights == records[-1].weights
