"""Tests how a run on Kubeflow is followed, and which lines of a log are its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from typer.testing import CliRunner

from fedpipe.cli.kubeflow import _follow_command
from fedpipe.cli.main import app
from fedpipe.errors import NotFoundError, StepError
from fedpipe.kubeflow.pods import find_run_id, is_ours, logs, own_lines, watcher
from fedpipe.kubeflow.submission import submit
from fedpipe.kubeflow.where import Where
from fedpipe.store import open_store
from tests.kubeflow.kfp_server import KfpServer
from tests.kubeflow.kubernetes_server import answering

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class TestWatch:
    def test_ends_when_kubeflow_says_that_the_run_has_failed(
        self, kfp: KfpServer, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ends even while the store is still empty; otherwise it would wait forever."""
        made = submit(file, where=kfp.where(), run="trial")
        _, list_waiting, _ = watcher("trial", kfp.where())
        assert list_waiting() == []
        kfp.held["runs"][made.run_id] |= {"state": "FAILED", "error": {"code": 2, "message": "no such\n image"}}
        with pytest.raises(StepError, match=r"run 'trial' failed: no such image\. Run `fedpipe logs trial`"):
            list_waiting()

    def test_continues_when_kubeflow_does_not_answer_for_a_while(self, kfp: KfpServer, file: Path) -> None:
        submit(file, where=kfp.where(), run="trial")
        _, list_waiting, _ = watcher("trial", kfp.where())
        kfp.refuse = ("GET", "/runs", 503, "no leader")
        assert list_waiting() == ["Kubeflow cannot be queried: no leader (HTTP 503)"]
        kfp.refuse = None
        assert list_waiting() == []

    def test_waits_for_a_run_that_does_not_exist_yet(self, kfp: KfpServer, file: Path) -> None:
        name, list_waiting, known = watcher("trial", kfp.where())
        assert (name, known) == ("trial", False)
        assert list_waiting() == ["Kubeflow has no run 'trial': check its name"]
        submit(file, where=kfp.where(), run="trial")
        assert list_waiting() == []

    def test_a_run_of_the_form_has_another_name_in_the_store(self, kfp: KfpServer, file: Path) -> None:
        made = submit(file, where=kfp.where(), run="digits-1")
        assert watcher("digits-1", kfp.where())[0] == watcher(made.run_id, kfp.where())[0] == "digits-1"
        del kfp.held["runs"][made.run_id]["runtime_config"]["parameters"]["run"]
        assert watcher("digits-1", kfp.where())[0] == made.run_id
        kfp.asked.clear()
        assert watcher("digits-2", kfp.where())[0] == "digits-2"
        assert [path for _, path, _ in kfp.asked].count("/healthz") == 1

    def test_a_name_that_kubeflow_does_not_know_is_an_error_at_once(
        self, kfp: KfpServer, file: Path, tmp_path: Path
    ) -> None:
        """One that it knows is awaited, also next to a run in the store whose name only begins so."""
        made = submit(file, where=kfp.where(), run="trial-1")
        kfp.held["runs"][made.run_id]["state"] = "FAILED"
        store = tmp_path / "store"
        open_store(str(store)).below("digits").create("runs/trial-10/x", b"")

        def watched(name: str) -> BaseException | None:
            command = ["watch", name, "-f", str(file), "--store", str(store), "--host", kfp.url]
            return CliRunner().invoke(app, command).exception

        unknown = watched("trail-1")
        assert isinstance(unknown, NotFoundError)
        assert "there is no run 'trail-1'" in str(unknown)
        known = watched("trial-1")
        assert isinstance(known, StepError)
        assert "run 'trial-1' failed" in str(known)

    def test_without_kubeflow_the_hint_is_to_wait(self) -> None:
        """The store has no run before its first step has begun."""
        assert _follow_command("trial", Where(context="my prod"), "-f f.yaml") == (
            "fedpipe watch trial -f f.yaml --context 'my prod' --wait"
        )
        assert _follow_command("trial", Where(namespace="ml")) == "fedpipe watch trial --namespace ml"

    def test_logs_of_a_run_that_does_not_exist(self, kfp: KfpServer) -> None:
        with pytest.raises(NotFoundError, match="Kubeflow has no run 'x'"):
            find_run_id("x", kfp.where())


