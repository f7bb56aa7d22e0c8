"""Tests schedules against a server with the shapes of KFP's own API; failures leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedpipe.cli.main import app
from fedpipe.errors import ClusterError, InputError
from fedpipe.kubeflow.schedules import (
    change_schedule,
    check_cron,
    delete_schedule,
    next_times,
    schedule,
    schedules,
)
from fedpipe.kubeflow.submission import submit
from tests.kubeflow.kfp_server import KfpServer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class TestSchedule:
    def test_is_one_at_a_time_without_catching_up_of_a_pinned_version(self, kfp: KfpServer, file: Path) -> None:
        made = schedule(file, "0 0 3 * * 0", where=kfp.where())
        (held,) = kfp.held["recurringruns"].values()
        assert held["display_name"] == made.name == "digits"
        assert held["max_concurrency"] in (1, "1")
        assert held["no_catchup"] is True
        assert held["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 0"}}
        assert held["pipeline_version_reference"]["pipeline_version_id"] == made.version_id in kfp.held["versions"]
        assert "run" not in held["runtime_config"]["parameters"]  # every run gets its own name, and continues from HEAD

    def test_is_paused_resumed_and_deleted(self, kfp: KfpServer, file: Path) -> None:
        for name in ("a", "b", "c"):
            schedule(file, "0 0 3 * * 0", where=kfp.where(), name=name)
        change_schedule("c", "pause", where=kfp.where())
        assert {one.name: one.enabled for one in schedules(kfp.where())} == {"a": True, "b": True, "c": False}
        change_schedule("c", "resume", where=kfp.where())
        assert all(one.enabled for one in schedules(kfp.where()))
        change_schedule("b", "delete", where=kfp.where())
        assert [one.name for one in schedules(kfp.where())] == ["a", "c"]

    def test_its_deletion_does_not_end_an_active_run(self, kfp: KfpServer, file: Path) -> None:
        """Kubernetes deletes the runs of a schedule with it, also those that are active."""
        made = schedule(file, "0 0 3 * * 0", where=kfp.where())
        other = submit(file, where=kfp.where(), run="other")
        run = submit(file, where=kfp.where(), run="weekly")
        kfp.held["runs"][other.run_id]["state"] = "RUNNING"
        kfp.held["runs"][run.run_id] |= {"recurring_run_id": made.schedule_id, "state": "RUNNING"}
        command = ["schedule", "delete", "digits", "--host", kfp.url]
        refused = CliRunner().invoke(app, command)
        assert isinstance(refused.exception, InputError)
        message = "run 'weekly' of schedule 'digits' is active, and would end with it. Pass --wait"
        assert message in str(refused.exception)
        assert [one.enabled for one in schedules(kfp.where())] == [True]

        waited: list[str] = []

        def end(name: str) -> None:
            waited.append(name)
            assert [one.enabled for one in schedules(kfp.where())] == [False]  # no other run begins
            kfp.held["runs"][run.run_id]["state"] = "SUCCEEDED"

        assert delete_schedule("digits", where=kfp.where(), active="wait", listener=end) == 1
        assert waited == ["weekly"]
        assert schedules(kfp.where()) == []

    def test_whoever_stops_waiting_for_its_run_keeps_it(self, kfp: KfpServer, file: Path) -> None:
        made = schedule(file, "0 0 3 * * 0", where=kfp.where())
        run = submit(file, where=kfp.where(), run="weekly")
        kfp.held["runs"][run.run_id] |= {"recurring_run_id": made.schedule_id, "state": "RUNNING"}

        def interrupt(_: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            delete_schedule("digits", where=kfp.where(), active="wait", listener=interrupt)
        assert [one.enabled for one in schedules(kfp.where())] == [True]

    def test_its_deletion_may_end_an_active_run(self, kfp: KfpServer, file: Path) -> None:
        made = schedule(file, "0 0 3 * * 0", where=kfp.where())
        run = submit(file, where=kfp.where(), run="weekly")
        kfp.held["runs"][run.run_id] |= {"recurring_run_id": made.schedule_id, "state": "RUNNING"}
        done = CliRunner().invoke(app, ["schedule", "delete", "digits", "--yes", "--host", kfp.url])
        assert done.exit_code == 0
        assert "with it go the pods and logs of its runs (1)" in " ".join(done.output.split())
        assert schedules(kfp.where()) == []

    def test_of_a_name_that_exists(self, kfp: KfpServer, file: Path) -> None:
        schedule(file, "0 0 3 * * 0", where=kfp.where())
        with pytest.raises(InputError, match="schedule 'digits' exists already"):
            schedule(file, "0 0 4 * * 0", where=kfp.where())

    def test_that_is_not_there(self, kfp: KfpServer) -> None:
        with pytest.raises(InputError, match=r"there is no schedule 'x'\. Make one: fedpipe schedule --cron"):
            change_schedule("x", "pause", where=kfp.where())

    def test_nothing_is_left_of_one_that_is_refused(self, kfp: KfpServer, file: Path) -> None:
        kfp.refuse = ("POST", "/recurringruns", 400, "no")
        with pytest.raises(ClusterError):
            schedule(file, "0 0 3 * * 0", where=kfp.where())
        assert not any(kfp.held.values())

    def test_runs_name_themselves(self, kfp: KfpServer, file: Path) -> None:
        with pytest.raises(InputError, match="a schedule starts many"):
            schedule(file, "0 0 3 * * 0", where=kfp.where(), parameters={"run": "x"})


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
