"""Lets numbers and texts leave a learner as its floors allow; everything else stays there.

The code of a model is hostile here: names of metrics and error messages could carry data. So a metric leaves only by
its name, which the owner of the data lists or which is a usual one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from msgspec import Meta
from msgspec.structs import replace

from fedpipe.federation.names import Count, Section
from fedpipe.rounds.evaluation import EMPTY_TEST, NO_LABELS, Score
from fedpipe.rounds.manifests import Ballot, Dropped, Scores, Tested, Update
from fedpipe.rounds.tallies import ClassTally, Tally

USUAL_METRICS = frozenset(
    {
        "loss", "accuracy", "acc", "binary_accuracy", "categorical_accuracy", "sparse_categorical_accuracy",
        "top_k_categorical_accuracy", "sparse_top_k_categorical_accuracy", "auc", "pr_auc", "roc_auc", "precision",
        "recall", "f1", "f1_score", "mae", "mse", "rmse", "mean_absolute_error", "mean_squared_error",
        "root_mean_squared_error", "mean_absolute_percentage_error", "mean_squared_logarithmic_error", "r2", "r2_score",
        "cosine_similarity", "binary_crossentropy", "categorical_crossentropy", "sparse_categorical_crossentropy",
        "kullback_leibler_divergence", "mean_io_u", "true_positives", "true_negatives", "false_positives",
        "false_negatives",
    }
)  # fmt: skip
"""Names of metrics that leave unless a policy lists its own; `val_` may stand before them."""
WITHHELD = "the owner of the data withholds it"
REASON_STAYS = "its work failed, and its owner keeps the reason"
BUDGET_SPENT = "its privacy budget is used up"
_OWN_REASONS = (REASON_STAYS, BUDGET_SPENT, WITHHELD, EMPTY_TEST, NO_LABELS)
"""Reasons that quote nothing."""
Text = Annotated[str, Meta(min_length=1, max_length=200)]


class Leaving(Section, frozen=True, kw_only=True):
    """Numbers and files that may leave the site besides weights."""

    metrics: Annotated[
        tuple[Text, ...] | None,
        Meta(description="names of metrics that may leave; by default `loss` and the usual metrics (docs/sites.md)"),
    ] = None
    examples: Annotated[Count, Meta(description="fewest examples behind each number that leaves")] = 0
    tallies: Annotated[bool, Meta(description="counts by class, such as confusion matrices, leave")] = True
    tensorboard: Annotated[bool, Meta(description="TensorBoard event files leave")] = False
    reasons: Annotated[bool, Meta(description="error messages of model.py leave, which may quote data")] = False
    activations: Annotated[
        bool,
        Meta(
            description="messages to other parties of a cut network leave: activations and gradients of each row, and "
            "blinded ids (docs/split-learning.md)"
        ),
    ] = False


class Released(NamedTuple):
    """A statement that may leave, and what was withheld, in words for the journal."""

    statement: Any
    withheld: tuple[str, ...] = ()


def released(leaves: Leaving, statement: Any) -> Released:
    """Return a statement of a learner, of any kind, with what may leave."""
    for kind, function in _KINDS.items():
        if isinstance(statement, kind):
            return function(leaves, statement)
    return Released(statement)


def released_update(leaves: Leaving, update: Update) -> Released:
    """Return an update with the metrics that may leave."""
    metrics, held = released_metrics(leaves, update.metrics, update.examples)
    tested, more = _tested(leaves, update.tested)
    return Released(replace(update, metrics=metrics, tested=tested), (*held, *more))


def released_ballot(leaves: Leaving, ballot: Ballot) -> Released:
    """Return a ballot with the metrics that may leave; its reason stays unless reasons leave."""
    held: tuple[str, ...] = ()
    scores = []
    for part in (ballot.current, ballot.proposed):
        vote, first = _tested(leaves, part.vote)
        test, second = _tested(leaves, part.test)
        scores.append(Scores(vote=vote, test=test))
        held += (*first, *second)
    why = reason_that_leaves(leaves, ballot.why)
    return Released(replace(ballot, current=scores[0], proposed=scores[1], why=why), tuple(dict.fromkeys(held)))


def released_score(leaves: Leaving, score: Score) -> Released:
    """Return a score; the whole test stays if one of its metrics must, because their states belong together."""
    if score.why:
        return Released(replace(_empty(score), why=reason_that_leaves(leaves, score.why)))
    _, held = released_metrics(leaves, score.metrics, score.examples)
    if held:
        return Released(replace(_empty(score), why=WITHHELD), held)
    tallies = {name: tally for name, tally in score.tallies.items() if _may_leave(leaves, tally)}
    kept_back = sorted(score.tallies.keys() - tallies.keys())
    reasons = {name: reason_that_leaves(leaves, why) for name, why in score.uncounted.items()}
    personal, more = _tested(leaves, score.personal)
    changed = replace(
        score, tallies=tallies, personal=personal, uncounted={**reasons, **dict.fromkeys(kept_back, WITHHELD)}
    )
    return Released(changed, (*(f"the counts of {name or 'the output'}" for name in kept_back), *more))


def released_reason(leaves: Leaving, dropped: Dropped) -> Released:
    """Return a note that a learner does not take part; texts that may quote its data stay."""
    why = BUDGET_SPENT if dropped.code and not leaves.reasons else reason_that_leaves(leaves, dropped.why)
    return Released(replace(dropped, why=why), () if why == dropped.why else (dropped.why,))


def reason_that_leaves(leaves: Leaving, why: str) -> str:
    """Return a reason for others: it stays at the learner if it may quote data."""
    return why if leaves.reasons or not why or why in _OWN_REASONS else REASON_STAYS


def released_metrics(
    leaves: Leaving, metrics: Mapping[str, float], examples: int
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return the metrics that may leave, and those that do not, each with the reason.

    Args:
        leaves: what may leave.
        metrics: by name.
        examples: number of the examples behind them.
    """
    if examples < leaves.examples:
        held = (f"{len(metrics)} metrics of {examples} examples, of which the policy needs {leaves.examples}",)
        return {}, held if metrics else ()
    kept = {name: value for name, value in metrics.items() if _is_allowed(leaves, name)}
    return kept, tuple(f"the metric {name[:100]!r}" for name in sorted(metrics.keys() - kept.keys()))


