"""Writes the layout in docs/store.md from the table of keys; `--check` fails when it is out of date."""

from __future__ import annotations

from pathlib import Path

from pages import generate

from fedpipe.store.access import TABLE, Party

PAGE = Path(__file__).parent / "store.md"
BEGIN = "<!-- The table is generated from src/fedpipe/store/access.py (`make docs`). -->\n"
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


def page() -> str:
    """Returns the page with the table as it is now."""
    written = PAGE.read_text()
    return f"{written.split(BEGIN)[0]}{BEGIN}\n{table()}\n{END}{written.split(END)[1]}"


if __name__ == "__main__":
    generate(PAGE, page())
