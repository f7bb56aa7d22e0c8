"""A pipeline with secure sums: the administrator's public key reaches the learners' long steps, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import fedpipe
from tests.commands.test_secure_run import secure

NAMES = ("hospital-a", "hospital-b", "hospital-c")


def variables(folder: Path, **changes: Any) -> dict[str, set[str]]:
    """Returns the variables that come from Secrets, by the executor of the step."""
    compiled = folder / "pipeline.yaml"
    fedpipe.compile(folder / "federation.yaml", compiled, **changes)
    executors = list(yaml.load_all(compiled.read_text(), yaml.CSafeLoader))[1]["platforms"]["kubernetes"][
        "deploymentSpec"
    ]["executors"]
    return {
        name: {pair["envVar"] for secret in executor.get("secretAsEnv", []) for pair in secret["keyToEnv"]}
        for name, executor in executors.items()
    }


@pytest.mark.parametrize("summed", [True, False])
def test_who_gets_the_administrators_key(numpy_digits: Path, summed: bool) -> None:
    secure(numpy_digits, NAMES)
    found = variables(numpy_digits, **({} if summed else {"algorithm": {"secure": None}}))
    given = {name for name, names in found.items() if "FEDPIPE_ADMINISTRATOR" in names}
    learning = {name for name in found if name.startswith("exec-learn")}
    assert len(learning) == 3
    assert given == (learning if summed else set())
