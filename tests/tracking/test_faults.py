"""A tracking server may be away, slow, wrong or hostile: a run neither fails nor waits for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fedpipe
from fedpipe.federation.tracking import Tracking
from fedpipe.rounds.beginning import begin
from fedpipe.store import MemoryStore
from fedpipe.tracking.tracker import Tracker
from tests import servers
from tests.federations import fresh, make_plan, play
from tests.tracking.faulty import Answer, answering, body, closed, dripping, endless, silent

LIMIT = 60.0
"""Seconds, on the slowest machine; the servers here stay as they are for an hour."""
ENDLESS_JSON = b'{"runs": ' + b"[" * 100_000
FAULTS: dict[str, tuple[Answer, str]] = {
    "silent": (silent, "cannot be reached, because"),
    "dripping": (dripping, "the answer is too slow"),
    "endless": (endless, "the answer has more than 16777216 bytes"),
    "closed": (closed, "cannot be reached, because"),
    "no JSON": (body(200, b"<html>"), "does not answer as documented, because JSON is malformed"),
    "other JSON": (body(200, b"[1, 2]"), "does not answer as documented, because Expected `object`, got `array`"),
    "deep JSON": (body(200, ENDLESS_JSON), "does not answer as documented"),
    "nothing": (body(200, b""), "does not answer as documented"),
    "a login page": (body(302, b"", Location="http://elsewhere.invalid/login"), "sends the request elsewhere"),
    "no rights": (body(401, b'{"message": "no token"}'), "(HTTP 401), because no token. Check its credentials."),
    "not found": (body(404, b"gone"), "refuses a request (HTTP 404)"),
    "broken": (body(500, b'{"error_code": 7}'), "refuses a request (HTTP 500)"),
    "a wrong type": (
        body(200, b'{"experiment": {"experiment_id": 3}, "experiment_id": {}}'), "does not answer as documented",
    ),
}  # fmt: skip


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.DEBUG)
    return lambda: caplog.text


@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_ends_in_time_and_names_the_fault(
    fault: str, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, told: Callable[[], str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "0.3")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-secret-token")
    answer, message = FAULTS[fault]
    plan = make_plan()
    with answering(answer) as asked:
        started = time.monotonic()
        with Tracker(store, plan.run, Tracking(mlflow=asked.url), continues=True) as tracker:
            play(store, plan)
            tracker.wake()
        seconds = time.monotonic() - started
    assert seconds < LIMIT
    assert tracker.failure is not None
    assert message in str(tracker.failure)
    assert message in tracker.outcome
    assert "`fedpipe watch r1` sends the rest" in told()
    assert "a-secret-token" not in told()
    assert {headers.get("authorization") for _, _, headers in asked.requests} == {"Bearer a-secret-token"}


def test_a_server_that_is_away_costs_nothing_until_the_end(store: MemoryStore, told: Callable[[], str]) -> None:
    plan = make_plan()
    address = f"http://127.0.0.1:{servers.free_port()}"
    with Tracker(store, plan.run, Tracking(mlflow=address)) as tracker:
        started = time.monotonic()
        play(store, plan)
        for _ in range(1000):
            tracker.wake()
    assert time.monotonic() - started < LIMIT
    assert told().count("MLflow cannot be reached") == 1  # one warning, not one a round


def test_a_password_in_the_environment_is_never_shown(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch, told: Callable[[], str]
) -> None:
    plan = make_plan()
    begin(store, plan, fresh)
    with answering(body(403, b'{"message": "no"}')) as asked:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", asked.url.replace("://", "://someone:pa%2Fss@"))
        with Tracker(store, plan.run, Tracking()) as tracker:
            pass
    assert "pa%2Fss" not in told() + tracker.outcome
    assert "pa/ss" not in told() + tracker.outcome
    assert asked.url in told()
    assert asked.requests[0][2]["authorization"] == "Basic c29tZW9uZTpwYS9zcw=="  # someone:pa/ss


def test_a_redirect_is_not_followed_with_the_token(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-secret-token")
    plan = make_plan()
    begin(store, plan, fresh)
    with answering(body(200, b"{}")) as other, answering(body(307, b"", Location=f"{other.url}/x")) as asked:
        with Tracker(store, plan.run, Tracking(mlflow=asked.url)):
            pass
        assert asked.requests
        assert other.requests == []


@pytest.mark.parametrize("address", ["sqlite:///mlflow.db", "./mlruns", "databricks", "file:///mlruns", "http://"])
def test_an_address_that_is_no_server(address: str, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with Tracker(store, "r1", Tracking()) as tracker:
        pass
    assert "MLFLOW_TRACKING_URI is not the http:// or https:// URL of a server. Start one" in tracker.outcome


def test_without_a_server_there_is_no_thread_and_no_word(store: MemoryStore) -> None:
    with Tracker(store, "r1", Tracking()) as tracker:
        assert tracker._thread is None
    assert tracker.outcome == ""


def test_a_whole_run_with_a_broken_server(numpy_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{servers.free_port()}")
    result = fedpipe.run(numpy_digits / "federation.yaml", out=tmp_path / "out", parameters={"rounds": 2})
    assert len(result.summary["rounds"]) == 2
    assert result.tracked.startswith("MLflow lacks a part of the run: http://127.0.0.1:")
