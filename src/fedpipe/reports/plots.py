"""Draws pictures of a run: learning, learners, labels and times."""

from __future__ import annotations

from collections.abc import Sequence

from fedpipe.data.examples import in_order
from fedpipe.reports.charts import lanes, line_chart, stacked_bars
from fedpipe.reports.drawing import Drawing
from fedpipe.reports.story import Story, global_metrics
from fedpipe.rounds.timings import PARCELS, TEST_PARCELS

_NOT_TRAINING = ("test_", "held_out_", "central_", "num_", "aggregator", "distributor", "finalizer")
"""Prefixes of a simulated round's metrics that do not describe its training."""


_LONG = ("learn", "learn_private", "coordinate", "coordinate_tff", "simulate")
"""Steps that work through many rounds, and record the time of each."""


def learning_curves(story: Story) -> list[Drawing]:
    """Draws one picture per metric: the learners' training, and the round's model on their test parts."""
    records = [r for r in story.records if r.round]
    names = list(dict.fromkeys(n for r in records for n in (*r.metrics, *global_metrics(story, r.round))))
    pictures = []
    for name in (n for n in names if not n.startswith(_NOT_TRAINING)):
        training = [(r.round, r.metrics[name]) for r in records if name in r.metrics]
        shared = [
            (r.round, value) for r in story.records if (value := global_metrics(story, r.round).get(name)) is not None
        ]
        curves = {"learners' training": training, "shared model, learners' test parts": shared}
        for prefix, data in (("held_out_", "held-out learners"), ("central_", "central test set")):
            curves[f"shared model, {data}"] = [
                (r.round, r.metrics[prefix + name]) for r in records if prefix + name in r.metrics
            ]
        pictures.append(line_chart({k: v for k, v in curves.items() if v}, title=name, y=name))
    return pictures


def comparison_curves(stories: Sequence[Story]) -> list[Drawing]:
    """Draws one picture per metric: the shared model of several runs on the learners' test parts."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for story in stories:
        name = f"{story.plan.run}, {story.plan.federation.algorithm.__struct_config__.tag}"
        for record in story.records:
            for metric, value in global_metrics(story, record.round).items():
                curves.setdefault(metric, {}).setdefault(name, []).append((record.round, value))
    return [
        line_chart(by_name, title=f"{metric} of the shared model in each run", y=metric)
        for metric, by_name in curves.items()
    ]


def learner_curves(story: Story) -> list[Drawing]:
    """Draws one picture per metric: the training of each learner."""
    updates = [u for r in story.records for u in r.updates]
    pictures = []
    for name in dict.fromkeys(n for r in story.records for n in r.metrics):
        curves: dict[str, list[tuple[float, float]]] = {}
        for update in updates:
            if name in update.metrics:
                curves.setdefault(update.learner, []).append((update.round, update.metrics[name]))
        if curves:
            title = f"{name} of each learner's training"
            pictures.append(line_chart(dict(sorted(curves.items())), title=title, y=name))
    return pictures


def label_counts(story: Story, classes: Sequence[str]) -> Drawing:
    """Draws how often each label occurs at each learner, with the names of the classes."""
    shards = [s for s in story.shards if s.labels]
    labels = in_order(label for s in shards for label in s.labels)
    numbers = {str(number): name for number, name in enumerate(classes)}
    named = {label: label if label in classes else numbers.get(label, label) for label in labels}
    rows = {s.learner: {named[label]: s.labels[label] for label in labels if label in s.labels} for s in shards}
    alt = f"{len(labels)} labels at {len(shards)} learners"
    return stacked_bars(rows, title="labels of each learner", x="examples", alt=alt, parts=list(named.values()))


def timings(story: Story) -> Drawing:
    """Draws when each step ran: a lane for the coordinator and each learner, a colour for each kind of step."""
    drawn = [  # for long steps, only their rounds; parcels are sent while another step runs
        t for t in story.timings if t.step not in (PARCELS, TEST_PARCELS) and (t.round or t.step not in _LONG)
    ]
    first = min(t.started for t in story.timings)
    spans: dict[str, list[tuple[str, float, float]]] = {"": []}
    spans |= {learner.name: [] for learner in story.plan.federation.learners}
    for timing in drawn:
        start = timing.started - first
        if timing.learner in spans:
            spans[timing.learner].append((timing.step, start, start + timing.seconds))
    named = {name or "coordinator": lane for name, lane in spans.items()}
    alt = f"{len(drawn)} steps of the coordinator and {len(spans) - 1} learners"
    return lanes(named, title="steps over time", x="seconds since the first step", alt=alt)
