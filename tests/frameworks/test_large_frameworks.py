"""Learners in frameworks whose packages have gigabytes: `make frameworks` installs them and runs these tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.framework_examples import trained_and_served
from tests.commands.runs import ROOT


@pytest.mark.parametrize("model", ["pytorch.py", "jax_network.py"])
def test_from_the_file_to_a_served_model(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPIPE_CUSTOM_PYTHON", str(ROOT / ".venv-frameworks" / "bin" / "python"))
    trained_and_served(tmp_path, model)
