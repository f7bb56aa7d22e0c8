"""Lists, compares and reports runs from the store alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedpipe.commands.opened import StoreGiven, check_runs, open_federation
from fedpipe.commands.shown import Compared, Page, Runs, save
from fedpipe.errors import InputError
from fedpipe.federation.sources import Source
from fedpipe.reports.comparison import compare as compare_stories
from fedpipe.reports.comparison import list_runs
from fedpipe.reports.report import render
from fedpipe.reports.story import read_story


def runs(source: Source, *, store: StoreGiven = None) -> Runs:
    """Lists all runs of a federation that have begun, the latest first.

    Args:
        source: the federation file, or its content.
        store: a store to use instead of the federation's.

    >>> import fedpipe
    >>> result = fedpipe.run("demo/federation.yaml", name="run-1")
    >>> [(run.name, run.state) for run in fedpipe.runs("demo/federation.yaml")]
    [('run-1', 'ended')]
    """
    return Runs(list_runs(open_federation(source, store)[0]))


def compare(source: Source, names: str | Sequence[str], *more: str, store: StoreGiven = None) -> Compared:
    """Compares runs of a federation: the settings in which they differ, and their results.

    Args:
        source: the federation file, or its content.
        names: two or more runs, as a list or one by one.
        more: further runs.
        store: a store to use instead of the federation's.

    Raises:
        InputError: there are fewer than two runs.
        NotFoundError: there is no such run.

    >>> import fedpipe
    >>> for name, rate in (("slow", 0.01), ("fast", 0.5)):
    ...     settings = {"learning_rate": rate, "start": "fresh"}
    ...     result = fedpipe.run("demo/federation.yaml", name=name, training=settings)
    >>> fedpipe.compare("demo/federation.yaml", "slow", "fast").settings
    {'training.learning_rate': ['0.01', '0.5']}
    """
    listed = [*([names] if isinstance(names, str) else names), *more]
    if len(listed) < 2:
        raise InputError("compare needs at least two runs", remedy="Run `fedpipe compare RUN RUN`.")
    opened, uri = open_federation(source, store)
    listed = check_runs(opened, listed)
    return Compared(*compare_stories([read_story(opened, name, uri) for name in listed]))


def report(
    source: Source, run: str, output: str | Path | None = None, *, store: StoreGiven = None,
    beside: Sequence[str] = (),
) -> Page:  # fmt: skip
    """Regenerates a run's report from the store, compared with the runs in `beside`.

    Args:
        source: the federation file, or its content.
        run: the run's name.
        output: the file to write; none by default.
        store: a store to use instead of the federation's.

    Returns:
        The page.

    Raises:
        NotFoundError: there is no such run.
        InputError: the file cannot be written.

    >>> import fedpipe
    >>> result = fedpipe.run("demo/federation.yaml", name="run-1")
    >>> page = fedpipe.report("demo/federation.yaml", "run-1", "report.html")
    >>> page.startswith("<!doctype html>")
    True
    """
    opened, uri = open_federation(source, store)
    others = [beside] if isinstance(beside, str) else [*beside]
    run, *others = check_runs(opened, (run, *others))
    page = Page(render(read_story(opened, run, uri), [read_story(opened, name, uri) for name in others]))
    save(page, output)
    return page
