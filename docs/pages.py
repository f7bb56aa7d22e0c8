"""Write a generated page, or compare it with `--check`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def generate(page: Path, text: str) -> None:
    """Write a page; with `--check`, exit with an error when it is out of date."""
    if sys.argv[1:] != ["--check"]:
        page.write_text(text)
    elif not page.exists() or page.read_text() != text:
        sys.exit(f"{page.relative_to(ROOT)} is out of date: run `make docs`")
