"""Lists, compares and reports runs from the store alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedpipe.commands.opened import check_runs, open_federation
from fedpipe.reports.comparison import Comparison, RunLine, list_runs
from fedpipe.reports.comparison import compare as compare_stories
from fedpipe.reports.report import render
from fedpipe.reports.story import read_story
from fedpipe.store.files import write_whole


def runs(source: str | Path, *, store: str | None = None) -> list[RunLine]:
    """Lists all runs of a federation that have begun, the latest first."""
    return list_runs(open_federation(source, store)[0])


def compare(source: str | Path, names: Sequence[str], *, store: str | None = None) -> Comparison:
    """Compares runs of a federation: the settings in which they differ, and their results.

    Raises:
        NotFoundError: there is no such run.
    """
    opened, uri = open_federation(source, store)
    check_runs(opened, names)
    return compare_stories([read_story(opened, name, uri) for name in names])


def report(
    source: str | Path, run: str, output: str | Path, *, store: str | None = None, beside: Sequence[str] = ()
) -> None:
    """Regenerates a run's report from the store, compared with other runs of the federation.

    Raises:
        NotFoundError: there is no such run.
        InputError: the file cannot be written.
    """
    opened, uri = open_federation(source, store)
    check_runs(opened, (run, *beside))
    page = render(read_story(opened, run, uri), [read_story(opened, name, uri) for name in beside])
    write_whole(Path(output), page.encode())
