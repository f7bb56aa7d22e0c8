"""Each row of docs/threats.md names tests that exist, or says that the threat is possible."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("| \n").split(" | ")]
    for line in (ROOT / "docs" / "threats.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith(("| it tries", "| ---"))
]


def test_the_table_has_rows_for_each_party() -> None:
    page = (ROOT / "docs" / "threats.md").read_text()
    for party in ("learner", "coordinator", "operator of the store", "client of the server"):
        assert f"## A hostile {party}\n" in page
    assert len(ROWS) > 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_row_is_a_test_or_an_admission(row: list[str]) -> None:
    named = re.findall(r"`(tests/[^`]+)`", row[-1])
    assert named or "**possible**" in row[1], "a row needs a test, or the word possible"
    for name in named:
        path, *parts = name.split("::")
        scope: list[ast.stmt] = ast.parse((ROOT / path).read_text()).body
        for part in parts:
            found = [node for node in scope if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part]
            assert found, f"{path} has no {part}"
            scope = found[0].body
        if not parts or isinstance(found[0], ast.ClassDef):
            tests = [node for node in ast.walk(ast.Module(scope, [])) if isinstance(node, ast.FunctionDef)]
            assert any(node.name.startswith("test_") for node in tests), f"{name} has no test"
