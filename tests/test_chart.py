"""The chart with the real helm: it lints, its values are checked, and what it renders is restricted and whole."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpipe.version import __version__
from tests import binaries

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
    return {f"{one['kind']}": one for one in yaml.safe_load_all(done.stdout) if one}


@pytest.mark.parametrize("values", [STORE, ALL, {"kserve.enabled": "true", "kserve.storageUri": "s3://b/p/models"}])
def test_it_lints(values: dict[str, str]) -> None:
    done = helm("lint", "--strict", str(CHART), **values)
    assert done.returncode == 0, done.stdout + done.stderr


def test_by_default_it_is_a_deployment_with_all_that_guards_it() -> None:
    assert set(rendered(**STORE)) == {
        "Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Pod",
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
    assert not any("secret" in volume for volume in spec["volumes"])
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
