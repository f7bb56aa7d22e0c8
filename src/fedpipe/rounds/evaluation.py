"""Evaluations: sums that can be added over learners, and the metrics made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from fedpipe.errors import CorruptError
from fedpipe.store import Store, keys
from fedpipe.store.objects import find

Matrix = tuple[tuple[int, ...], ...]


class Score(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A learner's test of a model.

    `states` holds the variables of each Keras metric (a mean's total and count, a curve's bins). They add up over
    learners, so that the federated metric is exact even where a mean of means would be wrong. `confusion[i][j]`
    counts examples of class i taken for class j. `label_shape` is the shape of one label. `why` is the reason when
    nothing was measured. `settings` is the digest of the settings of the measurement.
    """

    learner: str
    weights: str
    examples: Annotated[int, Meta(ge=0)] = 0
    metrics: dict[str, float] = {}
    states: tuple[tuple[float, ...], ...] = ()
    confusion: Matrix = ()
    label_shape: tuple[int, ...] = ()
    why: str = ""
    settings: str = ""


class Measured(Struct, frozen=True, kw_only=True):
    """Loss and metrics of a model over so many examples."""

    examples: int
    metrics: dict[str, float]


class Evaluation(Struct, frozen=True, kw_only=True):
    """The final model: on the central test set, and over the learners' test parts; and the digest of the settings."""

    weights: str
    central: Measured | None = None
    federated: Measured | None = None
    learners: dict[str, Measured] = {}
    left_out: dict[str, str] = {}
    confusion: Matrix = ()
    classes: tuple[str, ...] = ()
    settings: str = ""


def find_score(store: Store, learner: str, run: str) -> Score | None:
    """Return a learner's score, or None. Raises CorruptError."""
    return find(store, keys.score(learner, run), Score)


def read_scores(store: Store, run: str, learners: Sequence[str]) -> list[Score]:
    """Return the scores of all learners; none when there were no score steps, as in a simulation."""
    scores: dict[str, Score | None] = {}
    for learner in learners:
        try:
            scores[learner] = find_score(store, learner, run)
        except CorruptError as error:
            scores[learner] = Score(learner=learner, weights="", why=error.what)
    if not any(scores.values()):
        return []
    return [score or Score(learner=name, weights="", why="no score") for name, score in scores.items()]


def add_matrices(matrices: list[Matrix]) -> Matrix:
    """Return the sum of confusion matrices of one size; empty when sizes differ or there are none.

    >>> add_matrices([((1, 0), (2, 3)), ((1, 1), (0, 0))])
    ((2, 1), (2, 3))
    """
    sizes = {tuple(len(row) for row in m) for m in matrices}
    if len(sizes) != 1 or () in sizes:
        return ()
    return tuple(tuple(sum(cells) for cells in zip(*rows, strict=True)) for rows in zip(*matrices, strict=True))
