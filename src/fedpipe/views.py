"""Looking at data before a run, and at a run while it goes on or afterwards, from the store alone."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from fedpipe import plots
from fedpipe.board import Board, Keeper, ask_to_stop, board_key, poll_board
from fedpipe.comparison import Comparison, RunLine, list_runs
from fedpipe.comparison import compare as compare_stories
from fedpipe.data import read_examples
from fedpipe.errors import FedpipeError, InputError, NotFoundError
from fedpipe.exploration import Exploration, View, look
from fedpipe.exploration_page import render_html
from fedpipe.federation import Federation, Learner
from fedpipe.federation_file import read_federation
from fedpipe.files import write_whole
from fedpipe.kubeflow.compilation import read_code
from fedpipe.manifests import Record
from fedpipe.objects import digest_of
from fedpipe.plan import read_plan
from fedpipe.report import render
from fedpipe.rounds import read_record
from fedpipe.session import took_part
from fedpipe.steps.explore import private
from fedpipe.steps.shard import dealt
from fedpipe.store import Store, chosen_uri, open_store
from fedpipe.summary import Story, read_story
from fedpipe.timings import find_timing
from fedpipe.vote_plots import metrics_of, vote_figure, vote_pictures
from fedpipe.workers import Workers

_LOOK_AGAIN = 1.0
"""Seconds between two looks at a run that goes on."""
_PODS_AGAIN = 5.0
"""Seconds between two looks at its pods."""
FORMATS = (".html", ".png", ".svg")
_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>{again}<style>
body {{ font: 15px system-ui, sans-serif; margin: 1rem }} svg {{ max-width: 100%; height: auto }}</style>
</head><body><h1>{title}</h1><p>{state}</p>{pictures}</body></html>
"""


def open_federation(source: str | Path, store: str | None = None) -> tuple[Store, str]:
    """The federation's part of the store, and the URI of the whole.

    Args:
        source: the federation file.
        store: URI of the store instead of the federation's.
    """
    federation = read_federation(Path(source))
    uri = chosen_uri(store, federation.store_uri)
    return open_store(uri).below(federation.name), uri


def explore(source: str | Path, output: str | Path) -> Exploration:
    """Writes a page that shows what the learners hold, their own files too where they can be read from here.

    Raises:
        DataError: the dataset cannot be dealt out.
        InputError: the file cannot be written.
    """
    federation = read_federation(Path(source))
    dealt_out = dealt(federation, federation.data.uri)[0] if federation.sharded else {}
    views, left_out = [], private(federation)
    with Workers() as processes:
        for learner in federation.learners:
            if learner.name in left_out:
                continue
            try:
                parts = dealt_out.get(learner.name)
                views.append(look(learner.name, parts) if parts else _look_at_own(federation, learner, processes))
            except FedpipeError as error:
                left_out[learner.name] = str(error)
    found = Exploration(federation.name, tuple(views), left_out)
    write_whole(Path(output), render_html(found).encode())
    return found


def _look_at_own(federation: Federation, learner: Learner, processes: Workers) -> View:
    """A learner's own file, read by `load` of model.py where there is one, which needs Keras."""
    code, settings = read_code(federation), federation.data
    if re.search(r"^def load\(", code, re.MULTILINE):
        return cast(View, processes.call(loaded_view, federation, code, learner.name))
    examples, _ = read_examples(learner.data, **settings.columns)
    return look(learner.name, {"examples": examples})


def loaded_view(federation: Federation, code: str, name: str) -> View:
    """What a learner holds by `load` of model.py. Raises DataError and ModelError."""
    from fedpipe.keras_learner import as_examples, own_parts
    from fedpipe.keras_model import load_code

    data = code.encode()
    parts = own_parts(federation, name, load_code(data, digest_of(data)))
    return look(name, {part: as_examples(value) for part, value in parts.items()})


def runs(source: str | Path, *, store: str | None = None) -> list[RunLine]:
    """All runs of a federation that have begun, the latest first."""
    return list_runs(open_federation(source, store)[0])


