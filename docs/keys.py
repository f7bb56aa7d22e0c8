"""Writes the layout in docs/store.md from the table of keys; `--check` fails when it is out of date."""

from __future__ import annotations

import sys
from pathlib import Path

from fedpipe.store.keys import TABLE, Party

PAGE = Path(__file__).parent / "store.md"
BEGIN = "<!-- The table is generated from src/fedpipe/store/keys.py (`make docs`). -->\n"
END = "<!-- The end of the table. -->\n"
WORDS: dict[Party, str] = {"owner": "this learner", "learners": "learners"}


def table() -> str:
    """Returns the table as Markdown."""
    rows = ["| key | written by | read by | content |", "| --- | --- | --- | --- |"]
    for row in TABLE:
        rows.append(
            f"| `{row.pattern}` | {_named(row.access.writers)} | {_named(row.access.readers)} | {row.meaning} |"
        )
    return "\n".join(rows) + "\n"


def _named(parties: tuple[Party, ...]) -> str:
    named = [party for party in parties if party != "owner" or "learners" not in parties]  # the owner is among them
    return ", ".join(WORDS.get(party, party) for party in named)


def main() -> int:
    """Writes the table into the page, or checks it."""
    page = PAGE.read_text()
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    written = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" in sys.argv:
        if page != written:
            print("docs/store.md is out of date: run `make docs`", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
