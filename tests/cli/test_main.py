"""The command as a whole: mistakes in typing, how it ends, and completion."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fedpipe as package
from tests.cli.conftest import Result

COMMAND = Path(sys.executable).parent / "fedpipe"


TYPOS = {
    "command": (["rnu", "x"], "No such command 'rnu'. Did you mean 'run'?"),
    "option": (["run", "--outt", "x", "f"], "No such option: --outt (Possible options: --out)"),
    "no file": (["run"], "Missing argument"),
    "absent file": (["run", "absent.yaml"], "absent.yaml: cannot be read"),
    "folder": (["run", "."], "cannot be read"),
    "parameter": (["run", "f.yaml", "-p", "rate"], "'rate' is not NAME=VALUE"),
    "run name": (["run", "f.yaml", "--run", "A B"], "'A B' is not a safe name"),
    "export": (["export", "absent.yaml"], "absent.yaml: cannot be read"),
    "predict": (["predict", "absent.onnx", "absent.npz"], "absent.onnx: there is no such file"),
    "predict at a server": (["predict", "http://127.0.0.1:9", "a.npz"], "the server does not answer: "),
    "serve": (["serve"], "models come from exactly one location"),
    "promote": (["promote", "m", "1"], "models come from exactly one location"),
    "promote what": (["promote", "m", "--models", "."], "there is no model 'm'"),
    "step": (["step", "nothing", "{}"], "unknown step 'nothing'"),
    "plot": (["plot", "run-1"], "federation.yaml: cannot be read"),
    "report": (["report", "run-1", "-f", "absent.yaml"], "absent.yaml: cannot be read"),
    "markup": (["run", "[/NAME].yaml"], "[/NAME].yaml: cannot be read"),
    "algorithm": (["init", "x", "--algorithm", "voting"], "'voting' is not one of 'averaging', 'collective'"),
}


@pytest.mark.parametrize(("arguments", "message"), TYPOS.values(), ids=TYPOS.keys())
def test_typing_mistakes(fedpipe: Callable[..., Result], arguments: list[str], message: str) -> None:
    done = fedpipe(*arguments)
    assert done.code == 2
    assert done.err.count(message) == 1
    assert "Traceback" not in done.err


def test_version(fedpipe: Callable[..., Result]) -> None:
    assert fedpipe("--version").out == f"fedpipe {package.__version__}\n"


def test_the_installed_command() -> None:
    done = subprocess.run([COMMAND, "rnu"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Did you mean" in done.stderr


def test_ctrl_c_is_one_friendly_line(tmp_path: Path) -> None:
    (tmp_path / "federation.yaml").write_text(
        "name: tiny\nstore: store\nlearners: [{name: a}, {name: b}]\ndata: {uri: x.npz}\n"
        "training: {rounds: 1, batch_size: 1}\n"
    )
    with subprocess.Popen(
        [COMMAND, "plot", "run-1", "--wait"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "waiting for run run-1 to begin" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "\nstopped; run the same command again to resume\n"


class TestCompletion:
    @pytest.fixture
    def installed(self, tmp_path: Path) -> dict[str, str]:
        """The environment of a user who ran `fedpipe --install-completion` in bash."""
        environment = {"HOME": str(tmp_path), "PATH": f"{COMMAND.parent}:{os.environ['PATH']}"}
        environment |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        done = subprocess.run(
            ["bash", "-c", "fedpipe --install-completion; exit $?"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return environment

    @pytest.mark.parametrize(
        ("words", "found"),
        [("fedpipe ru", {"run", "runs"}), ("fedpipe run --wo", {"--workers"}), ("fedpipe schedule pa", {"pause"})],
    )
    def test_in_bash(self, installed: dict[str, str], words: str, found: set[str]) -> None:
        script = (
            f"source ~/.bashrc; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
            "_fedpipe_completion fedpipe; echo ${COMPREPLY[@]}"
        )
        done = subprocess.run(["bash", "-c", script], env=installed, capture_output=True, text=True, check=False)
        assert set(done.stdout.split()) == found, done.stderr

    def test_with_help_in_fish(self) -> None:
        asked = {"_FEDPIPE_COMPLETE": "complete_fish", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        asked |= {"_TYPER_COMPLETE_ARGS": "fedpipe serve --"}
        done = subprocess.run([COMMAND], env=os.environ | asked, capture_output=True, text=True, check=False)
        assert "s3://bucket/prefix[/NAME] or a folder" in done.stdout, done.stderr
