"""The chart with the real helm: it lints, its values are checked, and what it renders is restricted and whole."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpipe.commands.invitations import invite
from fedpipe.commands.joining import join
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.store import open_store
from fedpipe.store.concealment import changed_environment
from fedpipe.version import __version__
from tests import binaries, servers
from tests.commands.test_joining import NO_KEYS, s3_file

CHART = Path(__file__).parents[1] / "helm" / "fedpipe"
STORE = {"store.uri": "s3://models/prod/digits?endpoint=http://minio:9000", "store.existingSecret": "store"}
ALL = {
    **STORE,
    "serving.tokenSecret": "token",
    "autoscaling.enabled": "true",
    "serviceMonitor.enabled": "true",
}
pytestmark = [pytest.mark.heavy, pytest.mark.xdist_group("helm")]


def helm(*arguments: str, **values: str) -> subprocess.CompletedProcess[str]:
    sets = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    # Installed from its module, helm takes Kubernetes for 1.20.
    command = [str(binaries.find_binary("helm")), *arguments, "--kube-version", "1.34.0", *sets]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rendered(**values: str) -> dict[str, Any]:
    done = helm("template", "prod", str(CHART), "--namespace", "ml", **values)
    assert done.returncode == 0, done.stderr
    return {f"{one['kind']}": one for one in yaml.load_all(done.stdout, yaml.CSafeLoader) if one}


@pytest.mark.parametrize("values", [STORE, ALL, {"kserve.enabled": "true", "kserve.storageUri": "s3://b/p/models"}])
def test_it_lints(values: dict[str, str]) -> None:
    done = helm("lint", "--strict", str(CHART), **values)
    assert done.returncode == 0, done.stdout + done.stderr


def test_by_default_it_is_a_deployment_with_all_that_guards_it() -> None:
    assert set(rendered(**STORE)) == {
        "Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Pod", "Secret",
    }  # fmt: skip
    assert set(rendered(**ALL)) >= {"HorizontalPodAutoscaler", "ServiceMonitor"}


def test_with_kserve_it_is_a_runtime_and_a_service_of_it() -> None:
    found = rendered(**{"kserve.enabled": "true", "kserve.storageUri": "s3://b/p/models"})
    assert set(found) == {"ServingRuntime", "InferenceService"}
    assert (
        found["InferenceService"]["spec"]["predictor"]["model"]["runtime"]
        == found["ServingRuntime"]["metadata"]["name"]
    )


@pytest.mark.parametrize("kind", ["Deployment", "Pod"])
def test_pods_are_restricted(kind: str) -> None:
    """The pods meet Pod Security's level `restricted`, and more: no token, and no writes except where needed."""
    found = rendered(**ALL)[kind]
    spec = found["spec"]["template"]["spec"] if kind == "Deployment" else found["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert set(container["resources"]) == {"requests", "limits"}


def test_the_command_is_one_that_fedpipe_takes(tmp_path: Path) -> None:
    """Every option that the chart writes is one of `fedpipe serve --help`."""
    from typer.main import get_command

    from fedpipe.cli.main import app

    known = {
        name
        for parameter in get_command(app).commands["serve"].params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }  # type: ignore[attr-defined]
    container = rendered(**{**ALL, "serving.accessLog": "false"})["Deployment"]["spec"]["template"]["spec"][
        "containers"
    ][0]
    assert container["args"][0] == "serve"
    assert {argument.partition("=")[0] for argument in container["args"][1:]} <= known
    assert container["image"] == f"fedpipe/serve:{__version__}"


def test_a_service_account_with_an_identity_needs_no_secret() -> None:
    role = {"serviceAccount.annotations.eks\\.amazonaws\\.com/role-arn": "arn:aws:iam::1:role/models"}
    found = rendered(**{"store.uri": "s3://models/prod/digits", "env.HTTPS_PROXY": "http://proxy:3128", **role})
    spec = found["Deployment"]["spec"]["template"]["spec"]
    variables = {one["name"]: one["value"] for one in spec["containers"][0]["env"]}
    assert variables["HTTPS_PROXY"] == "http://proxy:3128"
    assert "FEDPIPE_SECRET_DIR" not in variables
    assert [v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v] == ["prod-fedpipe-token"]
    assert "eks.amazonaws.com/role-arn" in found["ServiceAccount"]["metadata"]["annotations"]


def test_secrets_are_mounted_and_never_in_the_environment() -> None:
    spec = rendered(**ALL)["Deployment"]["spec"]["template"]["spec"]
    assert {v["secret"]["secretName"] for v in spec["volumes"] if "secret" in v} == {"store", "token"}
    assert all("valueFrom" not in variable for variable in spec["containers"][0]["env"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "store.uri is needed"),
        ({"store.uri": "s3://b/p"}, "store.existingSecret is needed"),
        ({**STORE, "store.uri": "http://b/p"}, "pattern"),
        ({**STORE, "replica": "2"}, "replica"),
        ({**STORE, "serving.batch": "0"}, "minimum"),
        ({"kserve.enabled": "true"}, "kserve.storageUri is needed"),
    ],
)
def test_values_that_are_wrong(values: dict[str, str], message: str) -> None:
    done = helm("template", "prod", str(CHART), **values)
    assert done.returncode != 0
    assert message in done.stderr


