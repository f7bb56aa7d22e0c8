"""Renders the report of a run as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedpipe.reports import cut_plots, plots, quality, remarks, vote_plots
from fedpipe.reports.comparison import different_settings
from fedpipe.reports.drawing import Drawing
from fedpipe.reports.matrix import matrix_pictures
from fedpipe.reports.story import Story, privacy, summarise, tests_of_rounds
from fedpipe.reports.traffic import PHASES, common_rows, traffic_of
from fedpipe.rounds.tallies import ValueTally
from fedpipe.sessions.board import ENDINGS


def render(story: Story, others: Sequence[Story] = ()) -> str:
    """Renders the report as HTML.

    Args:
        story: the run.
        others: runs to compare it with.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("fedpipe"), autoescape=True, trim_blocks=True)
    return environment.get_template("report.html").render(**_context(story, others))


def _context(story: Story, others: Sequence[Story]) -> dict[str, Any]:
    tests, evaluation, spent = tests_of_rounds(story), story.evaluation, privacy(story)
    summary = summarise(story, tests)
    final = [(name, measured, quality.shown(measured)) for name, measured in quality.tested(evaluation)]
    classes = evaluation.classes if evaluation else ()
    traffic = traffic_of(story.plan.federation, story.timings)
    return {
        "s": summary,
        "marks": {"yes": "✓", "no": "✗", "void": "·", "absent": "–", "none": ""},
        "batch_size": story.plan.federation.training.batch_size,
        "vote": story.plan.federation.vote,
        "votes": _drawn(vote_plots.vote_pictures(story)) if story.plan.federation.vote else [],
        "privacy": spent,
        "private": {name: story.plan.federation.privacy_of(name) for name in spent},
        "comparison": _drawn(plots.comparison_curves([story, *others])) if others else [],
        "compared_runs": [(one, _numbers_of(one)) for one in (story, *others)] if others else [],
        "compared_settings": different_settings([story, *others]) if others else {},
        "number": number,
        "learners": story.plan.federation.learners,
        "traffic": traffic,
        "phases": PHASES,
        "common": common_rows(story.records),
        "cut": cut_plots.cut_picture(story, traffic).svg() if traffic else "",
        "metrics": sorted({m for r in summary["rounds"] for m in r["metrics"]}),
        "cards": _cards(story),
        "final": final,
        "personal": summary["evaluation"].get("personal_models"),
        "flaw": story.flaw,
        "ending": ENDINGS.get(story.ending, ""),
        "final_metrics": list(dict.fromkeys(k for _, _, numbers in final for k in numbers)),
        "measures": list(dict.fromkeys(k for _, m, _ in final for k in m.measures)),
        "left_out": evaluation.left_out if evaluation else {},
        "uncounted": evaluation.uncounted if evaluation else {},
        "qualities": quality.qualities(evaluation, classes) if evaluation else [],
        "curves": _drawn(plots.learning_curves(story)),
        "each": _drawn(plots.learner_curves(story)),
        "matrix": _drawn(matrix_pictures(story, tests)),
        "labels": _labels(story, classes),
        "timings": plots.timings(story).svg() if story.timings else "",
        "samples": story.onnx.get("samples", ""),
        "compared": story.onnx.get("compared", 0),
        "beginning": remarks.beginning(story, summary),
        "remarks": [remark for remark in (remarks.unnormalised(story), remarks.gap(story)) if remark],
        "held": remarks.held_data(story),
        "settings": remarks.settings(story),
        "all_settings": remarks.all_settings(story),
        "simulated": any(t.step == "simulate" for t in story.timings),
    }


def number(value: float | None) -> str:
    """Returns a number for a table: four digits after the point, or more for small and fewer for large ones."""
    if value is None:
        return ""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def _labels(story: Story, classes: Sequence[str]) -> str:
    """Draws the labels, unless they are numbers to predict."""
    tallies = story.evaluation.tallies.values() if story.evaluation else ()
    numbers = any(isinstance(tally, ValueTally) for each in tallies for tally in list(each.values())[:1])
    return plots.label_counts(story, classes).svg() if any(s.labels for s in story.shards) and not numbers else ""


def _drawn(drawings: Sequence[Drawing]) -> list[str]:
    return [drawing.svg() for drawing in drawings]


def _numbers_of(story: Story) -> dict[str, dict[str, float]]:
    evaluation = story.evaluation
    measured = {"central": evaluation and evaluation.central, "federated": evaluation and evaluation.federated}
    return {name: quality.shown(m) if m else {} for name, m in measured.items()}


def _cards(story: Story) -> list[tuple[str, str]]:
    cards = [(f"{kind} {name}", number(value)) for kind, m in _numbers_of(story).items() for name, value in m.items()]
    if story.evaluation and story.evaluation.choice:
        cards.append(("chosen round", str(story.evaluation.choice.round)))
    if story.onnx:
        cards.append(("ONNX version", str(story.onnx.get("version", "not published"))))
    if story.plan.federation.vote:
        rounds = [r for r in story.records if r.round]
        cards.append(("accepted rounds", f"{sum(r.accepted for r in rounds)} of {len(rounds)}"))
    dropped = sum(len(r.dropped) for r in story.records)
    return [*cards, ("dropped updates", str(dropped))]
