"""Keys leave the environment before code of others runs, and fedpipe still finds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedpipe
from fedpipe.commands.identities import enroll
from fedpipe.identity.signing import find_key, make_key, public_key
from fedpipe.rounds.history import history
from fedpipe.store.concealment import CONCEALED, concealed, environ
from fedpipe.store.credentials import find_identity
from tests.commands.runs import store_of

SPY = """
import os
with open({path!r}, "a") as file:
    file.write(repr(sorted(set({names!r}) & set(os.environ))) + chr(10))
"""


def test_are_found_although_they_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    key = make_key()
    monkeypatch.setenv("FEDPIPE_SIGNING_KEY", key)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    before = dict(os.environ)
    with concealed():
        assert not set(CONCEALED) & set(os.environ)
        assert find_key("a") == key
        assert find_identity("http://127.0.0.1:1", "").retrieve().secret_key == "secret"
        assert environ["PATH"] == os.environ["PATH"]
        assert set(before) <= set(environ)
        assert len(environ) == len(list(environ))
        shown = subprocess.run(
            [sys.executable, "-c", "import os; print(dict(os.environ))"], capture_output=True, check=True
        )
        assert key not in shown.stdout.decode()
    assert dict(os.environ) == before
    monkeypatch.delenv("FEDPIPE_SIGNING_KEY")
    assert find_key("a") is None


def test_a_run_signs_while_its_model_finds_no_key(
    numpy_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In all processes that import model.py."""
    file = numpy_digits / "federation.yaml"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("FEDPIPE_TOKEN", "token")
    identity = enroll(file, "hospital-a")
    model = numpy_digits / "model.py"
    spy = SPY.format(path=str(tmp_path / "seen"), names=list(CONCEALED))
    model.write_text(model.read_text() + spy)
    fedpipe.run(file, out=tmp_path / "out", parameters={"rounds": 1})
    assert set((tmp_path / "seen").read_text().splitlines()) == {"[]"}
    record = history(store_of(numpy_digits / "store"), "run-1")[-1]
    signatures = {u.learner: u.signature for u in record.updates}
    key = public_key(Path(identity.files[0]).read_text())
    assert signatures["hospital-a"] is not None
    assert signatures["hospital-a"].key == key
