"""Tests that every mistake gets one message with cause, place and remedy, as docs/messages.md shows it."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedpipe.__main__ import main
from tests.cli.mistakes import MISTAKES, Mistake, prepare, row_of, shown

PAGE = Path(__file__).parents[2] / "docs/messages.md"
REMEDY = re.compile(
    r"[.)?:!}] (?:Add|Ask|Call|Change|Check|Choose|Close|Convert|Correct|Count|Create|Declare|Define|Did you mean|Enrol|Fill|Give|Install|Keep"
    r"|Learners:|Leave|Lower|Make|Name|No run has begun here|Number|Pass|Publish|Remove|Rename|Return|Run|Save|Scale|Set|Sign|Columns:|Try|Use|Valid:|Write)(?!\w)"
)
"""An imperative, or a list of what is valid."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A port that is taken."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def run(
    mistake: Mistake, folder: Path, port: int, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Makes a mistake and returns the message of the command that finds it."""
    prepare(folder)
    mistake.make(folder)
    patch.chdir(folder)
    patch.setenv("COLUMNS", "1000")
    patch.setattr(sys, "argv", ["fedpipe", *mistake.command.format(taken=port).split()])
    capsys.readouterr()
    assert main() == 2
    return shown(capsys.readouterr().err, folder, port)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: f"{mistake.group}: {mistake.cause}")
def test_a_mistake_gets_one_message_with_cause_place_and_remedy(
    mistake: Mistake, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = run(mistake, tmp_path, port, monkeypatch, capsys)
    assert "Traceback" not in message
    assert mistake.says in message
    assert mistake.place.format(taken=8080) in message
    assert REMEDY.search(message), message
    assert len(message) < 500
    assert row_of(mistake, message) in PAGE.read_text(), "run: python docs/messages.py"


def test_there_are_sixty_mistakes_that_differ() -> None:
    assert len({(mistake.group, mistake.cause) for mistake in MISTAKES}) == len(MISTAKES) >= 60
