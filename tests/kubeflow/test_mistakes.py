"""Tests what the commands for Kubeflow say to someone who mistypes: the cause, the place, and what was meant."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fedpipe.__main__ import main
from fedpipe.kubeflow.schedules import schedule
from fedpipe.kubeflow.submission import submit
from fedpipe.kubeflow.where import Where
from tests.kubeflow.kfp_server import KfpServer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

HOST = "--host {host}"
MISTAKES = (
    (f"resume trail-1 {HOST}", "{host}: Kubeflow has no run 'trail-1'. Did you mean 'trial-1'?"),
    (f"resume zzz {HOST}", "has no run 'zzz'. The last ones are trial-1."),
    (f"logs trial1 {HOST}", "has no run 'trial1'. Did you mean 'trial-1'?"),
    (f"schedule pause wekly {HOST}", "there is no schedule 'wekly'. Did you mean 'weekly'?"),
    (f"schedule pause {HOST}", "no schedule is named. Name one: fedpipe schedule pause NAME"),
    (f"schedule delete weekly --wait --yes {HOST}", "--wait and --yes exclude each other. Pass one of them."),
    (f"schedule resume weekly --cron 0 {HOST}", "--cron: `schedule resume` takes no --cron. Delete the schedule"),
    (
        f"schedule create weekly --cron 0_0_3_*_*_0 -f federation.yaml --force {HOST}",
        "schedule 'weekly' exists already. Name another: fedpipe schedule create NAME. Or run: fedpipe schedule delete",
    ),
    (f"schedule --cron 0_3_*_*_0 {HOST}", """'0 3 * * 0' has 5 fields, but KFP expects 6: seconds come first. Write "0"""),
    (f"schedule --cron @weekly {HOST}", "--cron: '@weekly' has 1 fields, not 6. Write second, minute, hour"),
    (f"schedule --cron 0_0_25_*_*_0 {HOST}", "--cron: '0 0 25 * * 0' is not a valid schedule"),
    (f"schedule wekly {HOST}", "'wekly' is not one of 'create', 'list', 'pause'"),
    (f"submit federation.yaml -p ronds=3 {HOST}", "unknown parameter 'ronds'. Choose one of: "),
    (f"submit federation.yaml -p rounds {HOST}", "--parameter: 'rounds' is not NAME=VALUE. Write it like -p rounds=20."),
    (f"submit federation.yaml -p rounds=many {HOST}", "parameter rounds: 'many' is not a number"),
    (f"submit federation.yaml --run Trial_1 {HOST}", "run: 'Trial_1' is not a safe name. Use at most 40 lower-case"),
    (f"submit pipeline.yaml {HOST}", "pipeline.yaml: is a compiled pipeline, not a federation file. Pass the federation file"),
    (f"submit federaton.yaml {HOST}", "federaton.yaml: cannot be read: No such file or directory"),
    ("resume trial-1 --host kubeflow.example", "--host: 'kubeflow.example' has no scheme. Write https://kubeflow"),
    ("resume trial-1 --host htps://kf.example", "--host: 'htps://kf.example' is not an http(s) URL. Write https://kf"),
    ("resume trial-1 --host {host}/_/pipeline/#/runs", "is a page of the UI, not the UI's address. Write {host}"),
    ("resume trial-1 --host http://127.0.0.1:1", "http://127.0.0.1:1: cannot be reached"),
    (
        f"resume trial-1 {HOST} --token-file eyJhbGciOiJSUzI1NiIsImtpZCI6IkNOdjBPeDUyTGZyZThIQzdHTGhPU3hBdzZ"
        "3.eyJhdWQiOlsicGlwZWxpbmVzLmt1YmVmbG93Lm9yZyJd",
        "--token-file: this option takes a file, not the token itself. Write it to a file",
    ),
    (f"resume trial-1 {HOST} --token-file tokn", "tokn: the token file cannot be read. Check the path of --token-file"),
    ("resume trial-1 --context prd", "--context: the kubeconfig has no context 'prd'. Did you mean 'prod'?"),
    ("logs trial-1 --context prd", "--context: the kubeconfig has no context 'prd'. Did you mean 'prod'?"),
)  # fmt: skip


