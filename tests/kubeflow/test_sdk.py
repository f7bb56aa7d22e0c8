"""Runs our compiled pipeline with the client of the `kubeflow` SDK, which it re-exports from kfp."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.kubeflow_client import KubernetesBackendConfig, PipelinesClient

import fedpipe
from fedpipe.kubeflow.pods import find_run_id
from fedpipe.kubeflow.submission import submit
from fedpipe.kubeflow.where import Where
from tests.kubeflow.kfp_server import KfpServer

PAGE = Path(__file__).parents[2] / "docs" / "kubeflow.md"

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def pipeline(digits: Path, tmp_path: Path) -> Path:
    path = tmp_path / "pipeline.yaml"
    fedpipe.compile(digits / "federation.yaml", path)
    return path


def client_of(kfp: KfpServer) -> Any:
    return PipelinesClient(KubernetesBackendConfig(base_url=kfp.url, namespace="ml"))


def test_runs_the_file(kfp: KfpServer, pipeline: Path) -> None:
    run = client_of(kfp).run(str(pipeline), params={"rounds": 3, "run": "trial-1"}, name="trial-1")
    (held,) = kfp.held["runs"].values()
    assert (run.run_id, held["display_name"]) == (held["run_id"], "trial-1")
    assert held["runtime_config"]["parameters"] == {"rounds": 3, "run": "trial-1"}
    spec, platform = yaml.safe_load_all(pipeline.read_text())
    assert held["pipeline_spec"] == {"pipeline_spec": spec, "platform_spec": platform}


def test_uploads_a_version_and_runs_it(kfp: KfpServer, pipeline: Path) -> None:
    kfp.held["pipelines"]["p-1"] = {"pipeline_id": "p-1", "display_name": "digits"}
    client = client_of(kfp)
    uploaded = client.upload_pipeline(str(pipeline), name="digits", version="two")
    assert kfp.files[uploaded.pipeline_version_id] == pipeline.read_bytes()
    client.run("digits", version="two", params={"run": "trial-2"}, name="trial-2")
    (held,) = kfp.held["runs"].values()
    assert held["pipeline_version_reference"] == {
        "pipeline_id": "p-1", "pipeline_version_id": uploaded.pipeline_version_id,
    }  # fmt: skip


def test_finds_the_runs_of_fedpipe(kfp: KfpServer, digits: Path) -> None:
    """And fedpipe those of the client."""
    path = digits / "federation.yaml"
    content = yaml.safe_load(path.read_text())
    content |= {"store": {"uri": "s3://bucket/hospitals", "endpoint": "http://minio.store.svc:9000"}}
    content["data"]["uri"] = "s3://bucket/digits.npz"
    path.write_text(yaml.safe_dump(content))
    made = submit(path, where=Where(host=kfp.url), run="trial-1", force=True)
    client = client_of(kfp)
    assert [run.run_id for run in client.list_runs().runs] == [made.run_id]
    again = client.run("digits", params={"run": "trial-2"}, name="trial-2")
    assert find_run_id("trial-2", Where(host=kfp.url)) == again.run_id


def test_the_example_of_the_page_as_it_is_written(
    kfp: KfpServer, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page imports the class from `kubeflow`, whose newest KFP cannot be installed next to ours."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    kfp.state, kfp.prefix = "SUCCEEDED", "/pipeline"
    for old, new in (("kubeflow.pipelines", "kfp.kubeflow_client"), ("https://kubeflow.example", kfp.url)):
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(digits)
    exec(compile(code, str(PAGE), "exec"), {})
    (held,) = kfp.held["runs"].values()
    assert held["display_name"] == "trial-1"
    assert held["runtime_config"]["parameters"] == {"run": "trial-1", "rounds": 20}
    assert ("GET", f"/runs/{held['run_id']}", None) in kfp.asked  # it waited for the end
