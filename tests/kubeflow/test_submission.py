"""Tests runs against a server with the shapes of KFP's own API; failures leave nothing behind."""

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
from typer.testing import CliRunner

from fedpipe.cli.main import app
from fedpipe.errors import ClusterError, InputError, NotFoundError, PipelineError
from fedpipe.kubeflow.clients import open_kfp
from fedpipe.kubeflow.submission import find_run, resume, submit
from tests.kubeflow.kfp_server import KfpServer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class TestSubmit:
    def test_uploads_the_pipeline_and_starts_a_run_of_exactly_that_version(self, kfp: KfpServer, file: Path) -> None:
        made = submit(file, where=kfp.where(), run="trial-1", parameters={"learning_rate": "0.01", "rounds": "3"})
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
        first, second = (submit(file, where=kfp.where(), run=name) for name in ("one", "two"))
        assert first.version == second.version
        assert len(kfp.held["versions"]) == len(kfp.held["pipelines"]) == len(kfp.held["experiments"]) == 1
        (file.parent / "model.py").write_text((file.parent / "model.py").read_text() + "\n# changed\n")
        assert submit(file, where=kfp.where(), run="three").version != first.version
        assert len(kfp.held["pipelines"]) == 1

    def test_a_form_has_no_path_of_this_machine(self, kfp: KfpServer, digits: Path) -> None:
        """The file's store and data are a folder and a file; both must be given, and the form asks for them."""
        with pytest.raises(InputError, match="the pods cannot reach the store"):
            submit(digits / "federation.yaml", where=kfp.where())
        given = {"store": "s3://bucket/hospitals?endpoint=http://minio:9000", "data": "s3://bucket/digits.npz"}
        submit(digits / "federation.yaml", where=kfp.where(), run="one", parameters=given, force=True)
        (run,), (text,) = kfp.held["runs"].values(), kfp.files.values()
        assert run["runtime_config"]["parameters"] == {**given, "run": "one"}
        assert str(digits).encode() not in text
        form = next(yaml.safe_load_all(text))["root"]["inputDefinitions"]["parameters"]
        assert {name for name, one in form.items() if "defaultValue" not in one} == {"store", "data"}
        assert not any(form[name].get("isOptional") for name in given)
        assert b"#    store: str\n" in text

    def test_one_of_many_runs_is_found_with_few_requests(self, kfp: KfpServer) -> None:
        """By its name with one, by the start of its id in one request for each page."""
        ids, client = filled(kfp), open_kfp(kfp.where())
        for text, expected, pages in (("run-77", ids[77], 1), (ids[-1][:8], ids[-1], 1 + 10)):
            kfp.asked.clear()
            found = find_run(client, text)
            assert found is not None
            assert found.run_id == expected
            assert len([path for _, path, _ in kfp.asked if path == "/runs"]) == pages

    def test_a_run_has_a_name_of_its_own(self, kfp: KfpServer, file: Path) -> None:
        assert re.fullmatch(r"run-\d{8}-\d{6}", submit(file, where=kfp.where()).run)

    def test_a_name_that_exists(self, kfp: KfpServer, file: Path) -> None:
        for name in ("a", "b", "c", "d"):  # several pages of runs
            submit(file, where=kfp.where(), run=name)
        before = len([one for one in kfp.asked if one[0] != "GET"])
        with pytest.raises(InputError, match="run 'c' exists already, and is pending"):
            submit(file, where=kfp.where(), run="c")
        assert len([one for one in kfp.asked if one[0] != "GET"]) == before

    def test_nothing_is_left_of_a_run_that_cannot_start(self, kfp: KfpServer, file: Path) -> None:
        kfp.refuse = ("POST", "/runs", 400, "the pipeline is too large")
        with pytest.raises(ClusterError, match="the pipeline is too large"):
            submit(file, where=kfp.where())
        assert not any(kfp.held.values())

    def test_what_was_there_before_stays(self, kfp: KfpServer, file: Path) -> None:
        submit(file, where=kfp.where(), run="one")
        kfp.refuse = ("POST", "/runs", 500, "no room")
        with pytest.raises(ClusterError):
            submit(file, where=kfp.where(), run="two", experiment="other")
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
            submit(file, where=kfp.where())
        assert "the run was refused" in str(caught.value)
        assert re.search(r"Remove by hand: version 0\.1\.0-\w+, pipeline digits", str(caught.value))

    def test_in_a_deployment_of_many_users(self, kfp: KfpServer, file: Path) -> None:
        kfp.health = {"multi_user": True}
        submit(file, where=kfp.where(namespace="hospitals"))
        (experiment,) = kfp.held["experiments"].values()
        assert experiment["namespace"] == "hospitals"

    def test_a_store_that_pods_cannot_reach(self, kfp: KfpServer, digits: Path) -> None:
        with pytest.raises(InputError, match="the pods cannot reach the store 'file://"):
            submit(digits / "federation.yaml", where=kfp.where())
        assert not kfp.asked

    def test_data_that_pods_cannot_read(self, kfp: KfpServer, file: Path) -> None:
        with pytest.raises(InputError, match=r"the pods cannot read the data: '/digits\.npz'"):
            submit(file, where=kfp.where(), parameters={"data": "/digits.npz"})
        assert not kfp.asked

    def test_two_names(self, kfp: KfpServer, file: Path) -> None:
        with pytest.raises(InputError, match=r"parameter run: the run has two names, 'one' and 'two'\. Keep one\."):
            submit(file, where=kfp.where(), run="one", parameters={"run": "two"})
        assert not kfp.asked
        assert submit(file, where=kfp.where(), run="one", parameters={"run": "one"}).run == "one"

    def test_a_parameter_that_is_none(self, kfp: KfpServer, file: Path) -> None:
        with pytest.raises(PipelineError, match="unknown parameter 'learnig_rate'"):
            submit(file, where=kfp.where(), parameters={"learnig_rate": "1"})
        assert not kfp.asked