def compare(source: str | Path, names: Sequence[str], *, store: str | None = None) -> Comparison:
    """Runs of a federation beside each other: in which settings they differ, and what came out.

    Raises:
        NotFoundError: there is no such run.
    """
    opened, uri = open_federation(source, store)
    _check_runs(opened, names)
    return compare_stories([read_story(opened, name, uri) for name in names])


def _check_runs(store: Store, names: Sequence[str]) -> None:
    for name in names:
        if read_record(store, name, 0) is None:
            raise NotFoundError(f"there is no run {name!r}", where=store.uri, remedy=_known(store))


def report(
    source: str | Path, run: str, output: str | Path, *, store: str | None = None, beside: Sequence[str] = ()
) -> None:
    """Writes a run's report anew, with other runs of the federation beside it.

    Raises:
        NotFoundError: there is no such run.
        InputError: the file cannot be written.
    """
    opened, uri = open_federation(source, store)
    _check_runs(opened, (run, *beside))
    page = render(read_story(opened, run, uri), [read_story(opened, name, uri) for name in beside])
    write_whole(Path(output), page.encode())


def plot(
    source: str | Path, run: str, output: str | Path, *, store: str | None = None, live: bool = True,
    listener: Callable[[str], None] = lambda _: None, again: float = _LOOK_AGAIN,
) -> None:  # fmt: skip
    """Draws a run: its scores over the rounds and its ballots. Draws it again after each round until it has ended.

    Args:
        source: the federation file.
        run: the run's name; one that has not begun is waited for when `live`.
        output: an .html, .svg or .png file; a page of a run that goes on loads itself again.
        store: URI of the store instead of the federation's.
        live: go on until the run has ended.
        listener: hears how far the run is, after each drawing.
        again: seconds between two looks.

    Raises:
        NotFoundError: there is no such run.
        InputError: the file cannot be written, or its format is none of the three.
    """
    path = Path(output)
    if path.suffix not in FORMATS:
        raise InputError(
            f"cannot draw a {path.suffix or 'file without a suffix'}",
            where=str(path),
            remedy="Use .html, .svg or .png.",
        )
    opened, uri = open_federation(source, store)
    drawn = -1
    while True:
        ended = opened.size(f"runs/{run}/summary.json") is not None
        count = max(0, drawn)
        while read_record(opened, run, count) is not None:
            count += 1
        if not count and not live:
            raise NotFoundError(f"there is no run {run!r}", where=opened.uri, remedy=_known(opened))
        if count and (count != drawn or ended):
            story = read_story(opened, run, uri)
            rounds = f"round {count - 1} of {story.plan.federation.training.rounds}"
            state = rounds if ended else f"{rounds}, going on"
            write_whole(path, _drawn(story, path.suffix, state, going_on=live and not ended))
            listener(state)
            drawn = count
        elif drawn < 0:
            listener(f"waiting for run {run} to begin. {_known(opened)}")
            drawn = 0
        if ended or not live:
            return
        time.sleep(again)


def stop(source: str | Path, run: str, *, store: str | None = None) -> str:
    """Asks a session to end after its current round, and says what will happen.

    Raises:
        NotFoundError: there is no such run.
        InputError: it has no session that could be stopped.
    """
    opened, _ = open_federation(source, store)
    _check_runs(opened, [run])
    found = poll_board(opened, run)
    board = found[0] if found else None
    if opened.size(f"runs/{run}/summary.json") is not None or (board and board.phase == "ended"):
        raise InputError(f"run {run!r} has ended already", where=opened.uri)
    asked = "" if ask_to_stop(opened, run) else "was already asked to end, and "
    if board is None:
        return f"run {run} {asked}ends as soon as its session begins; a run of single steps is not stopped by this"
    return f"run {run} {asked}ends after round {board.round}; the model is evaluated and exported as usual"


