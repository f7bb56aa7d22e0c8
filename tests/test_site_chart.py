"""The chart of a site with the real helm: it is restricted, reaches the store and DNS only, and its site joins."""

from __future__ import annotations

import base64
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpipe.commands.admission import accept
from fedpipe.commands.invitations import invite
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.sites.description import IMAGE
from fedpipe.sites.invitation import make_invitation, write_invitation
from fedpipe.sites.site import read_site
from fedpipe.store import open_store
from fedpipe.version import __version__
from tests import binaries, servers
from tests.commands.test_joining import done, fedpipe, s3_file

CHART = Path(__file__).parents[1] / "helm" / "fedpipe-site"
STORE = {"egress.store[0].ipBlock.cidr": "192.0.2.7/32"}
WHOLE = {**STORE, "data.claim": "patients", "site.policy.data": "/data/patients.npz"}
pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("helm")]


@pytest.fixture
def invitation(tmp_path: Path) -> Path:
    made = make_invitation(
        "1a" * 32, "digits", "hospital-b", "s3://bucket/h?endpoint=https://minio.example.org", created=0,
        expires=2**36, ca="-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        request="https://minio.example.org/a?X=1", answer="https://minio.example.org/b?X=2",
    )  # fmt: skip
    write_invitation(tmp_path / "invitation.yaml", made)
    return tmp_path / "invitation.yaml"


def helm(action: str, *arguments: str, **values: str) -> subprocess.CompletedProcess[str]:
    sets = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    command = [str(binaries.find_binary("helm")), action, *arguments, "--kube-version", "1.34.0", *sets]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rendered(invitation: Path | None, **values: str) -> list[dict[str, Any]]:
    given = [f"--set-file=invitation={invitation}"] if invitation else []
    done = helm("template", "hb", str(CHART), "--namespace", "site", *given, **values)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.load_all(done.stdout, yaml.CSafeLoader) if one]


