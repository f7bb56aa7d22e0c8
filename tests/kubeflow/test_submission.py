"""Tests runs and schedules against a server with the shapes of KFP's own API; failures leave nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.kubeflow_runs import filled
from kubernetes.client import Configuration
from kubernetes.config import ConfigException
from typer.testing import CliRunner

from fedpipe.cli.main import app
from fedpipe.errors import ClusterError, InputError, NotFoundError, PipelineError, StepError
from fedpipe.kubeflow.clients import _load_kubeconfig, open_kfp
from fedpipe.kubeflow.pods import find_run_id, is_ours, watcher
from fedpipe.kubeflow.schedules import (
    change_schedule,
    check_cron,
    delete_schedule,
    next_times,
    schedule,
    schedules,
)
from fedpipe.kubeflow.submission import find_run, resume, submit
from fedpipe.kubeflow.where import Where
from fedpipe.store.network import BUNDLES
from tests.kubeflow.kfp_server import ROOT, KfpServer, serving
from tests.store.surroundings import ForwardProxy, make_certificates

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def file(digits: Path) -> Path:
    """A federation that pods can reach."""
    path = digits / "federation.yaml"
    content = yaml.safe_load(path.read_text())
    content["store"] = {"uri": "s3://bucket/hospitals", "endpoint": "http://minio.store.svc:9000"}
    content["data"]["uri"] = "s3://bucket/digits.npz"
    path.write_text(yaml.safe_dump(content))
    return path


def where(kfp: KfpServer, **more: Any) -> Where:
    return Where(host=kfp.url, **more)


class TestSubmit:
    def test_uploads_the_pipeline_and_starts_a_run_of_exactly_that_version(self, kfp: KfpServer, file: Path) -> None:
        made = submit(file, where=where(kfp), run="trial-1", parameters={"learning_rate": "0.01", "rounds": "3"})
        (pipeline,), (version,) = kfp.held["pipelines"].values(), kfp.held["versions"].values()
        (experiment,), (run,) = kfp.held["experiments"].values(), kfp.held["runs"].values()
        assert pipeline["display_name"] == experiment["display_name"] == "digits"
        text = kfp.files[version["pipeline_version_id"]]
        assert version["display_name"] == made.version == f"0.1.0-{hashlib.sha256(text).hexdigest()[:12]}"
        assert next(yaml.safe_load_all(text))["pipelineInfo"]["name"] == "digits"
        assert run["display_name"] == made.run == "trial-1"
        assert run["pipeline_version_reference"] == {
            "pipeline_id": pipeline["pipeline_id"], "pipeline_version_id": version["pipeline_version_id"],
        }  # fmt: skip
        assert run["runtime_config"]["parameters"] == {"learning_rate": 0.01, "rounds": 3, "run": "trial-1"}
        assert made.url == f"{kfp.url}/#/runs/details/{made.run_id}"

    def test_the_same_content_is_the_same_version(self, kfp: KfpServer, file: Path) -> None:
        first, second = (submit(file, where=where(kfp), run=name) for name in ("one", "two"))
        assert first.version == second.version
        assert len(kfp.held["versions"]) == len(kfp.held["pipelines"]) == len(kfp.held["experiments"]) == 1
        (file.parent / "model.py").write_text((file.parent / "model.py").read_text() + "\n# changed\n")
        assert submit(file, where=where(kfp), run="three").version != first.version
        assert len(kfp.held["pipelines"]) == 1

    def test_a_form_has_no_path_of_this_machine(self, kfp: KfpServer, digits: Path) -> None:
        """The file's store and data are a folder and a file; both must be given, and the form asks for them."""
        with pytest.raises(InputError, match="the pods cannot reach the store"):
            submit(digits / "federation.yaml", where=where(kfp))
        given = {"store": "s3://bucket/hospitals?endpoint=http://minio:9000", "data": "s3://bucket/digits.npz"}
        submit(digits / "federation.yaml", where=where(kfp), run="one", parameters=given, force=True)
        (run,), (text,) = kfp.held["runs"].values(), kfp.files.values()
        assert run["runtime_config"]["parameters"] == {**given, "run": "one"}
        assert str(digits).encode() not in text
        form = next(yaml.safe_load_all(text))["root"]["inputDefinitions"]["parameters"]
        assert {name for name, one in form.items() if "defaultValue" not in one} == {"store", "data"}
        assert not any(form[name].get("isOptional") for name in given)
        assert b"#    store: str\n" in text

    def test_one_of_many_runs_is_found_with_few_requests(self, kfp: KfpServer) -> None:
        """By its name with one, by the start of its id in one request for each page."""
        ids, client = filled(kfp), open_kfp(where(kfp))
        for text, expected, pages in (("run-77", ids[77], 1), (ids[-1][:8], ids[-1], 1 + 10)):
            kfp.asked.clear()
            found = find_run(client, text)
            assert found is not None
            assert found.run_id == expected
            assert len([path for _, path, _ in kfp.asked if path == "/runs"]) == pages

    def test_a_run_has_a_name_of_its_own(self, kfp: KfpServer, file: Path) -> None:
        assert re.fullmatch(r"run-\d{8}-\d{6}", submit(file, where=where(kfp)).run)

    def test_a_name_that_exists(self, kfp: KfpServer, file: Path) -> None:
        for name in ("a", "b", "c", "d"):  # several pages of runs
            submit(file, where=where(kfp), run=name)
        before = len([one for one in kfp.asked if one[0] != "GET"])
        with pytest.raises(InputError, match="run 'c' exists already, and is pending"):
            submit(file, where=where(kfp), run="c")
        assert len([one for one in kfp.asked if one[0] != "GET"]) == before

    def test_nothing_is_left_of_a_run_that_cannot_start(self, kfp: KfpServer, file: Path) -> None:
        kfp.refuse = ("POST", "/runs", 400, "the pipeline is too large")
        with pytest.raises(ClusterError, match="the pipeline is too large"):
            submit(file, where=where(kfp))
        assert not any(kfp.held.values())

    def test_what_was_there_before_stays(self, kfp: KfpServer, file: Path) -> None:
        submit(file, where=where(kfp), run="one")
        kfp.refuse = ("POST", "/runs", 500, "no room")
        with pytest.raises(ClusterError):
            submit(file, where=where(kfp), run="two", experiment="other")
        assert {kind: len(held) for kind, held in kfp.held.items() if held} == {
            "pipelines": 1, "versions": 1, "experiments": 1, "runs": 1,
        }  # fmt: skip

    def test_what_cannot_be_removed_is_named(self, kfp: KfpServer, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import kfp as package

        def fail(*_: Any, **__: Any) -> Any:
            kfp.refuse = ("DELETE", "/pipelines", 403, "not allowed")
            raise ClusterError("the run was refused")

        monkeypatch.setattr(package.Client, "run_pipeline", fail)
        with pytest.raises(ClusterError) as caught:
            submit(file, where=where(kfp))
        assert "the run was refused" in str(caught.value)
        assert re.search(r"Remove by hand: version 0\.1\.0-\w+, pipeline digits", str(caught.value))

    def test_in_a_deployment_of_many_users(self, kfp: KfpServer, file: Path) -> None:
        kfp.health = {"multi_user": True}
        submit(file, where=where(kfp, namespace="hospitals"))
        (experiment,) = kfp.held["experiments"].values()
        assert experiment["namespace"] == "hospitals"

    def test_a_store_that_pods_cannot_reach(self, kfp: KfpServer, digits: Path) -> None:
        with pytest.raises(InputError, match="the pods cannot reach the store 'file://"):
            submit(digits / "federation.yaml", where=where(kfp))
        assert not kfp.asked

    def test_data_that_pods_cannot_read(self, kfp: KfpServer, file: Path) -> None:
        with pytest.raises(InputError, match=r"the pods cannot read the data: '/digits\.npz'"):
            submit(file, where=where(kfp), parameters={"data": "/digits.npz"})
        assert not kfp.asked

    def test_a_parameter_that_is_none(self, kfp: KfpServer, file: Path) -> None:
        with pytest.raises(PipelineError, match="unknown parameter 'learnig_rate'"):
            submit(file, where=where(kfp), parameters={"learnig_rate": "1"})
        assert not kfp.asked


class TestSchedule:
    def test_is_one_at_a_time_without_catching_up_of_a_pinned_version(self, kfp: KfpServer, file: Path) -> None:
        made = schedule(file, "0 0 3 * * 0", where=where(kfp))
        (held,) = kfp.held["recurringruns"].values()
        assert held["display_name"] == made.name == "digits"
        assert held["max_concurrency"] in (1, "1")
        assert held["no_catchup"] is True
        assert held["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 0"}}
        assert held["pipeline_version_reference"]["pipeline_version_id"] == made.version_id in kfp.held["versions"]
        assert "run" not in held["runtime_config"]["parameters"]  # every run gets its own name, and continues from HEAD

    def test_is_paused_resumed_and_deleted(self, kfp: KfpServer, file: Path) -> None:
        for name in ("a", "b", "c"):
            schedule(file, "0 0 3 * * 0", where=where(kfp), name=name)
        change_schedule("c", "pause", where=where(kfp))
        assert {one.name: one.enabled for one in schedules(where(kfp))} == {"a": True, "b": True, "c": False}
        change_schedule("c", "resume", where=where(kfp))
        assert all(one.enabled for one in schedules(where(kfp)))
        change_schedule("b", "delete", where=where(kfp))
        assert [one.name for one in schedules(where(kfp))] == ["a", "c"]

    def test_its_deletion_does_not_end_an_active_run(self, kfp: KfpServer, file: Path) -> None:
        """Kubernetes deletes the runs of a schedule with it, also those that are active."""
        made = schedule(file, "0 0 3 * * 0", where=where(kfp))
        other = submit(file, where=where(kfp), run="other")
        run = submit(file, where=where(kfp), run="weekly")
        kfp.held["runs"][other.run_id]["state"] = "RUNNING"
        kfp.held["runs"][run.run_id] |= {"recurring_run_id": made.schedule_id, "state": "RUNNING"}
        command = ["schedule", "delete", "digits", "--host", kfp.url]
        refused = CliRunner().invoke(app, command)
        assert isinstance(refused.exception, InputError)
        message = "run 'weekly' of schedule 'digits' is active, and would end with it. Pass --wait"
        assert message in str(refused.exception)
        assert [one.enabled for one in schedules(where(kfp))] == [True]

        waited: list[str] = []

        def end(name: str) -> None:
            waited.append(name)
            assert [one.enabled for one in schedules(where(kfp))] == [False]  # no other run begins
            kfp.held["runs"][run.run_id]["state"] = "SUCCEEDED"

        assert delete_schedule("digits", where=where(kfp), active="wait", listener=end) == 1
        assert waited == ["weekly"]
        assert schedules(where(kfp)) == []

    def test_its_deletion_may_end_an_active_run(self, kfp: KfpServer, file: Path) -> None:
        made = schedule(file, "0 0 3 * * 0", where=where(kfp))
        run = submit(file, where=where(kfp), run="weekly")
        kfp.held["runs"][run.run_id] |= {"recurring_run_id": made.schedule_id, "state": "RUNNING"}
        done = CliRunner().invoke(app, ["schedule", "delete", "digits", "--yes", "--host", kfp.url])
        assert done.exit_code == 0
        assert "with it go the pods and logs of its runs (1)" in " ".join(done.output.split())
        assert schedules(where(kfp)) == []

    def test_of_a_name_that_exists(self, kfp: KfpServer, file: Path) -> None:
        schedule(file, "0 0 3 * * 0", where=where(kfp))
        with pytest.raises(InputError, match="schedule 'digits' exists already"):
            schedule(file, "0 0 4 * * 0", where=where(kfp))

    def test_that_is_not_there(self, kfp: KfpServer) -> None:
        with pytest.raises(InputError, match=r"there is no schedule 'x'\. Make one: fedpipe schedule --cron"):
            change_schedule("x", "pause", where=where(kfp))

    def test_nothing_is_left_of_one_that_is_refused(self, kfp: KfpServer, file: Path) -> None:
        kfp.refuse = ("POST", "/recurringruns", 400, "no")
        with pytest.raises(ClusterError):
            schedule(file, "0 0 3 * * 0", where=where(kfp))
        assert not any(kfp.held.values())

    def test_runs_name_themselves(self, kfp: KfpServer, file: Path) -> None:
        with pytest.raises(InputError, match="a schedule starts many"):
            schedule(file, "0 0 3 * * 0", where=where(kfp), parameters={"run": "x"})


