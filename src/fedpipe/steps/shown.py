"""Makes the artifacts that Kubeflow's UI shows and compares: the same numbers by the same names for every step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedpipe.federation.federation import Federation
from fedpipe.reports.drawing import Drawing, escaped
from fedpipe.reports.plots import learner_curves, learning_curves
from fedpipe.reports.quality_plots import confusion_matrix
from fedpipe.reports.story import read_story
from fedpipe.rounds.evaluation import Evaluation
from fedpipe.rounds.manifests import Record, Spent, Update
from fedpipe.rounds.plan import RunPlace
from fedpipe.rounds.selection import took_part
from fedpipe.rounds.tallies import ClassTally
from fedpipe.steps.contract import Html, MetricsArtifact

MOST_CLASSES = 6
"""Most classes of a confusion matrix that Kubeflow's own drawing shows without cutting it off."""
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:1em}h1{font-size:1.4em;overflow-wrap:anywhere}"
    "code{background:#8882}"
    "div{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:1em}"
    "svg{max-width:100%;height:auto}"
)
_TESTED = {"central": "the central test set", "federated": "the test parts of all learners together"}


def metrics_of_run(federation: Federation, record: Record) -> MetricsArtifact:
    """Return the numbers of a run after a round: its training, rounds, participation and privacy."""
    names = [learner.name for learner in federation.learners]
    return MetricsArtifact(
        metadata={
            **_numbers(record.metrics), "rounds": record.round, "learners": len(took_part(federation, record)),
            "examples": record.examples,
            **_epsilon(record.spent_by(name) for name in names),
        }
    )  # fmt: skip


def metrics_of_learner(update: Update | None, trained: int, voted: int) -> MetricsArtifact:
    """Return a learner's numbers: its last training, and how often it trained and voted."""
    if update is None:
        return MetricsArtifact(metadata={"rounds": trained, "votes": voted})
    counts = {"rounds": trained, "votes": voted, "examples": update.examples}
    return MetricsArtifact(metadata={**_numbers(update.metrics), **counts, **_epsilon([update.spent])})


def _numbers(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics of a training, the loss first."""
    return {name: metrics[name] for name in sorted(metrics, key=lambda name: (name != "loss", name))}


def _epsilon(spent: Iterable[Spent | None]) -> dict[str, float]:
    found = [item.epsilon for item in spent if item]
    return {"epsilon": max(found)} if found else {}


def page_of_session(place: RunPlace) -> Html:
    """Return the page of a session: its curves, and the commands that show more."""
    store = place.open()
    story = read_story(store, place.run, place.store)
    commands = (
        (f"fedpipe watch {place.run}", "follows the run, also while it is in progress"),
        (f"fedpipe report {place.run}", "writes the whole report"),
        ("fedpipe runs", "lists all runs"),
        (f"fedpipe compare {place.run} OTHER", "shows in what another run differs"),
    )
    told = "".join(f"<li><code>{escaped(command)}</code> {escaped(what)}</li>" for command, what in commands)
    count = len(story.records) - 1
    run = place.run if place.run.startswith("run") else f"run {place.run}"
    title = f"{place.federation}, {run}: {count} round{'' if count == 1 else 's'}"
    head = f"<h1>{escaped(title)}</h1><p>In the folder of federation.yaml:</p><ul>{told}</ul>"
    return page_of(title, head, [*learning_curves(story), *learner_curves(story)])


def page_of_confusion(evaluation: Evaluation) -> Html:
    """Return the page with the confusion matrix of the first output, on the central test set if there is one."""
    for kind in ("central", "federated"):
        tally = next(iter(evaluation.tallies.get(kind, {}).values()), None)
        if isinstance(tally, ClassTally) and tally.confusion:
            right, total = sum(row[k] for k, row in enumerate(tally.confusion)), sum(map(sum, tally.confusion))
            head = f"<p>The final model on {_TESTED[kind]}: {right} of {total} examples are predicted correctly.</p>"
            return page_of("confusion matrix", head, [confusion_matrix(tally, evaluation.classes)])
    return page_of("confusion matrix", "<p>There is no confusion matrix: the model is not a classifier.</p>", [])


def page_of(title: str, head: str, drawings: Sequence[Drawing]) -> Html:
    """Return a page with pictures, which needs no other file."""
    body = f"{head}<div>{''.join(drawing.svg() for drawing in drawings)}</div>"
    return Html(
        content=f"<!doctype html><meta charset=utf-8><title>{escaped(title)}</title><style>{_STYLE}</style>{body}\n"
    )