FEDERATION = {**STORE, "federation.name": "digits", "federation.learners[0].name": "a"}
TRIAL = {
    "trialStore.enabled": "true",
    "trialStore.secret": "admin",
    "bucket.enabled": "true",
    "bucket.adminSecret": "admin",
}
DIGEST = "sha256:" + "ab" * 32


def everything(**values: str) -> list[dict[str, Any]]:
    done = helm("template", "prod", str(CHART), "--namespace", "ml", **values)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.load_all(done.stdout, yaml.CSafeLoader) if one]


def policies(**values: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one["spec"] for one in everything(**values) if one["kind"] == "NetworkPolicy"}


def peers_of(policy: dict[str, Any], port: int) -> list[dict[str, Any]]:
    """The peers to which a policy opens a port."""
    rules = [rule for rule in policy["egress"] if port in [one["port"] for one in rule["ports"]]]
    return [peer for rule in rules for peer in rule["to"]]


DNS = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}}]  # fmt: skip


def test_no_policy_opens_a_port_to_any_host() -> None:
    found = policies(**FEDERATION, **TRIAL)
    assert set(found) == {
        "prod-fedpipe-serving", "prod-fedpipe-digits-steps", "prod-fedpipe-bucket", "prod-fedpipe-store",
    }  # fmt: skip
    for name, policy in found.items():
        assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
        for rule in policy["egress"]:
            assert rule["to"], name
            assert all(rule["to"]), name
            assert rule["ports"], name
        if name != "prod-fedpipe-store":
            assert peers_of(policy, 53) == DNS
    assert found["prod-fedpipe-store"]["egress"] == []
    ingress = found["prod-fedpipe-store"]["ingress"]
    assert [list(one) for rule in ingress for one in rule["from"]] == [["podSelector"], ["podSelector"]]
    assert found["prod-fedpipe-digits-steps"]["ingress"] == found["prod-fedpipe-bucket"]["ingress"] == []


@pytest.mark.parametrize(
    ("endpoint", "peer"),
    [
        ("http://minio:9000", {"podSelector": {}}),
        ("http://minio.store.svc:9000", {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "store"}}}),
        ("https://minio.s-3.svc.cluster.local", {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "s-3"}}}),
        ("http%3A%2F%2Fminio.store%3A9000", {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "store"}}}),
        ("http://10.1.2.3:9000&region=x", {"ipBlock": {"cidr": "10.1.2.3/32"}}),
    ],
)  # fmt: skip
def test_the_store_is_named_by_its_endpoint(endpoint: str, peer: dict[str, Any]) -> None:
    found = policies(**{**FEDERATION, "store.uri": f"s3://models/prod/digits?endpoint={endpoint}"})
    for name in ("prod-fedpipe-serving", "prod-fedpipe-digits-steps"):
        assert peer in peers_of(found[name], 9000)


