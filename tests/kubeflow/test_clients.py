"""Tests how commands find and reach KFP and Kubernetes: addresses, tokens, proxies, authorities, kubeconfigs."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from kubernetes.client import Configuration
from kubernetes.config import ConfigException

from fedpipe.errors import ClusterError, InputError
from fedpipe.kubeflow.clients import open_kfp, open_kubernetes
from fedpipe.kubeflow.kubeconfig import load_kubeconfig
from fedpipe.kubeflow.submission import submit
from fedpipe.kubeflow.where import Where
from fedpipe.store.network import BUNDLES
from tests.kubeflow.kfp_server import ROOT, KfpServer, serving
from tests.store.surroundings import ForwardProxy, make_certificates

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class TestConnection:
    def test_another_server_answers(self, kfp: KfpServer) -> None:
        kfp.health = "<html>log in</html>"
        with pytest.raises(ClusterError, match="this is not the API of Kubeflow Pipelines: it answered with "):
            open_kfp(kfp.where())

    def test_json_of_something_else(self, kfp: KfpServer) -> None:
        kfp.health = {"status": "UP"}
        with pytest.raises(ClusterError, match="this is not the API of Kubeflow Pipelines"):
            open_kfp(kfp.where())

    def test_an_expired_token(self, kfp: KfpServer, tmp_path: Path) -> None:
        kfp.token = "fresh"
        (tmp_path / "token").write_text("stale\n")
        with pytest.raises(ClusterError, match=r"token expired \(HTTP 401\)\. Get a new token") as caught:
            open_kfp(kfp.where(token_file=tmp_path / "token"))
        assert "stale" not in str(caught.value)
        assert len(kfp.asked) == 1  # without half a minute of retries
        (tmp_path / "token").write_text("fresh\n")
        assert open_kfp(kfp.where(token_file=tmp_path / "token")).health["tag_name"] == "2.16.0"

    @pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), ("\n", "the token file is empty")])
    def test_an_unusable_token_file(self, kfp: KfpServer, tmp_path: Path, content: str | None, message: str) -> None:
        if content is not None:
            (tmp_path / "token").write_text(content)
        with pytest.raises(InputError, match=message):
            open_kfp(kfp.where(token_file=tmp_path / "token"))

    @pytest.mark.parametrize("name", ["e" * 200, "e" * 100 + "/" + "e" * 100])
    def test_a_token_in_the_place_of_its_file_is_not_printed(self, kfp: KfpServer, name: str) -> None:
        with pytest.raises(InputError, match="takes a file, not the token itself") as caught:
            open_kfp(kfp.where(token_file=Path(name)))
        assert "eee" not in str(caught.value)

    def test_a_long_path_is_none(self, kfp: KfpServer, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot be read"):
            open_kfp(kfp.where(token_file=tmp_path / ("e" * 100)))

    def test_nobody_answers(self) -> None:
        with pytest.raises(ClusterError, match="cannot be reached"):
            open_kfp(Where(host="http://127.0.0.1:1"))

    def test_through_a_proxy(self, kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
        with ForwardProxy(user="me:secret") as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//me:secret@"))
            monkeypatch.delenv("NO_PROXY", raising=False)
            open_kfp(kfp.where())
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            open_kfp(kfp.where())
        assert proxy.seen == [f"GET {kfp.url}{ROOT}/healthz"]

    def test_a_private_authority(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in BUNDLES:
            monkeypatch.delenv(name, raising=False)
        with serving(make_certificates(tmp_path)) as kfp:
            with pytest.raises(ClusterError, match=r"is not valid: unable to get local issuer.*Set SSL_CERT_FILE"):
                open_kfp(kfp.where())
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
            assert open_kfp(kfp.where()).health["tag_name"] == "2.16.0"

    def test_through_the_api_server_with_a_token(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path
    ) -> None:
        """Checks more than one request: the client of Kubernetes resets the address at each of them."""
        with serving(make_certificates(tmp_path)) as kfp:
            kfp.prefix, kfp.token = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy", "secret"
            monkeypatch.setenv("HOME", str(tmp_path))
            monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
            cluster = {"server": kfp.url, "certificate-authority": str(tmp_path / "ca.pem")}
            context = {"cluster": "c", "user": "u"}
            (tmp_path / "kubeconfig").write_text(
                yaml.safe_dump(
                    {
                        "current-context": "c", "contexts": [{"name": "c", "context": context}],
                        "clusters": [{"name": "c", "cluster": cluster}],
                        "users": [{"name": "u", "user": {"token": "secret"}}],
                    }
                )
            )  # fmt: skip
            submit(file, where=Where(), run="trial", force=True)
            assert [run["display_name"] for run in kfp.held["runs"].values()] == ["trial"]
            with pytest.raises(
                ClusterError, match=r"--context: the kubeconfig has no context 'other'\. Choose one of: c\."
            ):
                open_kfp(Where(context="other"))

    def test_a_pod_needs_no_kubeconfig(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A variable there may name a missing file: the account of the pod counts."""
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv("KUBECONFIG", "/no/such/file")
        with pytest.raises(ConfigException):
            load_kubeconfig(Configuration(), Where())

    def test_a_context_has_its_namespace_whatever_the_current_one(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        contexts = [
            {"name": name, "context": {"cluster": "c", "user": "u", "namespace": f"of-{name}"}} for name in ("a", "b")
        ]
        content = {
            "contexts": contexts, "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": {"token": "secret"}}],
        }  # fmt: skip
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        for current in ({}, {"current-context": "a"}):
            (tmp_path / "kubeconfig").write_text(yaml.safe_dump(content | current))
            assert open_kubernetes(Where(context="b")).namespace == "of-b"
            assert open_kubernetes(Where(context="b", namespace="mine")).namespace == "mine"
        assert open_kubernetes(Where()).namespace == "of-a"

    def test_neither_a_host_nor_a_cluster(self, kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ClusterError, match=r"none: the kubeconfig cannot be used: .* Check KUBECONFIG"):
            open_kfp(Where())
        monkeypatch.delenv("KUBECONFIG")
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "/no/such/file")
        with pytest.raises(ClusterError, match="no address of Kubeflow Pipelines is configured"):
            open_kfp(Where())