class TestCron:
    @pytest.mark.parametrize("cron", ["0 0 3 * * 0", "*/30 * * * * *", "0 0 9 ? * 2-6", "0 0 0 1 jan *"])
    def test_that_kfp_takes(self, cron: str) -> None:
        check_cron(cron)

    @pytest.mark.parametrize(
        ("cron", "message"),
        [
            ("0 3 * * 0", r'has 5 fields.*seconds come first\. Write "0 0 3 \* \* 0"'),
            ("0 0 3 * *  * * *", "has 8 fields, not 6"),
            ("0 0 25 * * 0", "is not a valid schedule"),
            ("hourly", "has 1 fields"),
            ("", "--cron is missing"),
        ],
    )
    def test_that_is_invalid(self, cron: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            check_cron(cron)

    def test_says_when_it_comes(self) -> None:
        assert [time[:3] for time in next_times("0 0 3 * * 0")] == ["Sun"] * 3
        assert next_times("0 0 3 * * 0")[0].endswith("03:00:00 UTC")


class TestConnection:
    def test_another_server_answers(self, kfp: KfpServer) -> None:
        kfp.health = "<html>log in</html>"
        with pytest.raises(ClusterError, match="this is not the API of Kubeflow Pipelines: it answered with "):
            open_kfp(where(kfp))

    def test_json_of_something_else(self, kfp: KfpServer) -> None:
        kfp.health = {"status": "UP"}
        with pytest.raises(ClusterError, match="this is not the API of Kubeflow Pipelines"):
            open_kfp(where(kfp))

    def test_an_expired_token(self, kfp: KfpServer, tmp_path: Path) -> None:
        kfp.token = "fresh"
        (tmp_path / "token").write_text("stale\n")
        with pytest.raises(ClusterError, match=r"token expired \(HTTP 401\)\. Get a new token") as caught:
            open_kfp(where(kfp, token_file=tmp_path / "token"))
        assert "stale" not in str(caught.value)
        assert len(kfp.asked) == 1  # without half a minute of retries
        (tmp_path / "token").write_text("fresh\n")
        assert open_kfp(where(kfp, token_file=tmp_path / "token")).health["tag_name"] == "2.16.0"

    @pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), ("\n", "the token file is empty")])
    def test_an_unusable_token_file(self, kfp: KfpServer, tmp_path: Path, content: str | None, message: str) -> None:
        if content is not None:
            (tmp_path / "token").write_text(content)
        with pytest.raises(InputError, match=message):
            open_kfp(where(kfp, token_file=tmp_path / "token"))

    @pytest.mark.parametrize("name", ["e" * 200, "e" * 100 + "/" + "e" * 100])
    def test_a_token_in_the_place_of_its_file_is_not_printed(self, kfp: KfpServer, name: str) -> None:
        with pytest.raises(InputError, match="takes a file, not the token itself") as caught:
            open_kfp(where(kfp, token_file=Path(name)))
        assert "eee" not in str(caught.value)

    def test_a_long_path_is_none(self, kfp: KfpServer, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot be read"):
            open_kfp(where(kfp, token_file=tmp_path / ("e" * 100)))

    def test_nobody_answers(self) -> None:
        with pytest.raises(ClusterError, match="cannot be reached"):
            open_kfp(Where(host="http://127.0.0.1:1"))

    def test_through_a_proxy(self, kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
        with ForwardProxy(user="me:secret") as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//me:secret@"))
            monkeypatch.delenv("NO_PROXY", raising=False)
            open_kfp(where(kfp))
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            open_kfp(where(kfp))
        assert proxy.seen == [f"GET {kfp.url}{ROOT}/healthz"]

    def test_a_private_authority(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in BUNDLES:
            monkeypatch.delenv(name, raising=False)
        with serving(make_certificates(tmp_path)) as kfp:
            with pytest.raises(ClusterError, match=r"is not valid: unable to get local issuer.*Set SSL_CERT_FILE"):
                open_kfp(where(kfp))
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
            assert open_kfp(where(kfp)).health["tag_name"] == "2.16.0"

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
            _load_kubeconfig(Configuration(), Where())

    def test_neither_a_host_nor_a_cluster(self, kfp: KfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ClusterError, match=r"none: the kubeconfig cannot be used: .* Check KUBECONFIG"):
            open_kfp(Where())
        monkeypatch.delenv("KUBECONFIG")
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "/no/such/file")
        with pytest.raises(ClusterError, match="no address of Kubeflow Pipelines is configured"):
            open_kfp(Where())


class TestResume:
    def test_a_run_that_failed_is_another_job_with_the_same_name_version_and_parameters(
        self, kfp: KfpServer, file: Path
    ) -> None:
        first = submit(file, where=where(kfp), run="trial", parameters={"rounds": "3"}, service_account="runner")
        kfp.held["runs"][first.run_id]["state"] = "RUNNING"
        with pytest.raises(InputError, match="run 'trial' exists already, and is running"):
            resume("trial", where=where(kfp))
        kfp.held["runs"][first.run_id]["state"] = "FAILED"
        second = resume("trial", where=where(kfp))
        old, new = (kfp.held["runs"][made.run_id] for made in (first, second))
        for key in ("display_name", "experiment_id", "pipeline_version_reference", "service_account"):
            assert new[key] == old[key]
        assert new["runtime_config"]["parameters"] == {"rounds": 3, "run": "trial"}
        assert (second.run, second.version) == ("trial", old["pipeline_version_reference"]["pipeline_version_id"])
        kfp.held["runs"][second.run_id]["state"] = "SUCCEEDED"
        with pytest.raises(InputError, match="run 'trial' has succeeded already"):
            resume("trial", where=where(kfp))

    def test_submit_resumes_too(self, kfp: KfpServer, file: Path) -> None:
        made = submit(file, where=where(kfp), run="trial")
        kfp.held["runs"][made.run_id]["state"] = "FAILED"
        assert submit(file, where=where(kfp), run="trial").run_id != made.run_id
        with pytest.raises(InputError, match="pending"):
            submit(file, where=where(kfp), run="trial")

    def test_a_run_of_the_form_keeps_the_name_that_its_job_gave_it(self, kfp: KfpServer, file: Path) -> None:
        """Started in the UI without the parameter `run`, next to another run of the same title that succeeded."""
        made, other = (submit(file, where=where(kfp), run=name) for name in ("title", "another"))
        del kfp.held["runs"][made.run_id]["runtime_config"]["parameters"]["run"]
        kfp.held["runs"][made.run_id]["state"] = "FAILED"
        kfp.held["runs"][other.run_id] |= {"display_name": "title", "state": "SUCCEEDED"}
        result = CliRunner().invoke(app, ["resume", made.run_id, "--host", kfp.url])
        assert result.exit_code == 0, result.output
        assert f"follow it: fedpipe watch {made.run_id}" in result.output
        assert list(kfp.held["runs"].values())[-1]["runtime_config"]["parameters"]["run"] == made.run_id

    def test_an_unknown_run(self, kfp: KfpServer) -> None:
        with pytest.raises(NotFoundError, match="Kubeflow has no run 'nothing'"):
            resume("nothing", where=where(kfp))

    def test_the_start_of_an_id_names_a_run(self, kfp: KfpServer, file: Path) -> None:
        made = [submit(file, where=where(kfp), run=name) for name in ("a", "b")]
        connection = open_kfp(where(kfp))
        assert find_run(connection, made[0].run_id).run_id == made[0].run_id
        ids = ("abcd1", "abcd2")
        kfp.held["runs"] = {key: run | {"run_id": key} for key, run in zip(ids, kfp.held["runs"].values(), strict=True)}
        assert find_run(connection, "abcd2").display_name == "b"
        assert find_run(connection, "abc") is None
        with pytest.raises(InputError, match="the ids of 2 runs begin with 'abcd'"):
            find_run(connection, "abcd")


class TestTheCommands:
    def test_submit_says_where_the_run_is(self, kfp: KfpServer, file: Path) -> None:
        result = CliRunner().invoke(app, ["submit", str(file), "--host", kfp.url, "--run", "trial", "-p", "rounds=2"])
        assert result.exit_code == 0, result.output
        assert f"trial: {kfp.url}/#/runs/details/" in result.output
        assert f"fedpipe watch trial -f {file}" in " ".join(result.output.split())

    def test_schedule_makes_lists_and_changes(self, kfp: KfpServer, file: Path) -> None:
        def run(*arguments: str) -> str:
            result = CliRunner().invoke(app, ["schedule", *arguments, "--host", kfp.url])
            assert result.exit_code == 0, result.output
            return " ".join(result.output.split())

        assert "digits: 0 0 3 * * 0, next Sun" in run("--cron", "0 0 3 * * 0", "-f", str(file))
        assert "on" in run("list")
        assert "digits is paused" in run("pause", "digits")
        assert "paused" in run("list")
        assert '"enabled": false' in run("list", "--json")
        assert "digits is deleted; with it go the pods and logs of its runs (0)" in run("delete", "digits")
        assert run("list") == "no schedules"


class TestWatch:
    def test_ends_when_kubeflow_says_that_the_run_has_failed(
        self, kfp: KfpServer, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ends even while the store is still empty; otherwise it would wait forever."""
        made = submit(file, where=where(kfp), run="trial")
        _, list_waiting = watcher("trial", where(kfp))
        assert list_waiting() == []
        kfp.held["runs"][made.run_id] |= {"state": "FAILED", "error": {"code": 2, "message": "no such\n image"}}
        with pytest.raises(StepError, match=r"run 'trial' failed: no such image\. Run `fedpipe logs trial`"):
            list_waiting()

    def test_continues_when_kubeflow_does_not_answer_for_a_while(self, kfp: KfpServer, file: Path) -> None:
        submit(file, where=where(kfp), run="trial")
        _, list_waiting = watcher("trial", where(kfp))
        kfp.refuse = ("GET", "/runs", 503, "no leader")
        assert list_waiting() == ["Kubeflow cannot be queried: no leader (HTTP 503)"]
        kfp.refuse = None
        assert list_waiting() == []

    def test_waits_for_a_run_that_does_not_exist_yet(self, kfp: KfpServer, file: Path) -> None:
        _, list_waiting = watcher("trial", where(kfp))
        assert list_waiting() == ["Kubeflow has no run 'trial': check its name"]
        submit(file, where=where(kfp), run="trial")
        assert list_waiting() == []

    def test_a_run_of_the_form_has_another_name_in_the_store(self, kfp: KfpServer, file: Path) -> None:
        made = submit(file, where=where(kfp), run="digits-1")
        assert watcher("digits-1", where(kfp))[0] == watcher(made.run_id, where(kfp))[0] == "digits-1"
        del kfp.held["runs"][made.run_id]["runtime_config"]["parameters"]["run"]
        assert watcher("digits-1", where(kfp))[0] == made.run_id
        kfp.asked.clear()
        assert watcher("digits-2", where(kfp))[0] == "digits-2"
        assert [path for _, path, _ in kfp.asked].count("/healthz") == 1

    def test_logs_of_a_run_that_does_not_exist(self, kfp: KfpServer) -> None:
        with pytest.raises(NotFoundError, match="Kubeflow has no run 'x'"):
            find_run_id("x", where(kfp))


def test_doctor_exits_with_2_for_an_unhealthy_federation(digits: Path, tmp_path: Path) -> None:
    """Checks the exit code of the process, as a shell sees it."""
    result = subprocess.run(
        [sys.executable, "-m", "fedpipe", "doctor", str(digits / "federation.yaml"), "--json"],
        env={**os.environ, "KUBECONFIG": str(tmp_path / "none")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    found = {one["subject"]: one for one in json.loads(result.stdout)}
    assert found["store"]["level"] == found["kubernetes"]["level"] == "error"
    assert found["store"]["remedy"] == "Set `store` to an s3:// URI."


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
