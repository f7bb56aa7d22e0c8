"""The work of a learner in a round, with a model of any framework."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol

from fedpipe.errors import DroppedError
from fedpipe.federation.federation import Federation
from fedpipe.federation.training import Export, Privacy
from fedpipe.learners.check import check_criterion
from fedpipe.learners.framework import Arrays, Model, Preparing
from fedpipe.learners.methods import Begun, train
from fedpipe.learners.parts import Part, size_of
from fedpipe.learners.personal import NOTHING, Kept, completed
from fedpipe.rounds.accounting import TrainingEvent
from fedpipe.rounds.budget import training_event
from fedpipe.rounds.manifests import Scores, Tested, bounded
from fedpipe.rounds.steps import steps_of
from fedpipe.rounds.voting import approves
from fedpipe.weights import Array

log = logging.getLogger("fedpipe")


class Trained(NamedTuple):
    """The result of a training: new weights, the number of examples, metrics of the last epoch, optimizer state.

    `event` is the privacy event; None when the training was not private. `kept` stays at the learner.
    """

    weights: Arrays
    examples: int
    metrics: dict[str, float]
    optimizer: Arrays | None = None
    event: TrainingEvent | None = None
    kept: Kept = NOTHING


class Verdict(NamedTuple):
    """A learner's verdict on proposed weights: their scores, and a yes when they are strictly better."""

    scores: Scores
    approve: bool


class Learner(Protocol):
    """A data owner with its current weights, which only `accept_weights` changes."""

    @property
    def planned(self) -> TrainingEvent | None:
        """The privacy event of one proposal; None for a learner that trains without differential privacy."""

    def accept_weights(self, weights: Arrays, scores: Scores | None = None) -> Scores:
        """Adopt these weights as the current ones, and score them.

        Args:
            weights: those of the shared model.
            scores: scores of these weights, if they are known or not needed; then nothing is measured.

        Returns:
            Scores on the vote and the test part.
        """

    def propose_weights(self, *, seed: int, seconds: float, optimizer: Arrays | None) -> Trained:
        """Train from the current weights on the train part, without changing the current weights.

        Args:
            seed: of shuffling and dropout; equal seeds give equal weights.
            seconds: the time after which the learner is too late.
            optimizer: the state after this learner's last accepted update; None for a fresh one.

        Raises:
            DroppedError: the reason why this learner cannot take part.
        """

    def test_weights(self, weights: Arrays) -> Verdict:
        """Score proposed weights and compare them with the current ones, without adopting them."""

    def current_model(self, form: Literal["weights", "onnx"] = "weights") -> Arrays | bytes:
        """Return the current model: its weights by name, or as ONNX bytes."""


class ModelLearner:
    """A learner that trains, scores and votes with a model of any framework, on its own parts.

    Args:
        model: the built model.
        federation: the settings of the training and the vote.
        parts: train, vote and test part.
        label: prefix of log lines.
        on_epochs: takes the metrics of all epochs after the training.
        privacy: settings of a model that trains with differential privacy. The metrics of its training are exact, so
            they are neither logged nor published.
        kept: weights that stay at this learner, from its last update that counted.
        control: SCAFFOLD's common control variate.
    """

    def __init__(
        self, model: Model, federation: Federation, parts: Mapping[str, Part], *, label: str = "",
        on_epochs: Callable[[list[dict[str, float]]], None] | None = None, privacy: Privacy | None = None,
        kept: Kept = NOTHING, control: Mapping[str, Array] | None = None,
    ) -> None:  # fmt: skip
        self._model, self._federation, self._parts = completed(model, kept), federation, parts
        self._kept, self._control = kept, dict(control or {})
        self._label, self._on_epochs, self._privacy = label, on_epochs, privacy
        self._current: Arrays = {}
        self._scores = Scores()

    def prepare(self) -> None:
        """Do before the first round what only the first one does, where the framework can."""
        if isinstance(self._model, Preparing):
            self._model.prepare(self._parts, self._federation.training)

    @property
    def planned(self) -> TrainingEvent | None:
        """See `Learner.planned`."""
        return self._event()

    def accept_weights(self, weights: Arrays, scores: Scores | None = None) -> Scores:
        """See `Learner.accept_weights`."""
        self._scores = self._score(weights) if scores is None else scores
        self._current = weights
        return self._scores

    def propose_weights(self, *, seed: int, seconds: float, optimizer: Arrays | None) -> Trained:
        """See `Learner.propose_weights`."""
        training, examples = self._federation.training, self._size("train")
        if examples < training.batch_size:
            raise DroppedError(
                f"the train part has {examples} examples, fewer than a batch of {training.batch_size}", lasting=True
            )
        if not steps_of(training, examples, private=self._privacy is not None):
            raise DroppedError(
                f"the train part makes fewer than {training.accumulate} batches, so the optimizer takes no step",
                lasting=True,
            )
        begun = Begun(self._current, self._kept, self._control, optimizer, seed, seconds)
        fitted, kept = train(self._model, self._parts["train"], training, begun)
        kept = kept._replace(residual=self._kept.residual)
        if self._privacy:
            return Trained(fitted.weights, examples, {}, fitted.optimizer, self._event(fitted.steps), kept)
        for number, metrics in enumerate(fitted.epochs, 1):
            log.info("%s epoch %d: %s", self._label, number, " ".join(f"{k} {v:.4g}" for k, v in metrics.items()))
        if self._on_epochs:
            self._on_epochs(fitted.epochs)
        return Trained(fitted.weights, examples, bounded(fitted.epochs[-1]), fitted.optimizer, kept=kept)

    def test_weights(self, weights: Arrays) -> Verdict:
        """See `Learner.test_weights`."""
        assert self._federation.vote is not None
        scores = self._score(weights)
        return Verdict(scores, approves(self._federation.vote, self._scores, scores))

    def current_model(self, form: Literal["weights", "onnx"] = "weights") -> Arrays | bytes:
        """See `Learner.current_model`."""
        if form == "weights":
            return self._current
        return self._model.convert(self._current, (self._federation.exported or Export()).opset)

    def _event(self, steps: int = 0) -> TrainingEvent | None:
        if self._privacy is None:
            return None
        return training_event(self._federation.training, self._privacy, self._size("train"), steps)

    def _size(self, part: str) -> int:
        held = self._parts.get(part)
        return 0 if held is None else size_of(held)

    def _score(self, weights: Arrays) -> Scores:
        """Return the means on the vote part, when learners vote, and on the test part."""
        size, vote, test = self._federation.training.batch_size, self._federation.vote, self._size("test")
        voted = None
        if vote is not None:
            count = self._size("vote")
            if count < size:
                raise DroppedError(f"the vote part has {count} examples, fewer than a batch of {size}", lasting=True)
            count = min(count, vote.batches * size or count)
            measured = self._measured(weights, "vote", vote.batches)
            check_criterion(vote.criterion, set(measured))
            voted = Tested(examples=count, metrics=bounded(measured))
        tested = Tested(examples=test, metrics=bounded(self._measured(weights, "test"))) if test else None
        return Scores(vote=voted, test=tested)

    def _measured(self, weights: Arrays, part: str, batches: int = 0) -> dict[str, float]:
        return self._model.evaluate(weights, self._parts[part], self._federation.training, batches).metrics
