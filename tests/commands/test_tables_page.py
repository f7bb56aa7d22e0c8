"""The commands of docs/tables.md, from Parquet files to a server that predicts from a raw CSV file."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.runs import ROOT
from tests.served import serving


def commands() -> list[list[str]]:
    """The commands of the page's first two blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "tables.md").read_text(), re.S)
    return [shlex.split(line) for block in blocks[:2] for line in block.splitlines()]


def called(words: list[str], folder: Path) -> str:
    start = [sys.executable, "-m", "fedpipe", *words[1:]] if words[0] == "fedpipe" else [sys.executable, *words[1:]]
    done = subprocess.run(start, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.heavy
@pytest.mark.xdist_group("runs")
def test_the_page_leads_from_parquet_to_a_served_model(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    make, init, run, serve, predict = commands()
    for words in (make, init, run):
        called(words, tmp_path)
    assert serve == ["fedpipe", "serve", "-f", "demo/federation.yaml", "--port", "8080"]
    with serving(tmp_path / "server", "--store", f"file://{tmp_path}/demo/store/demo") as server:
        server.wait_for("demo", 1)
        shown = called([*predict[:2], server.url, *predict[3:]], tmp_path)
    accuracy = re.search(r"accuracy ([\d.]+) over 114 examples", shown)
    assert accuracy is not None, shown
    assert float(accuracy[1]) > 0.95