def the(kind: str, objects: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


def test_it_lints(invitation: Path) -> None:
    done = helm("lint", "--strict", str(CHART), f"--set-file=invitation={invitation}", **WHOLE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_is_one_pod_with_its_keys_and_its_fence(invitation: Path) -> None:
    objects = rendered(invitation, **WHOLE)
    kinds = sorted(one["kind"] for one in objects)
    assert kinds == ["ConfigMap", "Deployment", "NetworkPolicy", "PersistentVolumeClaim", "Secret"]
    deployment = the("Deployment", objects)["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    assert base64.b64decode(the("Secret", objects)["data"]["invitation"]).decode() == invitation.read_text()
    claim = the("PersistentVolumeClaim", objects)["metadata"]
    assert claim["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert "PersistentVolumeClaim" not in {
        one["kind"] for one in rendered(invitation, **STORE, **{"state.claim": "own"})
    }


def test_the_pod_is_restricted(invitation: Path) -> None:
    """It meets Pod Security's level `restricted`: also its volumes, of which hostPath is none."""
    spec = the("Deployment", rendered(invitation, **WHOLE))["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for container in (*spec["initContainers"], *spec["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert set(container["resources"]) == {"requests", "limits"}
        assert "ports" not in container
        assert container["image"] == f"fedpipe/keras:{__version__}"
        assert {"name": IMAGE, "value": container["image"]} in container["env"], "a part of what is approved"
    for volume in spec["volumes"]:
        assert set(volume) - {"name"} <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
    mounts = {one["mountPath"]: one.get("readOnly", False) for one in spec["containers"][0]["volumeMounts"]}
    assert mounts == {"/tmp": False, "/state": False, "/etc/fedpipe": True, "/data": True}


def test_it_reaches_the_store_and_dns_only(invitation: Path) -> None:
    policy = the("NetworkPolicy", rendered(invitation, **WHOLE))
    pod = the("Deployment", rendered(invitation, **WHOLE))["spec"]["template"]["metadata"]["labels"]
    spec = policy["spec"]
    assert spec["podSelector"]["matchLabels"].items() <= pod.items()
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert spec["ingress"] == []
    dns, store = spec["egress"]
    assert {one["port"] for one in dns["ports"]} == {53}
    assert dns["to"][0]["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    assert store["to"] == [{"ipBlock": {"cidr": "192.0.2.7/32"}}]
    assert [one["port"] for one in store["ports"]] == [9000, 8333, 443]


@pytest.mark.parametrize(
    ("endpoint", "variable", "proxy", "more"),
    [
        ("https://minio.example.org:9443", "HTTPS_PROXY", "http://site:word@proxy.example.org:3128/", [9443, 3128]),
        ("http://minio.example.org", "all_proxy", "http://proxy.example.org:8080", [80, 8080]),
        ("https://minio.example.org", "HTTP_PROXY", "http://proxy.example.org", [80]),
    ],
)
def test_ports_of_the_endpoint_and_of_a_proxy_are_open_too(
    invitation: Path, endpoint: str, variable: str, proxy: str, more: list[int]
) -> None:
    invitation.write_text(invitation.read_text().replace("https://minio.example.org", endpoint))
    objects = rendered(invitation, **STORE, **{f"env.{variable}": proxy})
    ports = the("NetworkPolicy", objects)["spec"]["egress"][1]["ports"]
    assert [one["port"] for one in ports] == [9000, 8333, 443, *more]


def test_both_charts_know_the_same_stores() -> None:
    values = [yaml.safe_load((CHART.parent / name / "values.yaml").read_text()) for name in ("fedpipe-site", "fedpipe")]
    own, (other, federations) = values[0]["egress"], (values[1][name] for name in ("networkPolicy", "federationPolicy"))
    assert own["storePorts"] == other["storePorts"] == federations["storePorts"]


def test_its_site_yaml_follows_from_the_invitation(invitation: Path) -> None:
    values = {**WHOLE, "site.look": "60", "site.state": "/state/mine"}
    content = yaml.safe_load(the("ConfigMap", rendered(invitation, **values))["data"]["site.yaml"])
    assert re.fullmatch("[0-9a-f]{64}", content.pop("administrator"))
    assert content == {
        "store": "s3://bucket/h?endpoint=https://minio.example.org", "federation": "digits", "name": "hospital-b",
        "state": "/state/mine", "credentials": "/state/site/store", "ca": "/state/site/ca.pem", "look": 60,
        "policy": {"data": "/data/patients.npz"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "egress.store is needed"),
        ({**STORE, "site.name": "hospital-c"}, "site.name is not that of the invitation, hospital-b"),
        ({**STORE, "site.federation": "other"}, "site.federation is not that of the invitation, digits"),
        ({"egress.store[0].ipBlock.cidr": "0.0.0.0/0"}, "not"),
        ({**STORE, "image.digest": "latest"}, "pattern"),
        ({**STORE, "requireDigests": "true"}, "has no digest, and requireDigests is true"),
        ({**STORE, "egress.dns": "null"}, "egress"),
        ({**STORE, "polcy.data": "x"}, "polcy"),
        ({**STORE, "data.path": "/srv"}, "path"),
    ],
)
def test_values_that_cannot_be(values: dict[str, str], message: str, invitation: Path) -> None:
    done = helm("template", "hb", str(CHART), f"--set-file=invitation={invitation}", **values)
    assert done.returncode != 0
    assert message in done.stderr


def test_without_an_invitation_it_needs_a_secret_with_one(tmp_path: Path) -> None:
    done = helm("template", "hb", str(CHART), **STORE)
    assert "invitation is needed" in done.stderr
    (tmp_path / "other.yaml").write_text("name: digits\n")
    done = helm("template", "hb", str(CHART), f"--set-file=invitation={tmp_path / 'other.yaml'}", **STORE)
    assert "invitation is not the file that `fedpipe invite` wrote" in done.stderr
    done = helm("template", "hb", str(CHART), **STORE, invitationSecret="mine")
    assert "is needed, without invitation" in done.stderr
    words = {"site.store": "s3://b/p", "site.federation": "digits", "site.name": "b", "site.administrator": "ab" * 32}
    objects = rendered(None, **STORE, **words, invitationSecret="mine")
    volumes = the("Deployment", objects)["spec"]["template"]["spec"]["volumes"]
    assert [v["secret"]["secretName"] for v in volumes if "secret" in v] == ["mine"]
    assert "Secret" not in {one["kind"] for one in objects}


def test_a_site_joins_with_what_the_chart_renders(minio_server: servers.Server, s3_keys: None, tmp_path: Path) -> None:
    """The init container's command, twice: the second time it finds its work done."""
    file = s3_file(tmp_path, minio_server)
    made = invite(file, "b", out=tmp_path / "b.yaml")
    objects = rendered(made.file, **STORE)
    container = the("Deployment", objects)["spec"]["template"]["spec"]["initContainers"][0]
    assert container["command"] == ["fedpipe", "site", "join"]
    assert container["args"] == ["/secrets/invitation/invitation", "--config=/etc/fedpipe/site.yaml"]
    config = tmp_path / "site.yaml"
    config.write_text(the("ConfigMap", objects)["data"]["site.yaml"].replace("/state", str(tmp_path / "state")))
    before = config.read_text()
    words = ["site", "join", made.file, f"--config={config}"]
    with fedpipe(*words, "--wait=0", folder=tmp_path, keys_of_store=False) as process:
        assert "there is no answer yet" in " ".join(process.communicate(timeout=60)[1].split())
    accept(file, "b")
    for _ in range(2):
        assert "b has joined tiny" in done(*words, folder=tmp_path, keys_of_store=False)
    assert config.read_text() == before
    uri = str(yaml.safe_load(file.read_text())["store"])
    assert read_enrolled(open_store(uri).below("tiny")).learners["b"].key == read_site(config).public_key


def test_the_page_lists_every_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    page = (CHART / "README.md").read_text()
    for section, inner in values.items():
        for key in inner if isinstance(inner, dict) and inner else [None]:
            assert f"`{section}.{key}`" in page or f"`{section}`" in page, (section, key)


def test_the_versions_are_those_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