EXPIRED = "eyJhbGciOiJub25lIn0.eyJleHAiOjF9.x"
"""A token that expired in 1970."""
PROVIDER = (
    "{{current-context: c, contexts: [{{name: c, context: {{cluster: c, user: u}}}}], "
    "clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:1'}}}}], users: [{{name: u, user: {{auth-provider: {{{}}}}}}}]}}"
)
"""A kubeconfig whose user logs in by a provider."""


@pytest.fixture
def told(
    kfp: KfpServer, digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str]]:
    """Runs a command in the folder of a federation with a run `trial-1` and a schedule `weekly` on Kubeflow."""
    file = digits / "federation.yaml"
    content = yaml.safe_load(file.read_text())
    content |= {"store": "s3://bucket/hospitals?endpoint=http://minio.store.svc:9000"}
    content["data"]["uri"] = "s3://bucket/digits.npz"
    file.write_text(yaml.safe_dump(content))
    context = {"cluster": "c", "user": "u"}
    kubeconfig = {
        "current-context": "prod", "contexts": [{"name": name, "context": context} for name in ("prod", "staging")],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }  # fmt: skip
    (digits / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    where = Where(host=kfp.url)
    submit(file, where=where, run="trial-1", force=True)
    schedule(file, "0 0 3 * * 0", where=where, name="weekly", force=True)
    monkeypatch.chdir(digits)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("KUBECONFIG", str(digits / "kubeconfig"))

    def run(command: str) -> tuple[int, str]:
        words = [word.replace("_", " ") if "*" in word else word for word in command.format(host=kfp.url).split()]
        monkeypatch.setattr(sys, "argv", ["fedpipe", *words])
        capsys.readouterr()
        code = main()
        return code, " ".join(capsys.readouterr().err.split())

    return run


@pytest.mark.heavy
def test_each_mistake_gets_a_message_that_helps(told: Callable[[str], tuple[int, str]], kfp: KfpServer) -> None:
    """In one test, because most of its time is the federation's."""
    told("compile federation.yaml -o pipeline.yaml")
    held = {kind: len(found) for kind, found in kfp.held.items()}
    for command, message in MISTAKES:
        code, text = told(command)
        assert message.format(host=kfp.url) in text, (command, text)
        assert code in (2, 3), command
        assert "Traceback" not in text
        assert "eyJ" not in text  # no token
        assert {kind: len(found) for kind, found in kfp.held.items()} == held, command


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clusters: [", "kubeconfig: the kubeconfig cannot be used: "),
        ("just text", "kubeconfig: the kubeconfig cannot be used: "),
        ("", "kubeconfig: the kubeconfig cannot be used: Invalid kube-config"),
        (
            "{current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}], "
            "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: u, user: {exec: "
            "{apiVersion: client.authentication.k8s.io/v1beta1, command: no-such-plugin}}}]}",
            "the user of the kubeconfig cannot log in: [Errno 2] No such file or directory: 'no-such-plugin'. Install",
        ),
        (
            PROVIDER.format("name: gcp"),
            "the user of the kubeconfig cannot log in: Your default credentials were not found",
        ),
        (
            PROVIDER.format(f"name: oidc, config: {{client-id: c, client-secret: eyJ, id-token: {EXPIRED}}}"),
            "cannot be used: Invalid kube-config file. Expected key idp-issuer-url in",
        ),
        (
            PROVIDER.format(
                f"name: oidc, config: {{client-id: c, client-secret: eyJ, id-token: {EXPIRED}, refresh-token: eyJ, "
                "idp-issuer-url: 'https://127.0.0.1:1'}"
            ),
            "the user of the kubeconfig cannot log in: HTTPSConnectionPool",
        ),
    ],
)
def test_a_kubeconfig_that_cannot_be_used(
    told: Callable[[str], tuple[int, str]], digits: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    (digits / "kubeconfig").write_text(text)
    for command in ("logs trial-1", "resume trial-1"):
        code, said = told(command)
        assert code == 2
        assert message in said, (command, said)
        assert "Traceback" not in said
        assert "eyJ" not in said  # no token


def test_a_kubeconfig_that_is_none(told: Callable[[str], tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/no/such/file")
    for command in ("logs trial-1", "resume trial-1"):
        code, text = told(command)
        assert code == 2
        assert "/no/such/file: the kubeconfig cannot be used" in text
