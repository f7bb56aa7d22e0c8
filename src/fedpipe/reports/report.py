"""Renders the report of a run as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedpipe.reports import plots, vote_plots
from fedpipe.reports.story import Story, privacy, summarise
from fedpipe.rounds.evaluation import Measured
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
    summary, evaluation, spent = summarise(story), story.evaluation, privacy(story)
    final: list[tuple[str, Measured]] = []
    if evaluation:
        shared = [("central test set", evaluation.central), ("all learners' test parts", evaluation.federated)]
        final = [(name, m) for name, m in shared if m] + sorted(evaluation.learners.items())
    return {
        "s": summary,
        "marks": {"yes": "✓", "no": "✗", "void": "·", "absent": "–", "none": ""},
        "batch_size": story.plan.federation.training.batch_size,
        "vote": story.plan.federation.vote,
        "votes": vote_plots.vote_pictures(story) if story.plan.federation.vote else [],
        "privacy": spent,
        "private": {name: story.plan.federation.privacy_of(name) for name in spent},
        "comparison": plots.comparison_curves([story, *others]) if others else [],
        "compared_runs": [(one, summarise(one)) for one in (story, *others)] if others else [],
        "number": lambda v: "" if v is None else f"{v:.4f}",
        "learners": story.plan.federation.learners,
        "metrics": sorted({m for r in summary["rounds"] for m in r["metrics"]}),
        "cards": _cards(story),
        "final": final,
        "ending": ENDINGS.get(story.ending, ""),
        "final_metrics": list(dict.fromkeys(k for _, m in final for k in m.metrics)),
        "left_out": evaluation.left_out if evaluation else {},
        "confusion": plots.confusion_matrix(evaluation) if evaluation and evaluation.confusion else "",
        "curves": plots.learning_curves(story),
        "each": plots.learner_curves(story),
        "labels": plots.label_counts(story) if any(s.labels for s in story.shards) else "",
        "timings": plots.timings(story) if story.timings else "",
        "samples": story.onnx.get("samples", ""),
        "compared": story.onnx.get("compared", 0),
    }


def _cards(story: Story) -> list[tuple[str, str]]:
    cards = []
    evaluation = story.evaluation
    for name, measured in (
        ("central", evaluation and evaluation.central),
        ("federated", evaluation and evaluation.federated),
    ):
        if measured:
            cards += [(f"{name} {k}", f"{v:.4f}") for k, v in measured.metrics.items()]
    if story.onnx:
        cards.append(("ONNX version", str(story.onnx["version"])))
    if story.plan.federation.vote:
        rounds = [r for r in story.records if r.round]
        cards.append(("accepted rounds", f"{sum(r.accepted for r in rounds)} of {len(rounds)}"))
    dropped = sum(len(r.dropped) for r in story.records)
    return [*cards, ("dropped updates", str(dropped))]