def test_the_port_of_the_endpoint_is_open_too() -> None:
    """And those at which pods of MinIO and SeaweedFS listen: a policy concerns them, not the Service before them."""
    found = policies(**{**FEDERATION, "store.uri": "s3://models/prod/digits?endpoint=http://minio.store.svc:7000"})
    store = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "store"}}}
    kubeflow = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kubeflow"}}}
    for policy in (found["prod-fedpipe-serving"], found["prod-fedpipe-digits-steps"]):
        assert [port for port in (443, 7000, 8333, 9000) if store in peers_of(policy, port)] == [443, 7000, 8333, 9000]
    for port in (8080, 8333, 8887, 9000):
        assert kubeflow in peers_of(found["prod-fedpipe-digits-steps"], port)


def test_the_trial_store_is_named_by_its_pods() -> None:
    uri = "s3://models/prod/digits?endpoint=http://prod-fedpipe-store.ml.svc:9000"
    found = policies(**{**FEDERATION, **TRIAL, "store.uri": uri})
    labels = {"app.kubernetes.io/instance": "prod", "app.kubernetes.io/component": "store"}
    for name in ("prod-fedpipe-serving", "prod-fedpipe-digits-steps", "prod-fedpipe-bucket"):
        assert {"podSelector": {"matchLabels": labels}} in peers_of(found[name], 9000)


@pytest.mark.parametrize("uri", ["s3://models/prod/digits", "s3://models/prod/digits?endpoint=https://s3.example.org"])
def test_a_store_outside_the_cluster_must_be_named(uri: str) -> None:
    values = {**FEDERATION, "store.uri": uri}
    for policy in policies(**values).values():
        assert peers_of(policy, 443) == []
        assert all(rule["to"] for rule in policy["egress"])
    given = {**values, "egress.store[0].ipBlock.cidr": "192.0.2.0/24", "egress.dns[0].ipBlock.cidr": "10.0.0.10/32",
             "egress.more[0].to[0].ipBlock.cidr": "192.0.2.7/32", "egress.more[0].ports[0].port": "3128",
             "federationPolicy.apiServer[0].ipBlock.cidr": "10.9.9.9/32"}  # fmt: skip
    for name, policy in policies(**given).items():
        assert {"ipBlock": {"cidr": "192.0.2.0/24"}} in peers_of(policy, 443)
        assert peers_of(policy, 53) == [{"ipBlock": {"cidr": "10.0.0.10/32"}}]
        assert peers_of(policy, 3128) == [{"ipBlock": {"cidr": "192.0.2.7/32"}}]
        assert bool(peers_of(policy, 6443)) == name.endswith("steps")


def test_clients_need_a_token_by_default() -> None:
    """The chart makes one, of 40 random characters; every installation has another."""
    made = [one for one in everything(**STORE) if one["kind"] in ("Secret", "Deployment")]
    again = next(one for one in everything(**STORE) if one["kind"] == "Secret")
    secret, deployment = sorted(made, key=lambda one: str(one["kind"]), reverse=True)
    token = base64.b64decode(secret["data"]["token"]).decode()
    assert re.fullmatch("[A-Za-z0-9]{40}", token)
    assert again["data"]["token"] != secret["data"]["token"]
    spec = deployment["spec"]["template"]["spec"]
    assert "--token-file=/secrets/token/token" in spec["containers"][0]["args"]
    assert {"name": "token", "secret": {"secretName": secret["metadata"]["name"]}} in spec["volumes"]
    monitor = rendered(**STORE, **{"serviceMonitor.enabled": "true"})["ServiceMonitor"]["spec"]["endpoints"][0]
    assert monitor["authorization"]["credentials"] == {"name": secret["metadata"]["name"], "key": "token"}


