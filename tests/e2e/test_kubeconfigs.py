"""Tests how commands reach KFP through a real apiserver, with each kind of user that a kubeconfig may name."""

from __future__ import annotations

import base64
import json
import re
import shlex
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from kubernetes import client, config
from typer.testing import CliRunner, Result

import fedpipe
from fedpipe.cli.main import app
from fedpipe.errors import ClusterError
from fedpipe.kubeflow.clients import open_kfp, open_kubernetes
from fedpipe.kubeflow.where import Where
from tests import servers
from tests.e2e import cluster as clusters
from tests.kubeflow.kfp_server import KfpServer, serving
from tests.servers import Server
from tests.store.surroundings import make_certificates

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
CLIENT = "tests server"
"""The name in the certificate that `make_certificates` writes."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an authority, and of a client's certificate that it signed."""
    return make_certificates(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def administrator(tmp_path_factory: pytest.TempPathFactory, authority: Path) -> Iterator[Path]:
    """The kubeconfig of a real apiserver without nodes."""
    options = ("--client-ca-file", authority / "ca.pem")
    with clusters.control_plane(tmp_path_factory.mktemp("apiserver"), *options) as kubeconfig:
        yield kubeconfig


@pytest.fixture(scope="module")
def kfp(administrator: Path) -> Iterator[KfpServer]:
    """A server with the shapes of KFP's API, behind the service `ml-pipeline` of the apiserver."""
    api = config.new_client_from_config(str(administrator))
    core = client.CoreV1Api(api)
    core.create_namespace({"metadata": {"name": "kubeflow"}})
    stock = {"workflowDefaults": "spec: {templateDefaults: {retryStrategy: {retryPolicy: OnError}}}"}
    core.create_namespaced_config_map(
        "kubeflow", {"metadata": {"name": "workflow-controller-configmap"}, "data": stock}
    )
    controller = {"name": "workflow-controller", "image": "argo", "env": [{"name": "OTHER", "value": "1s"}]}
    pods = {"metadata": {"labels": {"app": "argo"}}, "spec": {"containers": [controller]}}
    spec = {"selector": {"matchLabels": {"app": "argo"}}, "template": pods}
    client.AppsV1Api(api).create_namespaced_deployment(
        "kubeflow", {"metadata": {"name": "workflow-controller"}, "spec": spec}
    )
    with serving(address=clusters.ALONE) as server:
        _expose(core, urlsplit(server.url).port or 0)
        binding = {
            "metadata": {"name": "clients"}, "subjects": [{"kind": "User", "name": CLIENT}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        }  # fmt: skip
        client.RbacAuthorizationV1Api(api).create_cluster_role_binding(binding)
        yield server


def _expose(core: client.CoreV1Api, port: int) -> None:
    """Makes the service with one ready pod, which no kubelet runs: the apiserver proxies to addresses of pods only."""
    core.create_namespaced_service_account("kubeflow", {"metadata": {"name": "default"}})
    pod = {
        "metadata": {"name": "ml-pipeline-0"}, "spec": {"containers": [{"name": "main", "image": "kfp"}], "nodeName": "n"},
    }  # fmt: skip
    uid = core.create_namespaced_pod("kubeflow", pod).metadata.uid
    status = {"phase": "Running", "podIP": clusters.ALONE, "podIPs": [{"ip": clusters.ALONE}]}
    core.patch_namespaced_pod_status("ml-pipeline-0", "kubeflow", {"status": status})
    spec = {"ports": [{"name": "http", "port": 8888, "targetPort": port}]}
    core.create_namespaced_service("kubeflow", {"metadata": {"name": "ml-pipeline"}, "spec": spec})
    target = {"kind": "Pod", "name": "ml-pipeline-0", "namespace": "kubeflow", "uid": uid}
    subset = {"addresses": [{"ip": clusters.ALONE, "targetRef": target}], "ports": [{"name": "http", "port": port}]}
    core.create_namespaced_endpoints("kubeflow", {"metadata": {"name": "ml-pipeline"}, "subsets": [subset]})


def by_token(token: str, *_: Path) -> dict[str, Any]:
    return {"token": token}


def by_token_file(token: str, _: Path, folder: Path) -> dict[str, Any]:
    (folder / "token").write_text(token)
    return {"tokenFile": str(folder / "token")}


def by_plugin(token: str, _: Path, folder: Path) -> dict[str, Any]:
    """As the plugins of EKS, GKE and AKS; its tokens are always about to expire."""
    return _plugin(folder, {"token": token, "expirationTimestamp": "2026-01-01T00:00:00Z"})


def by_plugin_with_certificate(_: str, authority: Path, folder: Path) -> dict[str, Any]:
    certificate, key = ((authority / name).read_text() for name in ("public.crt", "private.key"))
    return _plugin(folder, {"clientCertificateData": certificate, "clientKeyData": key})


def by_certificate(_: str, authority: Path, folder: Path) -> dict[str, Any]:
    return {"client-certificate": str(authority / "public.crt"), "client-key": str(authority / "private.key")}


def by_certificate_inside(_: str, authority: Path, folder: Path) -> dict[str, Any]:
    files = {"client-certificate-data": "public.crt", "client-key-data": "private.key"}
    return {key: base64.b64encode((authority / name).read_bytes()).decode() for key, name in files.items()}


def _plugin(folder: Path, status: dict[str, str]) -> dict[str, Any]:
    version = "client.authentication.k8s.io/v1beta1"
    answer = json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status})
    program = folder / "plugin"
    program.write_text(f"#!{sys.executable}\nopen({str(folder / 'calls')!r}, 'a').write('.')\nprint({answer!r})\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"exec": {"apiVersion": version, "command": str(program), "interactiveMode": "Never"}}


User = Callable[[str, Path, Path], dict[str, Any]]


@pytest.mark.parametrize(
    "user",
    [by_token, by_token_file, by_plugin, by_plugin_with_certificate, by_certificate, by_certificate_inside],
)
def test_kfp_is_reached_through_the_apiserver(
    user: User, kfp: KfpServer, administrator: Path, authority: Path, digits: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    content = yaml.safe_load(administrator.read_text())
    content["users"][0]["user"] = user(content["users"][0]["user"]["token"], authority, tmp_path)
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(content))
    kubeconfig.chmod(0o600)
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.setenv("HOME", str(tmp_path))  # KFP's client keeps a file there
    federation = digits / "federation.yaml"
    settings = yaml.safe_load(federation.read_text())
    settings["store"] = {"uri": "s3://bucket/hospitals", "endpoint": "http://127.0.0.1:1"}
    settings["data"]["uri"] = "s3://bucket/digits.npz"
    federation.write_text(yaml.safe_dump(settings))

    found = CliRunner().invoke(app, ["doctor", str(federation), "--json"])
    findings = {one["subject"]: one["what"] for one in json.loads(found.stdout)}
    path = f"https://{clusters.ALONE}:6443/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy"
    assert findings["kubeflow"] == f"Kubeflow Pipelines 2.16.0 answers at {path}"
    assert findings["kubernetes"].startswith("answers; ")
    assert findings["retries"] == (
        "Kubeflow does not start again pods that fail or are evicted, such as for lack of memory: its retryPolicy is "
        "OnError"
    )
    assert findings["pace"] == "Argo looks at a workflow again every 10 s, and a run waits for it between steps"
    run = user.__name__.replace("_", "-")
    started = CliRunner().invoke(app, ["submit", str(federation), "--run", run, "--force"])
    assert started.exit_code == 0, (started.output, started.exception)
    (made,) = [one for one in kfp.held["runs"].values() if one["display_name"] == run]
    assert made["runtime_config"]["parameters"] == {"run": run}
    assert open_kubernetes(Where()).core.list_namespaced_pod("kubeflow").items
    if "plugin" in run and "certificate" not in run:
        assert len((tmp_path / "calls").read_text()) > 5  # renewed before each request, as it has expired


@pytest.mark.parametrize(
    ("namespace", "message"),
    [
        ("kubflow", r"not found \(HTTP 404\)\. Pass the namespace of Kubeflow Pipelines with --kfp-namespace"),
        ("empty", r"\(HTTP 503\)\. Check the pods of ml-pipeline in the namespace of Kubeflow Pipelines"),
    ],
)
def test_a_service_that_is_not_there(
    namespace: str, message: str, kfp: KfpServer, administrator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a namespace that does not exist, and in one in which no pod is ready."""
    monkeypatch.setenv("KUBECONFIG", str(administrator))
    monkeypatch.setenv("HOME", str(tmp_path))
    core = client.CoreV1Api(config.new_client_from_config(str(administrator)))
    if namespace == "empty":
        core.create_namespace({"metadata": {"name": namespace}})
        spec = {"ports": [{"name": "http", "port": 8888}]}
        core.create_namespaced_service(namespace, {"metadata": {"name": "ml-pipeline"}, "spec": spec})
        core.create_namespaced_endpoints(namespace, {"metadata": {"name": "ml-pipeline"}})  # no pod is ready
    with pytest.raises(ClusterError, match=message):
        open_kfp(Where(kfp_namespace=namespace))


REGISTRY = "http://model-registry-service.kubeflow:8080"
PAGE = Path(__file__).parents[2] / "docs" / "kubeflow.md"


@pytest.fixture
def page(
    kfp: KfpServer,
    administrator: Path,
    numpy_digits: Path,
    minio_server: Server,
    s3_keys: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[client.CoreV1Api]:
    """The folder of a federation in a real store, with a node and a Secret on the apiserver."""
    monkeypatch.setenv("KUBECONFIG", str(administrator))
    monkeypatch.setenv("HOME", str(numpy_digits))
    monkeypatch.chdir(numpy_digits)
    core = client.CoreV1Api(config.new_client_from_config(str(administrator)))
    namespace = open_kubernetes(Where()).namespace
    data = {"accesskey": servers.ACCESS_KEY, "secretkey": servers.SECRET_KEY}
    core.create_namespaced_secret(
        namespace, {"metadata": {"name": "mlpipeline-minio-artifact"}, "stringData": data}
    )  # fmt: skip
    core.create_node({"metadata": {"name": "node-1"}})
    core.patch_node("node-1", {"spec": {"taints": []}})  # of a node that no kubelet reports as ready
    room = {"cpu": "16", "memory": "64Gi", "pods": "100"}
    core.patch_node_status("node-1", {"status": {"capacity": room, "allocatable": room}})
    launcher = {"defaultPipelineRoot": "s3://tests/artifacts", "modelRegistry": f"url: {REGISTRY}\ntimeout: 30s"}
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "kfp-launcher"}, "data": launcher})
    settings = yaml.safe_load(Path("federation.yaml").read_text())
    settings["store"] = {"uri": "s3://tests/page", "endpoint": minio_server.endpoint}
    Path("federation.yaml").write_text(yaml.safe_dump(settings))
    put = CliRunner().invoke(app, ["put", "digits.npz"])
    assert put.exit_code == 0, (put.output, put.exception)
    settings["data"]["uri"] = re.findall(r"s3://[^\s}]+", put.output)[0]
    Path("federation.yaml").write_text(yaml.safe_dump(settings))
    yield core
    core.delete_node("node-1")
    core.delete_namespaced_config_map("kfp-launcher", namespace)
    core.delete_namespaced_secret("mlpipeline-minio-artifact", namespace)


def test_the_commands_of_the_page_as_they_are_written(page: client.CoreV1Api, kfp: KfpServer) -> None:
    """Without a KFP that runs pods, the run itself is made on this machine, in the same store, under the same name."""
    lines = [
        line for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL) for line in block.splitlines()
    ]
    written = [shlex.split(line, comments=True)[1:] for line in lines]
    assert [words[0] for words in written] == [
        "doctor", "submit", "watch", "logs", "resume", "schedule", "compile",
        "put", "submit", "schedule", "schedule", "schedule", "schedule",
    ]  # fmt: skip
    kfp.held["runs"].clear()
    done: dict[str, list[Result]] = {}
    for words in written:
        if words[0] == "watch":
            fedpipe.run("federation.yaml", name="trial-1", training={"rounds": 2})
        if words[0] == "resume":
            next(iter(kfp.held["runs"].values()))["state"] = "FAILED"
        ended = CliRunner().invoke(app, words)
        done.setdefault(words[0], []).append(ended)
        if words[0] != "logs":
            assert ended.exit_code == 0, (words, ended.output, ended.exception)
    (logs,), (doctor,), (watch,), (put,) = (done[name] for name in ("logs", "doctor", "watch", "put"))
    assert "run 'trial-1' has no pods" in str(logs.exception), logs.output
    assert "errors: 0" in doctor.output
    assert f"models of runs without export.registry are registered at {REGISTRY}" in doctor.output
    assert REGISTRY.encode() in list(kfp.files.values())[-1]
    assert "round 2" in watch.output
    assert "already there" in put.output  # the fixture has put it
    runs = [(run["display_name"], run["runtime_config"]["parameters"]) for run in kfp.held["runs"].values()]
    assert runs == [(name, {"run": name, **more}) for name, more in (
        ("trial-1", {}), ("trial-1", {}), ("trial-2", {"rounds": 20}),
    )]  # fmt: skip
    made, listed, *_, deleted = (" ".join(one.output.split()) for one in done["schedule"])
    assert "digits: 0 0 3 * * 0, next Sun" in made
    assert "digits 0 0 3 * * 0 on Sun" in listed
    assert "digits is deleted" in deleted
    assert not kfp.held["recurringruns"]
    assert Path("objects.yaml").exists()