class TestResume:
    def test_a_run_that_failed_is_another_job_with_the_same_name_version_and_parameters(
        self, kfp: KfpServer, file: Path
    ) -> None:
        first = submit(file, where=kfp.where(), run="trial", parameters={"rounds": "3"}, service_account="runner")
        kfp.held["runs"][first.run_id]["state"] = "RUNNING"
        waits = r"run 'trial' exists already, and is running\. Start another with `fedpipe submit`, or wait until"
        with pytest.raises(InputError, match=waits):
            resume("trial", where=kfp.where())
        kfp.held["runs"][first.run_id]["state"] = "FAILED"
        second = resume("trial", where=kfp.where())
        old, new = (kfp.held["runs"][made.run_id] for made in (first, second))
        for key in ("display_name", "experiment_id", "pipeline_version_reference", "service_account"):
            assert new[key] == old[key]
        assert new["runtime_config"]["parameters"] == {"rounds": 3, "run": "trial"}
        assert (second.run, second.version) == ("trial", old["pipeline_version_reference"]["pipeline_version_id"])
        kfp.held["runs"][second.run_id]["state"] = "SUCCEEDED"
        with pytest.raises(InputError, match="run 'trial' has succeeded already"):
            resume("trial", where=kfp.where())

    def test_submit_resumes_too(self, kfp: KfpServer, file: Path) -> None:
        made = submit(file, where=kfp.where(), run="trial")
        kfp.held["runs"][made.run_id]["state"] = "FAILED"
        assert submit(file, where=kfp.where(), run="trial").run_id != made.run_id
        with pytest.raises(InputError, match="pending"):
            submit(file, where=kfp.where(), run="trial")

    def test_a_run_of_the_form_keeps_the_name_that_its_job_gave_it(self, kfp: KfpServer, file: Path) -> None:
        """Started in the UI without the parameter `run`, next to another run of the same title that succeeded."""
        made, other = (submit(file, where=kfp.where(), run=name) for name in ("title", "another"))
        del kfp.held["runs"][made.run_id]["runtime_config"]["parameters"]["run"]
        kfp.held["runs"][made.run_id]["state"] = "FAILED"
        kfp.held["runs"][other.run_id] |= {"display_name": "title", "state": "SUCCEEDED"}
        result = CliRunner().invoke(app, ["resume", made.run_id, "--host", kfp.url])
        assert result.exit_code == 0, result.output
        assert f"follow it: fedpipe watch {made.run_id}" in result.output
        assert list(kfp.held["runs"].values())[-1]["runtime_config"]["parameters"]["run"] == made.run_id

    def test_an_unknown_run(self, kfp: KfpServer) -> None:
        with pytest.raises(NotFoundError, match="Kubeflow has no run 'nothing'"):
            resume("nothing", where=kfp.where())

    def test_the_start_of_an_id_names_a_run(self, kfp: KfpServer, file: Path) -> None:
        made = [submit(file, where=kfp.where(), run=name) for name in ("a", "b")]
        connection = open_kfp(kfp.where())
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
        assert f"fedpipe watch trial -f {file} --host {kfp.url}" in " ".join(result.output.split())

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
