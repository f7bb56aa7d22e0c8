"""compile: a pipeline file, and what it will cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Result


def test_compile(fedpipe: Callable[..., Result], digits: Path) -> None:
    done = fedpipe("compile", digits / "federation.yaml", "-o", "pipeline.yaml")
    assert done.code == 0
    assert "11, in 23 pods" in done.out
    assert "the store is a folder on this machine" in done.err
    assert Path("pipeline.yaml").exists()
    assert "is not a .yaml file" in fedpipe("compile", digits / "federation.yaml", "-o", "pipeline.json").err
