"""Limits on the numbers of examples that learners claim, because these numbers are weights.

A learner that was dealt a shard has as many examples as the plan says. One with data of its own has at most as many as
the administrator enrolled it with (`fedpipe enroll --examples`), if a number was given. `most_examples` of the
federation file limits all.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedpipe.errors import DroppedError
from fedpipe.federation.algorithms import Averaging
from fedpipe.identity.enrolment import Enrolled
from fedpipe.rounds.manifests import Ballot, Scores, Update
from fedpipe.rounds.plan import Plan


class Claims:
    """Compares the examples that learners claim with their limits.

    Args:
        sizes: the examples in each part of the shards, by learner, as the plan has them.
        enrolled: those who are enrolled, some of them with a number of examples.
        most: train examples that any learner may claim; 0: no limit.
    """

    def __init__(self, sizes: Mapping[str, Mapping[str, int]], enrolled: Enrolled, most: int = 0) -> None:
        self._sizes, self._enrolled, self._most = sizes, enrolled, most

    @classmethod
    def of(cls, plan: Plan, enrolled: Enrolled) -> Claims:
        """Return the limits of a run."""
        algorithm = plan.federation.algorithm
        return cls(plan.sizes, enrolled, algorithm.most_examples if isinstance(algorithm, Averaging) else 0)

    def check(self, learner: str, part: str, claimed: int) -> None:
        """Check one number.

        Args:
            learner: its name.
            part: `train`, `vote` or `test`.
            claimed: the number of examples in this part.

        Raises:
            DroppedError: there are fewer.
        """
        dealt = self._sizes.get(learner)
        if dealt is not None and claimed > dealt.get(part, 0):
            raise DroppedError(f"it claims {claimed} {part} examples, but its shard has {dealt.get(part, 0)}")
        if part == "train" and 0 < self._most < claimed:
            raise DroppedError(f"it claims {claimed} train examples, but algorithm.most_examples is {self._most}")
        enrolment = self._enrolled.learners.get(learner)
        if enrolment is not None and enrolment.examples and claimed > enrolment.examples:
            raise DroppedError(f"it claims {claimed} {part} examples, but is enrolled with {enrolment.examples}")

    def check_update(self, update: Update) -> None:
        """Check the examples of an update and of its test. Raises DroppedError."""
        self.check(update.learner, "train", update.examples)
        if update.tested:
            self.check(update.learner, "test", update.tested.examples)

    def check_ballot(self, ballot: Ballot) -> None:
        """Check the examples of a ballot's scores. Raises DroppedError."""
        for scores in (ballot.current, ballot.proposed):
            self._check_scores(ballot.learner, scores)

    def _check_scores(self, learner: str, scores: Scores) -> None:
        for part, tested in (("vote", scores.vote), ("test", scores.test)):
            if tested:
                self.check(learner, part, tested.examples)