@pytest.mark.parametrize("values", [{"serving.tokenSecret": "mine"}, {"serving.anonymous": "true"}])
def test_the_token_is_ones_own_or_none(values: dict[str, str]) -> None:
    found = rendered(**STORE, **values)
    assert "Secret" not in found
    spec = found["Deployment"]["spec"]["template"]["spec"]
    assert ("--token-file=/secrets/token/token" in spec["containers"][0]["args"]) == ("serving.tokenSecret" in values)


def images_in(value: Any) -> set[str]:
    if isinstance(value, dict):
        inner = set().union(*map(images_in, value.values()))
        return inner | ({value["image"]} if isinstance(value.get("image"), str) else set())
    return set().union(*map(images_in, value)) if isinstance(value, list) else set()


def test_images_by_digest() -> None:
    digests = {"image.digest": DIGEST, "bucket.digest": DIGEST, "trialStore.image": f"minio/minio@{DIGEST}"}
    names = {"fedpipe/serve", "fedpipe/core", "minio/minio"}
    assert images_in(everything(**FEDERATION, **TRIAL, **digests)) == {f"{name}@{DIGEST}" for name in names}
    assert images_in(everything(**FEDERATION, **TRIAL, **digests, requireDigests="true"))
    for left_out in digests:
        values = {**FEDERATION, **TRIAL, **digests, "requireDigests": "true"} | {left_out: ""}
        values["trialStore.image"] = values["trialStore.image"] or "minio/minio:1"
        done = helm("template", "prod", str(CHART), **values)
        assert done.returncode != 0
        assert "has no digest, and requireDigests is true" in done.stderr
    for image in images_in(everything(**FEDERATION, **TRIAL)):
        assert not image.endswith(":latest")
        assert ":" in image


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"store.uri": "s3://key:secret@b/p"}, "store.uri contains a user name or password"),
        ({"store.uri": "s3://b/p?endpoint=https://user:secret@host"}, "store.uri contains a user name or password"),
        ({"store.uri": "https://user:secret@host"}, "store.uri contains a user name or password"),
        ({"image.digest": "sha256:1"}, "pattern"),
        ({"image.digest": "latest"}, "pattern"),
        ({"egress.dns": "null"}, "egress.dns is needed"),
        ({"networkPolicy.storePorts": "null"}, "the ports of the store are needed"),
        ({"egress.store[0].cidr": "1.2.3.4/32"}, "cidr"),
        ({"egress.store[0].ipBlock.cidr": "0.0.0.0/0"}, "not"),
        ({"egress.more[0].ports[0].port": "443"}, "to"),
    ],
)
def test_values_that_would_open_too_much(values: dict[str, str], message: str) -> None:
    done = helm("template", "prod", str(CHART), **{**FEDERATION, **values})
    assert done.returncode != 0
    assert message in done.stderr
    assert "secret@" not in done.stderr


def test_pods_of_the_chart_reserve_cores_and_memory() -> None:
    for one in everything(**FEDERATION, **TRIAL):
        if one["kind"] in ("Deployment", "Job"):
            for container in one["spec"]["template"]["spec"]["containers"]:
                assert set(container["resources"]["requests"]) == {"cpu", "memory"}


def test_the_job_sets_the_end_of_old_versions() -> None:
    def arguments(**values: str) -> list[str]:
        job = next(one for one in everything(**STORE, **TRIAL, **values) if one["kind"] == "Job")
        return list(job["spec"]["template"]["spec"]["containers"][0]["args"])

    assert len(arguments()) == 1
    assert "--noncurrent-days=30" in arguments(**{"bucket.noncurrentDays": "30"})


REGISTRAR = {
    "registrar.enabled": "true", "registrar.storeSecret": "admin", "registrar.administratorSecret": "administrator",
    "serving.enabled": "false", "store.uri": STORE["store.uri"],
}  # fmt: skip


