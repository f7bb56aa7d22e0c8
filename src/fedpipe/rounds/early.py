"""Add up a round's updates while others are awaited, so that less is left to do at its closing."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from pathlib import Path

from fedpipe.aggregation import Forest, Norms
from fedpipe.aggregation.norms import OTHERS
from fedpipe.errors import DroppedError
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.rounds.closing import bounds_of, encoding_of, places_of, rule_of, source_of
from fedpipe.rounds.manifests import Record
from fedpipe.rounds.plan import Plan
from fedpipe.rounds.updates import read_valid
from fedpipe.store import Store
from fedpipe.store.objects import fetch_file
from fedpipe.weights import Layout

log = logging.getLogger("fedpipe")


class EarlySums:
    """Adds updates up while others are awaited; see `sessions.phases.Early`.

    Args:
        store: the federation's store.
        plan: the run's plan.
        previous: the record of the round before.
        forest: the sums.
        base: where the global weights are fetched to, if the sums need them.
    """

    def __init__(self, store: Store, plan: Plan, previous: Record, forest: Forest, base: Path | None = None) -> None:
        self._store, self._plan, self._previous, self._base = store, plan, previous, base
        self._enrolled = read_enrolled(store)
        self.forest: Forest | None = forest

    @classmethod
    def plant(
        cls, store: Store, plan: Plan, previous: Record, layout: Layout, asked: Collection[str], folder: Path
    ) -> EarlySums | None:
        """Begin the sums of a round; return None when the rule needs single updates, or the model is small.

        Args:
            store: the federation's store.
            plan: the run's plan.
            previous: the record of the round before.
            layout: of the model.
            asked: the learners that the round asks.
            folder: where the sums are kept.
        """
        places, bounds = places_of(plan), bounds_of(plan)
        if bounds.share:  # a weight depends on all others
            return None
        norms = Norms(folder / "base", bounds.norm, layout) if bounds.norm and len(asked) > OTHERS else None
        asked_places = [places[name] for name in asked]
        rule = rule_of(plan, previous.round + 1)
        encoding = encoding_of(plan, layout, folder / "base")
        forest = Forest.plant(store, layout, rule, asked_places, folder, previous.weights, norms, encoding)
        base = folder / "base" if norms or encoding else None
        return None if forest is None else cls(store, plan, previous, forest, base)

    def take(self, learner: str) -> None:
        """Fetch a learner's update and add it; the closing reports what is wrong with it."""
        if self.forest is None:
            return
        with contextlib.suppress(DroppedError):
            update = read_valid(self._store, self._plan, self._previous, self._enrolled, learner)
            if update is None:
                return
            try:
                if self._base and not self._base.exists():
                    fetch_file(self._store, self._previous.weights, self._base)
                self.forest.add(source_of(self._plan, update))
            except OSError as error:  # no space to keep it: the closing streams from the store
                log.warning("updates are not added before all have arrived: %s", error.strerror)
                self.forest.discard()
                self.forest = None
                if self._base:
                    self._base.unlink(missing_ok=True)
