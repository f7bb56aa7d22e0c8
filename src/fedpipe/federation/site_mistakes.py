"""Finds settings that a learner at a site cannot have, or that leave it without a part in the pipeline."""

from __future__ import annotations

from collections.abc import Iterator

from fedpipe.federation.federation import Federation
from fedpipe.federation.placement import Placement

Mistakes = Iterator[tuple[str, str, str]]


def site_mistakes(f: Federation) -> Mistakes:
    """Yield mistakes of learners at sites: path, mistake, remedy."""
    for position, learner in enumerate(f.learners):
        if learner.at != "site":
            continue
        path = f"learners[{position}]"
        if learner.data:
            yield (
                f"{path}.data",
                "is the site's own business",
                "Remove it, and set policy.data in the site's site.yaml.",
            )
        if learner.secret:
            yield f"{path}.secret", "has no effect at a site", "Remove it."
        if learner.placement != Placement():
            yield f"{path}.placement", "has no effect at a site", "Remove it."
        yield from _excluded(f, f"{path}.at")


def _excluded(f: Federation, path: str) -> Mistakes:
    if not f.in_sessions:
        yield (
            "training.rounds_per_step",
            "is 1, but a site attends sessions",
            "Set it to all, or to the rounds of a session.",
        )
    if f.data.is_table and not f.described_in_session:
        yield (
            "algorithm.engine",
            "is tff, so a site cannot describe its table in a session",
            "Remove it, or give the columns' statistics no part: use arrays.",
        )