def registrar(folder: Path, federation: str, **values: str) -> list[dict[str, Any]]:
    (folder / "given.yaml").write_text(federation)
    more = [f"--set-file=registrar.federation={folder / 'given.yaml'}"]
    done = helm("template", "prod", str(CHART), "--namespace", "ml", *more, **{**REGISTRAR, **values})
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.load_all(done.stdout, yaml.CSafeLoader) if one]


class TestTheRegistrar:
    def test_it_is_off_by_default(self) -> None:
        assert not [one for one in everything(**FEDERATION, **TRIAL) if "registrar" in one["metadata"]["name"]]

    def test_it_is_restricted_and_reaches_the_store_only(self, tmp_path: Path) -> None:
        objects = registrar(tmp_path, "name: tiny\n", **{"image.digest": DIGEST, "bucket.digest": DIGEST})
        found = {one["kind"]: one for one in objects if one["metadata"]["name"] == "prod-fedpipe-registrar"}
        assert set(found) == {"ConfigMap", "Deployment", "NetworkPolicy"}
        pod = found["Deployment"]["spec"]["template"]
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["spec"]["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["image"] == f"fedpipe/core@{DIGEST}"
        assert all(one["readOnly"] for one in container["volumeMounts"] if one["mountPath"] != "/tmp")
        policy = found["NetworkPolicy"]["spec"]
        assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        assert policy["ingress"] == []
        assert peers_of(policy, 53) == DNS
        assert peers_of(policy, 9000) == [{"podSelector": {}}]

    @pytest.mark.parametrize("left_out", ["federation", "storeSecret", "administratorSecret"])
    def test_what_it_needs(self, left_out: str, tmp_path: Path) -> None:
        values = {**REGISTRAR, "registrar.federation": "x", f"registrar.{left_out}": ""}
        done = helm("template", "prod", str(CHART), **values)
        assert done.returncode != 0
        assert f"registrar.{left_out} is needed" in done.stderr

    def test_it_accepts_an_invited_site(self, minio_server: servers.Server, s3_keys: None, tmp_path: Path) -> None:
        """The rendered command, in a process with the folders that its volumes would be."""
        file, config = s3_file(tmp_path, minio_server), tmp_path / "site.yaml"
        made = invite(file, "b", out=tmp_path / "b.yaml")
        found = {one["kind"]: one for one in registrar(tmp_path, file.read_text(), **{"registrar.examples": "9"})}
        (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
        (tmp_path / "federation.yaml").write_text(found["ConfigMap"]["data"]["federation.yaml"])
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / "accesskey").write_text(servers.ACCESS_KEY)
        (tmp_path / "store" / "secretkey").write_text(servers.SECRET_KEY)
        places = {
            "/etc/fedpipe": str(tmp_path), "/secrets/administrator": str(file.parent / "keys"),
            "/secrets/store": str(tmp_path / "store"), "/tmp": str(tmp_path),
        }  # fmt: skip

        def here(text: str) -> str:
            name, equals, value = text.rpartition("=")
            folder = next((one for one in places if value.startswith(one)), "")
            return name + equals + places.get(folder, "") + value.removeprefix(folder)

        variables = {one["name"]: here(one["value"]) for one in container["env"]}
        words = [*container["command"][1:], *map(here, container["args"])]
        with subprocess.Popen(
            [sys.executable, "-m", "fedpipe", *words], env={**os.environ, **NO_KEYS, **variables},
            stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                with changed_environment(NO_KEYS):
                    assert join(made.file, config, wait=60).site == "b"
            finally:
                process.kill()
        assert (
            read_enrolled(open_store(yaml.safe_load(file.read_text())["store"]).below("tiny")).learners["b"].examples
            == 9
        )


def test_the_readme_lists_every_value() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    page = (CHART / "README.md").read_text()
    for section, inner in values.items():
        for key in inner if isinstance(inner, dict) and inner else [None]:
            name = f"{section}.{key}" if key else section
            assert f"`{name}`" in page, name


def test_the_versions_are_those_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
