"""The examples of running a site: their commands exist, and they open nothing."""

from __future__ import annotations

import configparser
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from fedpipe.cli.main import app
from fedpipe.sites.description import IMAGE
from fedpipe.version import __version__

EXAMPLES = Path(__file__).parents[2] / "examples" / "site"


def check_command(words: list[str]) -> None:
    """Check that `fedpipe` takes these words."""
    group, name, *rest = words
    command = get_command(app).commands[group].commands[name]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= options


def test_the_service_of_systemd() -> None:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((EXAMPLES / "fedpipe-site.service").read_text())
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/fedpipe")
    check_command(words)
    assert unit["Service"]["NoNewPrivileges"] == "yes"
    assert "net" in unit["Service"]["RestrictNamespaces"].split()
    assert unit["Service"]["Restart"] == "on-failure", "`fedpipe site stop` ends it for good"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_knows_each_of_its_settings(tmp_path: Path) -> None:
    text = (EXAMPLES / "fedpipe-site.service").read_text().replace("/opt/fedpipe/bin/fedpipe", "/bin/true")
    (tmp_path / "fedpipe-site.service").write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "fedpipe-site.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_rootless_containers() -> None:
    content = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())
    assert content["x-podman"] == {"in_pod": False}, "podman maps no users in a pod of compose"
    services = content["services"]
    assert set(services) == {"join", "agent"}
    for service in services.values():
        check_command(service["command"])
        assert "ports" not in service
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["image"] == service["environment"][IMAGE] == f"fedpipe/keras:{__version__}"
        assert all(part.startswith("./site:") or ":ro" in part for part in service["volumes"])