def watch(
    source: str | Path, run: str, *, store: str | None = None, listener: Callable[[str, str], None],
    again: float = _LOOK_AGAIN, pods: Callable[[], list[str]] | None = None,
) -> None:  # fmt: skip
    """Follows a run from its store until it has ended, wherever it runs.

    Args:
        source: the federation file.
        run: the run's name; one that has not begun is waited for.
        store: URI of the store instead of the federation's.
        listener: hears `(line, state)`: a line for what has happened, or the state of now.
        again: seconds between two looks.
        pods: a line for each pod that waits; asked now and then.

    Raises:
        StepError: of `pods`, when the run has failed.
    """
    opened, _ = open_federation(source, store)
    if read_record(opened, run, 0) is None:
        listener("", f"waiting for run {run} to begin. {_known(opened)}")
    keeper, number = Keeper(opened, run, ""), 0
    waiting = _Waiting(pods or list, listener)
    federation: Federation | None = None
    while True:
        ended = opened.size(f"runs/{run}/summary.json") is not None
        found = poll_board(opened, run)
        board = found[0] if found else None
        while record := read_record(opened, run, number):
            federation = federation or read_plan(opened, record.plan).federation
            listener(round_line(opened, federation, record), "")
            number += 1
        if ended or (board and board.phase == "ended"):
            listener(f"the session ended: {board.why}" if board and board.phase == "ended" else "the run has ended", "")
            return
        state = _state(keeper, board, opened.age(board_key(run)) or 0.0) if board else ""
        listener("", "; ".join(filter(None, [state, *waiting.look()])))
        time.sleep(again)


class _Waiting:
    """Pods that wait: each is a line of its own once, and part of the state as long as it waits."""

    def __init__(self, pods: Callable[[], list[str]], listener: Callable[[str, str], None]) -> None:
        self._pods, self._listener = pods, listener
        self._lines: list[str] = []
        self._told: set[str] = set()
        self._next = 0.0

    def look(self) -> list[str]:
        """The lines of now."""
        if time.monotonic() >= self._next:
            self._lines, self._next = self._pods(), time.monotonic() + _PODS_AGAIN
            for line in self._lines:
                if (who := line.partition(" is ")[0]) not in self._told:
                    self._told.add(who)
                    self._listener(line, "")
        return self._lines


def round_line(store: Store, federation: Federation, record: Record) -> str:
    """What a round did: metrics, who took part, how it was decided, and seconds of each phase."""
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in record.metrics.items())
    phases = ("await-train", "aggregate", "await-vote", "tally")
    timings = [(step, find_timing(store, record.run, record.round, step)) for step in phases]
    seconds = ", ".join(f"{step.removeprefix('await-')} {t.seconds:.1f} s" for step, t in timings if t)
    parts = [f"round {record.round}", numbers]
    if record.proposer:
        parts.append(f"proposed by {record.proposer}")
    elif record.round:
        parts.append(f"{len(took_part(federation, record))} learners")
    if record.outcome:
        word = "accepted" if record.accepted else "rejected"
        parts.append(f"{word} by {record.outcome.approvals} of {record.outcome.voters}")
    parts += [f"without {item.learner} ({item.why})" for item in (*record.dropped, *record.absent)]
    return "  ".join(filter(None, [*parts, seconds]))


def _state(keeper: Keeper, board: Board, seconds: float) -> str:
    """What a session does now, and whom it awaits."""
    awaited = []
    for name in board.asked:
        sign = keeper.sign(name)
        if not sign or (sign.round, sign.attempt, sign.phase) != (board.round, board.attempt, board.phase):
            awaited.append(name)
    who = f"awaiting {', '.join(awaited)}" if awaited else "all have answered"
    away = f"; away: {', '.join(board.away)}" if board.away else ""
    return f"round {board.round} {board.phase}: {who} for {seconds:.0f} s{away}"


def _known(store: Store) -> str:
    """What a user may have meant."""
    names = sorted({key.split("/")[1] for key in store.keys("runs/")})
    return f"Runs: {', '.join(names)}." if names else "No run has begun here."


def _drawn(story: Story, suffix: str, state: str, *, going_on: bool) -> bytes:
    voted = story.plan.federation.vote is not None
    if suffix == ".html":
        again = '<meta http-equiv="refresh" content="2">' if going_on else ""
        pictures = "".join(vote_pictures(story) if voted else plots.learning_curves(story))
        title = f"{story.plan.federation.name}, {story.plan.run}"
        return _PAGE.format(title=title, again=again, state=state, pictures=pictures).encode()
    figures = [vote_figure(story, metrics_of(story)[0])] if voted else plots.learning_figures(story)
    return plots.png(figures[0]) if suffix == ".png" else plots.svg(figures[0]).encode()
