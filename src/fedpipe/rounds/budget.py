"""A learner's privacy budget over all runs, by its ledger (`fedpipe.rounds.ledger`).

Entries are numbered without a gap, so that two runs at the same time cannot spend the same budget. The second one
finds the number taken, reads the ledger again and checks again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedpipe.errors import BudgetError
from fedpipe.federation.training import Privacy, Training
from fedpipe.identity.statements import signed_by
from fedpipe.rounds.accounting import TrainingEvent, epsilon
from fedpipe.rounds.ledger import Entry, Ledger, Mark
from fedpipe.rounds.manifests import Spent
from fedpipe.store import Store, keys
from fedpipe.store.objects import encode


def training_event(training: Training, privacy: Privacy, examples: int, steps: int = 0) -> TrainingEvent:
    """Return the event of a private training on so many examples; of a complete one unless `steps` are given."""
    size = training.batch_size
    taken = steps or training.local_steps or training.local_epochs * (examples // size)
    return TrainingEvent(
        examples=examples, batch_size=size, microbatches=privacy.microbatches,
        noise_multiplier=privacy.noise_multiplier, steps=taken, passes=-(-taken // max(1, examples // size)),
    )  # fmt: skip


class Budget:
    """Checks and charges a learner's privacy budget.

    Args:
        store: the federation's store.
        learner: the learner's name.
        privacy: its settings.
        marks: states that the ledger had, which it must continue.
    """

    def __init__(self, store: Store, learner: str, privacy: Privacy, marks: Sequence[Mark] = ()) -> None:
        self._store, self._learner, self._privacy = store, learner, privacy
        self._ledger = Ledger(store, learner, marks)
        self.head: str | None = None
        """The head of the ledger with the entry that was charged; None before."""

    def entries(self) -> list[Entry]:
        """Return the entries of the ledger so far. Raises CorruptError: a learner does not train without its ledger."""
        return self._ledger.entries()

    def spent(self, *more: TrainingEvent) -> Spent:
        """Return the budget that the trainings of the ledger and these spend together."""
        events = [entry.event for entry in self.entries()] + list(more)
        privacy = self._privacy

        def bounded(sampling: str) -> float | None:
            value = epsilon(events, delta=privacy.delta, accountant=privacy.accountant, sampling=sampling)
            return value if math.isfinite(value) else None

        return Spent(
            events=len(events), epsilon_poisson=bounded("poisson"), epsilon_unamplified=bounded("none"),
            delta=privacy.delta, target_epsilon=privacy.target_epsilon, sampling=privacy.sampling,
        )  # fmt: skip

    def check(self, planned: TrainingEvent) -> Spent:
        """Return the budget spent with one more training. Raises BudgetError when it exceeds the target."""
        after = self.spent(planned)
        if after.epsilon > self._privacy.target_epsilon:
            before = self.spent()
            raise BudgetError(
                f"the next training of {self._learner} would bring epsilon from {before.epsilon:.4g} to "
                f"{after.epsilon:.4g}, the target is {self._privacy.target_epsilon:g}",
                remedy="Raise target_epsilon or the noise, train fewer epochs, or let this learner only vote.",
                spent=before,
            )
        return after

    def charge(self, event: TrainingEvent, *, run: str, number: int, weights: str) -> Spent:
        """Record a training that is about to be released, and return the budget spent with it.

        Raises:
            BudgetError: another run has spent the budget in the meantime; the training must not be released.
        """
        while True:
            spent = self.check(event)  # the new number follows exactly the entries that were checked
            entry = Entry(
                learner=self._learner, run=run, round=number, weights=weights, event=event, spent=spent,
                previous=self._ledger.head,
            )  # fmt: skip
            entry = signed_by(entry, self._learner)
            if self._store.create(keys.ledger(self._learner, spent.events), encode(entry)):
                self.head = entry.head
                return spent
