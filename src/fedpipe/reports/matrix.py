"""The cross-site matrix: every learner's test of the model of every round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from fedpipe.reports.charts import heat_map
from fedpipe.reports.drawing import Drawing
from fedpipe.reports.story import Story, Tests

_MOST_ROUNDS = 60
_MOST_LEARNERS = 60
_MOST_PICTURES = 3
_MOST_WRITTEN = 12
"""Most rounds for which the numbers are written into the picture."""

T = TypeVar("T")


def matrix_pictures(story: Story, tests: Tests) -> list[Drawing]:
    """Draws one picture per metric: rows are learners, columns are rounds. None of a run with fewer than two tests.

    Args:
        story: the run.
        tests: `tests_of_rounds` of it.
    """
    names = list(dict.fromkeys(name for one in tests.values() for metrics in one.values() for name in metrics))
    compared = story.plan.federation.exported and story.plan.federation.exported.compared
    names.sort(key=lambda name: name != compared)
    if len(tests) < 2:
        return []
    return [_picture(tests, name) for name in names[:_MOST_PICTURES]]


def _picture(tests: Tests, name: str) -> Drawing:
    learners = sorted({learner for one in tests.values() for learner in one})
    rows, columns = _spread(learners, _MOST_LEARNERS), _spread(sorted(tests), _MOST_ROUNDS)
    values = [[tests[number].get(learner, {}).get(name) for number in columns] for learner in rows]
    known = [value for row in values for value in row if value is not None]
    return heat_map(
        values, rows, [str(number) for number in columns], title=f"{name} by learner and round",
        texts=len(columns) <= _MOST_WRITTEN, low=min(known, default=0.0), high=max(known, default=0.0), x="round",
        form="{:.3g}", alt=f"Tests of {len(tests)} models by {len(learners)} learners",
    )  # fmt: skip


def _spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many items, evenly spread, with the first and the last.

    >>> _spread(range(10), 4)
    [0, 3, 6, 9]
    """
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]