@pytest.mark.parametrize(
    ("line", "ours"),
    [
        ("10:29:20 round 1 train: asking a, b", True),
        ("fedpipe: s3://bucket/x: there is no such dataset. Check the URI.", True),
        ("Traceback (most recent call last):", True),
        ('time="2026-11-28T09:12:13.123Z" level=info msg="capturing logs" argo=true', False),
        ('time=2026-11-28T09:12:13.123Z level=INFO msg="sub-process exited" argo=true', False),
        ('{"time":"2026-11-28T09:12:13.123Z","level":"INFO","msg":"executor initialized"}', False),
        ("I1128 09:12:13.123456       1 launcher_v2.go:123] publish success", False),
        ("2026/11/28 09:12:13 Downloading artifact", False),
        ("F1128 09:12:13.123456       1 main.go:56] failed to execute component: exit status 3", True),
        ('time="2026-11-28T09:12:13.123Z" level=error msg="failed to save outputs" argo=true', True),
    ],
)
def test_which_lines_of_a_log_are_ours(line: str, ours: bool) -> None:
    assert is_ours(line) is ours


def test_the_outputs_that_the_launcher_writes_over_many_lines_are_not() -> None:
    """As KFP 2.17.0 writes them, after the step's own last line."""
    launcher = """I1129 01:30:43.811313      16 launcher_v2.go:1230] ExecutorOutput: {
  "parameterValues": {},
  "artifacts": {
  }
}
I1129 01:30:43.811500      16 launcher_v2.go:867] Executing uploadOutputArtifacts attempt: 1"""
    own = ["10:29:20 scores: {", '  "a": 1', "}"]
    assert list(own_lines([*own, *launcher.split("\n"), "}"])) == [*own, "}"]


@pytest.mark.parametrize("follow", [False, True])
def test_a_pod_whose_log_is_gone_hides_no_other(follow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of a node that was drained, or one that was deleted before it started: what is known is shown."""
    run = "0b1c2d3e-0000-4000-8000-000000000000"
    pods = "/api/v1/namespaces/ml/pods"

    def pod(name: str, phase: str, message: str = "") -> dict[str, Any]:
        metadata = {
            "name": name,
            "creationTimestamp": "2026-11-29T00:00:00Z",
            "labels": {"fedpipe/step": f"learn-{name}"},
        }
        ended = {"exitCode": 137, "reason": message}
        status = {"name": "main", "image": "x", "imageID": "x", "ready": False, "restartCount": 0,
                  "state": {"terminated": ended} if message else {}}  # fmt: skip
        spec = {"containers": [{"name": "main"}]}
        return {"metadata": metadata, "spec": spec, "status": {"phase": phase, "containerStatuses": [status]}}

    lost, well = pod("a", "Pending") if follow else pod("a", "Failed", "Evicted"), pod("b", "Succeeded")
    selector = urlencode({"labelSelector": f"pipeline/runid={run},fedpipe/step"})
    objects = {
        f"{pods}?{selector}": {"items": [lost, well]}, f"{pods}/b": well,
        f"{pods}/b/log?container=main&follow={follow}": "round 2", **({} if follow else {f"{pods}/a": lost}),
    }  # fmt: skip
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    with answering(objects, tmp_path / "kubeconfig"):
        found = list(logs(run, where=Where(namespace="ml"), follow=follow))
    state = "Pending" if follow else "Failed: Evicted, exit code 137"
    assert found[-2:] == [
        ("learn-a", f"({state}; its log cannot be read: not found (HTTP 404))"),
        ("learn-b", '"round 2"'),
    ]
