"""Which server, which experiment and which credentials count: the file's, then those of the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedpipe.errors import FederationError
from fedpipe.federation.tracking import Tracking
from fedpipe.rounds.plan import definition_of
from fedpipe.store.network import Address, read_address
from fedpipe.tracking import mlflow
from fedpipe.tracking.mlflow import Place, find_place
from tests.federations import make_federation

URI, OTHER = "http://mlflow.example:5000", "https://other.example/mlflow"


def place(url: str, authorization: str = "", **more: Any) -> Place:
    return Place(Address(url, authorization), **more)


@pytest.mark.parametrize(
    ("file", "environment", "found"),
    [
        ({}, {}, None),
        ({"experiment": "x"}, {}, None),
        ({"mlflow": URI}, {}, place(URI)),
        ({}, {"URI": f" {URI}/ "}, place(URI)),
        ({}, {"URI": "HTTP://mlflow.example:5000"}, place(URI)),
        ({"mlflow": URI}, {"URI": OTHER}, place(URI)),
        ({}, {"URI": URI, "TOKEN": "t\n"}, place(URI, "Bearer t")),
        ({}, {"URI": URI, "USERNAME": "u", "PASSWORD": "p", "TOKEN": "t"}, place(URI, "Basic dTpw")),
        ({}, {"URI": "http://u:p@mlflow.example:5000"}, place(URI, "Basic dTpw")),
        ({"mlflow": OTHER}, {"URI": "http://u:p@mlflow.example:5000"}, place(OTHER)),
        ({"mlflow": URI}, {"URI": "http://u:p@mlflow.example:5000"}, place(URI, "Basic dTpw")),
        ({}, {"URI": URI, "INSECURE_TLS": "true"}, place(URI, verified=False)),
        ({"mlflow": URI}, {"URI": "sqlite:///x.db"}, place(URI)),
    ],
)
def test_server_and_credentials(file: dict[str, str], environment: dict[str, str], found: Place | None) -> None:
    environ = {f"MLFLOW_TRACKING_{name}": value for name, value in environment.items()}
    assert find_place(Tracking(**file), environ) == found


@pytest.mark.parametrize(
    ("file", "environment", "found"),
    [
        ({}, {"EXPERIMENT_NAME": "n"}, ("n", "", "")),
        ({"experiment": "f"}, {"EXPERIMENT_NAME": "n", "EXPERIMENT_ID": "7"}, ("f", "", "")),
        ({}, {"EXPERIMENT_NAME": "n", "EXPERIMENT_ID": "7", "RUN_ID": "r"}, ("n", "7", "r")),
        ({"mlflow": URI}, {"EXPERIMENT_ID": "7", "RUN_ID": "r"}, ("", "7", "r")),
        ({"mlflow": OTHER}, {"EXPERIMENT_ID": "7", "RUN_ID": "r"}, ("", "", "")),  # they are those of the other server
    ],
)
def test_experiment_and_parent(file: dict[str, str], environment: dict[str, str], found: tuple[str, str, str]) -> None:
    environ = {"MLFLOW_TRACKING_URI": URI, **{f"MLFLOW_{name}": value for name, value in environment.items()}}
    chosen = find_place(Tracking(**file), environ)
    assert chosen is not None
    assert (chosen.experiment, chosen.experiment_id, chosen.parent) == found


def test_in_a_pod_the_account_signs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As KFP's plugin sets it up: MLFLOW_TRACKING_AUTH, and the workspace of the namespace."""
    monkeypatch.setattr(mlflow, "_ACCOUNT", tmp_path)
    (tmp_path / "token").write_text("account-token")
    (tmp_path / "namespace").write_text("team-a")
    environ = {"MLFLOW_TRACKING_URI": URI, "MLFLOW_TRACKING_AUTH": "kubernetes-namespaced"}
    headers = {"X-MLFLOW-WORKSPACE": "team-a"}
    assert find_place(Tracking(), environ) == place(URI, "Bearer account-token", headers=headers)
    environ |= {"MLFLOW_TRACKING_AUTH": "kubernetes", "MLFLOW_WORKSPACE": "team-b", "MLFLOW_TRACKING_TOKEN": "own"}
    headers = {"X-MLFLOW-WORKSPACE": "team-b"}
    assert find_place(Tracking(), environ) == place(URI, "Bearer own", headers=headers)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("3", 3.0), ("1000", 10.0), ("-1", 10.0), ("0", 10.0), ("0.5", 0.5), ("soon", 10.0), ("nan", 10.0)],
)
def test_a_shorter_timeout_counts(given: str, seconds: float) -> None:
    found = find_place(Tracking(mlflow=URI), {"MLFLOW_HTTP_REQUEST_TIMEOUT": given})
    assert found is not None
    assert found.seconds == seconds


def test_no_secret_is_shown() -> None:
    address = read_address("https://user:secret@host/x")
    assert address is not None
    assert "secret" not in repr(address)
    assert "c2VjcmV0" not in repr(place(address.url, address.authorization))
    assert address.authorization == "Basic dXNlcjpzZWNyZXQ="


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://user:secret@host", "tracking.mlflow: the URI contains a user name or password. Remove it"),
        ("user:secret@host:5000", "tracking.mlflow: is not the URL of a server"),
        ("https://host/?token=secret", "tracking.mlflow: the URI contains a parameter for credentials"),
        ("sqlite:///secret.db", "tracking.mlflow: is not the URL of a server. Write http(s)://host[:port][/path]."),
        ("mlflow.example:5000", "tracking.mlflow: is not the URL of a server"),
        ("http://host:port", "tracking.mlflow: is not the URL of a server"),
        ("https://host/x?y=1", "tracking.mlflow: is not the URL of a server"),
        ("http://[::1", "tracking.mlflow: is not the URL of a server"),
    ],
)
def test_mistakes_in_the_file(url: str, message: str) -> None:
    with pytest.raises(FederationError) as caught:
        make_federation(tracking={"mlflow": url})
    assert message in str(caught.value)
    assert "secret" not in str(caught.value).replace("a Secret", "")


def test_another_server_is_not_another_run() -> None:
    tracked = make_federation(tracking={"mlflow": URI, "secret": "mlflow"})
    assert definition_of(tracked) == definition_of(make_federation())
