"""Draws pictures of a run with votes: the shared model's scores, with the ballots of each round."""

from __future__ import annotations

from typing import Any

from fedpipe.reports.plots import COLOURS, figure_of, svg
from fedpipe.reports.story import Story, decision, global_metrics, shared_scores

_MARKS = {
    "yes": {"marker": "o", "s": 26, "facecolors": "#16a34a", "edgecolors": "white", "linewidths": 0.6},
    "no": {"marker": "X", "s": 30, "facecolors": "#dc2626", "edgecolors": "white", "linewidths": 0.6},
    "void": {"marker": "D", "s": 20, "facecolors": "#a3a3a3", "edgecolors": "white", "linewidths": 0.6},
    "absent": {"marker": "o", "s": 26, "facecolors": "white", "edgecolors": "#525252", "linewidths": 1.0},
}
_CELLS = {"yes": "#86efac", "no": "#fca5a5", "void": "#e5e5e5", "absent": "#ffffff", "none": "#fafafa"}


def metrics_of(story: Story) -> list[str]:
    """Returns the criterion, and then each other metric that the learners tested."""
    vote = story.plan.federation.vote
    assert vote is not None
    tested = [n for scores in shared_scores(story) for s in scores.values() if s.test for n in s.test.metrics]
    return list(dict.fromkeys([vote.criterion, *tested]))


def vote_figure(story: Story, metric: str) -> Any:
    """Draws test scores per learner, and their mean, over the rounds, with the ballots on them and in a table below.

    Args:
        story: a run with votes, finished or not.
        metric: the criterion, or another compiled metric.
    """
    rounds, learners = [r.round for r in story.records], [item.name for item in story.plan.federation.learners]
    figure = figure_of(min(15.0, max(7.0, 2.6 + 0.42 * len(rounds))), 4.2 + 0.24 * len(learners))
    above, below = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [10, max(1.0, 0.75 * len(learners))]}
    )
    decisions = {record.round: decision(story, record) for record in story.records}
    _draw_scores(above, story, metric, decisions)
    _draw_ballots(below, learners, decisions)
    above.set(title=f"{metric} of the shared model on each learner's test part", ylabel=metric)
    below.set(xlabel="round", xlim=(-0.6, max(rounds) + 0.6))
    below.set_xticks([n for n in rounds if n % (1 + len(rounds) // 40) == 0])
    return figure


def _draw_scores(axes: Any, story: Story, metric: str, decisions: dict[int, dict[str, Any]]) -> None:
    by_round = shared_scores(story)
    means = [(r.round, m[metric]) for r in story.records if metric in (m := global_metrics(story, r.round))]
    average = dict(means)
    for position, learner in enumerate(story.plan.federation.learners):
        name, colour = learner.name, COLOURS[position % len(COLOURS)]
        points = {
            number: s.test.metrics[metric]
            for number, scores in enumerate(by_round)
            if (s := scores.get(name)) and s.test and metric in s.test.metrics
        }
        axes.plot(*_columns(points), color=colour, lw=1, alpha=0.75, label=name)
        for kind, style in _MARKS.items():
            marked = [n for n, d in decisions.items() if d["learners"][name]["ballot"] == kind]
            at = {n: y for n in marked if (y := points.get(n, average.get(n))) is not None}
            axes.scatter(*_columns(at), zorder=3, **style)
    axes.plot(*_columns(average), color="#0f172a", lw=2.4, label="mean, weighted by examples", zorder=2)
    for kind, style in _MARKS.items():
        if any(voter["ballot"] == kind for d in decisions.values() for voter in d["learners"].values()):
            axes.scatter([], [], label=kind, **style)
    for number, decided in decisions.items():
        if number and not decided["accepted"]:
            axes.axvspan(number - 0.5, number + 0.5, color="#fef2f2", zorder=0)
    if average and min(average.values()) > 0 and max(average.values()) > 10 * min(average.values()):
        _scale_by_orders(axes)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _scale_by_orders(axes: Any) -> None:
    """Sets a logarithmic scale with plain numbers, for a loss that falls by orders of magnitude."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _columns(points: dict[int, float]) -> tuple[list[int], list[float]]:
    return list(points), list(points.values())


def _draw_ballots(axes: Any, learners: list[str], decisions: dict[int, dict[str, Any]]) -> None:
    """Draws a cell per learner and round, with a frame around the proposer's, and a sign below each column."""
    numbers = list(decisions)
    for row, name in enumerate(learners):
        kinds = [d["learners"][name]["ballot"] for d in decisions.values()]
        proposed = [d["proposer"] == name for d in decisions.values()]
        axes.broken_barh(
            [(number - 0.43, 0.86) for number in numbers], (row - 0.41, 0.82), facecolors=[_CELLS[k] for k in kinds],
            edgecolors=["#0f172a" if p else "#d4d4d4" for p in proposed],
            linewidths=[1.6 if p else 0.5 for p in proposed],
        )  # fmt: skip
        for number, kind in zip(numbers, kinds, strict=True):
            if kind in ("absent", "void"):
                axes.text(number, row, "–" if kind == "absent" else "·", ha="center", va="center")
    for number, decided in decisions.items():
        if number:
            sign, colour = ("✓", "#15803d") if decided["accepted"] else ("✗", "#b91c1c")
            axes.text(number, len(learners) - 0.05, sign, ha="center", va="center", color=colour, fontsize=9)
    axes.set_yticks(range(len(learners)), learners, fontsize=8)
    axes.set_ylim(len(learners) + 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines[["left"]].set_visible(False)
    axes.text(
        1.01, 0.5, "green: yes\nred: no\n–: absent\n·: void\nframe: proposer\n✓ accepted, ✗ rejected",
        transform=axes.transAxes, fontsize=8, va="center", linespacing=1.5,
    )  # fmt: skip


def vote_pictures(story: Story) -> list[str]:
    """Draws one picture per metric as SVG, the criterion's first."""
    return [svg(vote_figure(story, metric)) for metric in metrics_of(story)]
