"""Draws a run's scores and ballots while it is in progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fedpipe.commands.opened import StoreGiven, full_name, is_known, known_runs, no_run, open_federation
from fedpipe.commands.watch import LOOK_AGAIN
from fedpipe.errors import InputError
from fedpipe.federation.sources import Source
from fedpipe.reports.drawing import Drawing
from fedpipe.reports.matrix import matrix_pictures
from fedpipe.reports.plots import learning_curves
from fedpipe.reports.png import painted
from fedpipe.reports.story import Story, read_story, tests_of_rounds
from fedpipe.reports.vote_plots import vote_pictures
from fedpipe.rounds.history import read_record
from fedpipe.store import keys
from fedpipe.store.files import write_whole

FORMATS = (".html", ".png", ".svg")
_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>{again}<style>
:root {{ color-scheme: light dark; --paper: #fff }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #11161d }} }}
body {{ font: 15px system-ui, sans-serif; margin: 1rem; background: var(--paper) }}
svg {{ max-width: 100%; height: auto }}</style>
</head><body><h1>{title}</h1><p>{state}</p>{pictures}</body></html>
"""


def plot(
    source: Source, run: str, output: str | Path, *, store: StoreGiven = None, live: bool = True,
    listener: Callable[[str], None] = lambda _: None, again: float = LOOK_AGAIN, wait: bool = False,
) -> None:  # fmt: skip
    """Draws a run's scores over the rounds and its ballots; redraws them after each round until the run has ended.

    Args:
        source: the federation file, or its content.
        run: the run's name.
        output: an .html, .svg or .png file; the page of a run in progress reloads itself.
        store: a store to use instead of the federation's.
        live: continues until the run has ended.
        listener: receives the state of the run after each drawing.
        again: seconds between two looks at the store.
        wait: waits for a run that the store does not have yet.

    Raises:
        NotFoundError: there is no such run.
        InputError: the file cannot be written, or has an unsupported format.

    >>> import fedpipe
    >>> result = fedpipe.run("demo/federation.yaml", name="run-1", training={"rounds": 2})
    >>> fedpipe.plot("demo/federation.yaml", "run-1", "run-1.svg", live=False, listener=print)
    round 2 of 2
    """
    path = Path(output)
    if path.suffix not in FORMATS:
        raise InputError("has an unsupported format", where=str(path), remedy="Use .html, .svg or .png.")
    opened, uri = open_federation(source, store)
    run = full_name(opened, run)
    if not (live and (wait or is_known(opened, run))) and read_record(opened, run, 0) is None:
        raise no_run(opened, run)
    drawn = -1
    while True:
        ended = opened.size(keys.summary(run)) is not None
        count = max(0, drawn)
        while read_record(opened, run, count) is not None:
            count += 1
        if count and (count != drawn or ended):
            story = read_story(opened, run, uri)
            rounds = f"round {count - 1} of {story.plan.federation.training.rounds}"
            state = rounds if ended else f"{rounds}, in progress"
            write_whole(path, _drawn(story, path.suffix, state, in_progress=live and not ended))
            listener(state)
            drawn = count
        elif drawn < 0:
            listener(f"waiting for run {run} to begin. {known_runs(opened)}")
            drawn = 0
        if ended or not live:
            return
        time.sleep(again)


def _drawn(story: Story, suffix: str, state: str, *, in_progress: bool) -> bytes:
    if suffix == ".html":
        again = '<meta http-equiv="refresh" content="2">' if in_progress else ""
        pictures = "".join(drawing.svg() for drawing in _drawings(story))
        title = f"{story.plan.federation.name}, {story.plan.run}"
        return _PAGE.format(title=title, again=again, state=state, pictures=pictures).encode()
    first = next(iter(_drawings(story)), Drawing(400, 60, "there is nothing to draw yet"))
    return painted(first) if suffix == ".png" else first.svg().encode()


def _drawings(story: Story) -> list[Drawing]:
    pictures = vote_pictures(story) if story.plan.federation.vote else learning_curves(story)
    return [*pictures, *matrix_pictures(story, tests_of_rounds(story))]
