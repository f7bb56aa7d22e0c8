"""Finds settings that split learning excludes, or lacks."""

from __future__ import annotations

from collections.abc import Iterator

from fedpipe.federation.federation import Federation
from fedpipe.federation.split import ALIASES
from fedpipe.suggestion import suggestion

Mistakes = Iterator[tuple[str, str, str]]


def split_mistakes(f: Federation) -> Mistakes:
    """Yield mistakes of split learning: path, mistake, remedy."""
    if f.split is None:
        return
    names = [learner.name for learner in f.learners]
    if f.split.label_party not in names:
        what = f"there is no learner {f.split.label_party!r}"
        yield "algorithm.label_party", what, suggestion(f.split.label_party, names)
    elif not f.feature_parties:
        yield "learners", "no party holds features", "Add one, or set algorithm.label_party_features to true."
    if f.split.align == "intersection" and not f.split.ids:
        yield "algorithm.align", "is intersection, but no ids are named", "Set algorithm.ids to their column."
    for key, name in ALIASES.items():
        if getattr(f.split, key):
            what = f"is {getattr(f.split, key)}, but training.{name} is {getattr(f.training, name)}"
            yield f"algorithm.{key}", what, "Write it in one of the two places."
    for position, learner in enumerate(f.learners):
        if not learner.data and learner.at == "pod":
            yield (
                f"learners[{position}].data",
                "is missing",
                "Name the party's own file, with its columns.",
            )
    yield from _excluded(f)
    if not f.in_sessions:
        yield "training.rounds_per_step", "is 1, but parties exchange batches in a session", "Set it to all."
    if f.quorum.min_learners not in (0, len(names)):
        yield "quorum.min_learners", "must be all parties of a split network", "Remove it."


def _excluded(f: Federation) -> Mistakes:
    training = f.training
    given: dict[str, object] = {
        "framework": f.framework != "keras",
        "data.uri": f.data.uri,
        "data.features": f.data.is_table,
        "share": f.share != "all",
        "privacy": f.privacy,
        "quorum.learners_per_round": f.quorum.learners_per_round,
        "training.method": training.method,
        "training.local_steps": training.local_steps,
        "training.preprocessing": training.preprocessing,
        "training.exchange": training.exchange,
        "training.clip_norm": training.clip_norm,
        "training.accumulate": training.accumulate > 1,
        "training.precision": training.precision != "float32",
        "training.fit": training.fit,
        "training.callbacks": training.callbacks,
    }
    given |= {f"learners[{position}].privacy": learner.privacy for position, learner in enumerate(f.learners)}
    for path, value in given.items():
        if value:
            yield (
                path,
                "cannot be combined with split learning",
                "Remove it (docs/split-learning.md).",
            )
