"""Write docs/messages.md: what fedpipe answers to common mistakes.

    python docs/messages.py          write the page; `make test` compares it with the messages

Each mistake of tests/cli/mistakes.py is made in a temporary folder, and the command that finds it is run.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import socket
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.cli.mistakes import MISTAKES, Mistake, prepare, row_of, shown

from fedpipe.__main__ import main

HEAD = """# Messages

Answers of fedpipe to common mistakes: the place, the cause, and the remedy. A tool writes this page by making each of
the mistakes (`python docs/messages.py`), and a test compares it with the messages.

Rows are counted from 1, without the header of a table. An error of another program follows after "because".
"""


def _message(mistake: Mistake, port: int) -> str:
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()) as error:
        folder = Path(name).resolve()
        prepare(folder)
        mistake.make(folder)
        os.chdir(folder)
        sys.argv = ["fedpipe", *mistake.command.format(taken=port).split()]
        with contextlib.redirect_stdout(io.StringIO()):
            main()
        os.chdir("/")
        return shown(error.getvalue(), folder, port)


def _page() -> str:
    parts = [HEAD]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for group, mistakes in itertools.groupby(MISTAKES, key=lambda mistake: mistake.group):
            rows = [row_of(mistake, _message(mistake, port)) for mistake in mistakes]
            parts.append("\n".join([f"## {group}", "", *rows]))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


if __name__ == "__main__":
    os.environ["COLUMNS"] = "1000"
    page = Path(__file__).with_suffix(".md").resolve()
    page.write_text(_page())