def names_that_leave(leaves: Leaving | None) -> tuple[str, ...] | None:
    """Return the names of all metrics that may leave, sorted; None for all. It is what `released_metrics` keeps."""
    if leaves is None:
        return None
    usual = {prefix + name for prefix in ("", "val_", "test_") for name in USUAL_METRICS}
    return tuple(sorted(set(usual if leaves.metrics is None else leaves.metrics)))


def _is_allowed(leaves: Leaving, name: str) -> bool:
    if leaves.metrics is not None:
        return name in leaves.metrics
    return re.sub(r"^(val|test)_", "", name) in USUAL_METRICS


def _tested(leaves: Leaving, tested: Tested | None) -> tuple[Tested | None, tuple[str, ...]]:
    if tested is None:
        return None, ()
    metrics, held = released_metrics(leaves, tested.metrics, tested.examples)
    return (replace(tested, metrics=metrics) if metrics or not held else None), held


def _may_leave(leaves: Leaving, tally: Tally) -> bool:
    if not leaves.tallies:
        return False
    if isinstance(tally, ClassTally):
        cells = [*tally.true, *tally.taken, *(count for row in tally.confusion for count in row)]
        return all(not count or count >= leaves.examples for count in cells)
    return all(column.values >= leaves.examples for column in tally.columns)


def _empty(score: Score) -> Score:
    """Return a score without numbers."""
    return Score(
        learner=score.learner, weights=score.weights, settings=score.settings, signature=score.signature
    )  # fmt: skip


_KINDS: dict[type[Any], Callable[[Leaving, Any], Released]] = {
    Update: released_update, Ballot: released_ballot, Score: released_score, Dropped: released_reason,
}  # fmt: skip
