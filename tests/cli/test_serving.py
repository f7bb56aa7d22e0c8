"""export before there is a model; the other commands are tested with the server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Result


def test_export_before_anything_was_trained(fedpipe: Callable[..., Result], digits: Path) -> None:
    done = fedpipe("export", digits / "federation.yaml")
    assert done.code == 2
    assert "there is no trained model" in done.err
    assert not Path("model.onnx").exists()
