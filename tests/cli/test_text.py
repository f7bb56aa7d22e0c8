"""Everything is printed as text: no name, path or message can style or steer the terminal."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe.cli import text

ROOMS = Path(__file__).parents[2] / "src" / "fedpipe"
HOSTILE = [
    "[/NAME]", "[bold]x[/bold]", "learners[1].name", "\\[x]", "\\", ":warning:", "[link=http://x]y[/link]", "[red", "]",
]  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE)
class TestMarkup:
    def test_in_lines(self, hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
        text.say(("a ", "bold"), hostile, (hostile, "red"))
        text.note(hostile)
        assert capsys.readouterr() == (f"a {hostile}{hostile}\n", f"note: {hostile}\n")

    def test_in_tables(self, hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
        text.show_table([[hostile, (hostile, "red")]], head=["one", hostile])
        lines = capsys.readouterr().out.splitlines()
        assert [line.split() for line in lines] == [["one", hostile], [hostile, hostile]]

    def test_in_states(self, hostile: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")  # states are for terminals only
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(text, "out", text.console())
        monkeypatch.setattr(text, "err", text.console(stderr=True))
        with text.busy(hostile):
            pass
        with text.following("looking") as change:
            change(hostile)
        for printed in capsys.readouterr():
            assert f" {hostile}" in text.plain(printed)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b", "ab"),
        ("\x1bca\x9b2Jb\x1b", "a2Jb"),
        ("1/2\r2/2\x08\x7f", "1/22/2"),
        ("a\u202eb\u2066c", "abc"),
        ("two\nlines\tand é ✓", "two\nlines\tand é ✓"),
        ("no\udcff", "no?"),
    ],
)
def test_what_a_terminal_obeys_is_removed(sent: str, shown: str) -> None:
    assert text.plain(sent) == shown


@given(st.text(st.characters(codec=None), max_size=50))
def test_any_text_can_be_printed(sent: str) -> None:
    shown = text.plain(sent)
    assert text.styled(sent).plain == shown
    assert not set(shown) & {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))}
    shown.encode()
    assert text.plain(shown) == shown


def test_nothing_else_prints() -> None:
    for path in (*(ROOMS / "cli").rglob("*.py"), *(ROOMS / "commands").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            prints = (isinstance(called, ast.Name) and called.id == "print") or (
                isinstance(called, ast.Attribute) and called.attr in ("print", "print_json", "echo", "secho", "status")
            )
            assert not prints or path.name == "text.py", f"{path}:{node.lineno}"
