"""The parties of a split network in a round: exact SGD, whose batches cross the store.

    a party with features         the label party
    a = bottom(x), sends a   ->   awaits every a
                                  loss = top(a..., y), a step of top
    awaits g                 <-   sends g = dloss/da to each
    a step of bottom with g

With `ahead`, it sends the activations of so many more batches before it awaits g. Their weights lack as many steps, so
the exchange is no longer exact (delayed gradients).

The order of the rows in a round follows from the seed, so all parties have the same batches. A party that was killed
begins the round again. It makes the same parcels, finds its own and the others' from before, and catches up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from fedpipe.data.shards import Indices, steady_order
from fedpipe.errors import DroppedError
from fedpipe.federation.federation import Federation
from fedpipe.learners.cut import TOP, Bottom, Top, bottom_name, joined, part_of
from fedpipe.learners.framework import Arrays, seed_of
from fedpipe.learners.own_rows import SAME_ROWS
from fedpipe.learners.party import Held, Parts, test_batches
from fedpipe.rounds.manifests import Tested, bounded
from fedpipe.rounds.parcels import Kind
from fedpipe.sessions.exchange import Conversation, numbers
from fedpipe.weights import Array


class Result(NamedTuple):
    """A party's result of a round: weights and optimizer states of its parts, its metrics, and its test."""

    weights: Arrays
    optimizer: Arrays
    examples: int
    metrics: dict[str, float]
    tested: Tested | None = None


Playing = Generator[float, None, Result]


class Round(NamedTuple):
    """The state with which a party begins a round.

    Args:
        federation: with the parties and the training.
        number: the round.
        start: weights of its parts.
        optimizer: states of its optimizers; None for fresh ones.
    """

    federation: Federation
    number: int
    start: Arrays
    optimizer: Arrays | None = None

    def batches(self, rows: Indices) -> Iterator[tuple[int, Indices]]:
        """Yield the batches of all epochs: their numbers, and the places of their rows."""
        training, count = self.federation.training, 0
        for epoch in range(training.local_epochs):
            order = rows[steady_order(len(rows), [training.seed, 3, self.number, epoch])]
            for first in range(0, len(rows), training.batch_size):
                yield count, order[first : first + training.batch_size]
                count += 1

    def begin(self, part: Bottom | Top, name: str, party: str) -> None:
        """Give a part its weights, its optimizer and its seed for this round."""
        training = self.federation.training
        state = None if self.optimizer is None else part_of(self.optimizer, name)
        seed, rate = seed_of(training.seed, party, name, self.number), training.at(self.number).learning_rate
        part.begin(part_of(self.start, name), state, seed=seed, rate=rate)


class Play:
    """A party in one attempt at a round.

    Args:
        talk: with the other parties.
        round: the state with which it begins.
        party: its name.
        held: its rows.
        parts: its parts of the network.
    """

    def __init__(self, talk: Conversation, round: Round, party: str, held: Held, parts: Parts) -> None:
        self._talk, self._round, self._party, self._held = talk, round, party, held
        self._bottom, self._top = parts
        self._federation = round.federation
        cut = self._federation.split
        assert cut is not None
        self._labels, self._ahead = cut.label_party, cut.ahead

    def run(self) -> Playing:
        """Play the round; yield seconds to wait.

        Raises:
            DroppedError: why the party cannot continue, or why another cannot.
        """
        features = [name for name in self._federation.feature_parties if name != self._party]
        yield from self._talk.meet(features if self._party == self._labels else [self._labels])
        if self._bottom is not None:
            self._round.begin(self._bottom, bottom_name(self._party), self._party)
        if self._party != self._labels:
            return (yield from self._follow())
        return (yield from self._lead())

    def _follow(self) -> Playing:
        """Send activations, and take a step from each gradient."""
        assert self._bottom is not None
        self._talk.send_as_is("rows", 0, self._labels, _agreement(self._held))
        yield from self._talk.receive_as_is("rows", 0, self._labels, _form())
        for number, rows in self._tests():
            self._talk.send("test", number, self._labels, self._bottom.infer(self._features(rows)))
        sent = deque[tuple[int, Indices]]()
        for number, rows in self._round.batches(self._held.parts["train"]):
            self._talk.send("activations", number, self._labels, self._bottom.forward(self._features(rows)))
            sent.append((number, rows))
            if len(sent) > self._ahead:
                yield from self._moved(self._bottom, *sent.popleft())
        for number, rows in sent:
            yield from self._moved(self._bottom, number, rows)
        return self._result(bounded(self._bottom.metrics()), None)

    def _moved(self, bottom: Bottom, number: int, rows: Indices) -> Generator[float, None, None]:
        """Take a step of the bottom from the gradient of a batch."""
        bottom.backward(
            (yield from self._talk.receive("gradients", number, self._labels, len(rows), bottom.output.row))
        )

    def _lead(self) -> Playing:
        """Await activations, take the steps of the top, and send gradients."""
        top, y = self._top, self._held.y
        assert top is not None and y is not None  # noqa: PT018  (for the type checker)
        others = [name for name in self._federation.feature_parties if name != self._party]
        for name in others:
            _check_agreed(name, self._held, (yield from self._talk.receive_as_is("rows", 0, name, _form())))
        for name in others:
            self._talk.send_as_is("rows", 0, name, _agreement(self._held))
        tested = yield from self._tested(top, y)
        self._round.begin(top, TOP, self._party)
        for number, rows in self._round.batches(self._held.parts["train"]):
            activations = yield from self._activations("activations", number, rows)
            gradients = top.step(activations, y[rows])
            for name, gradient in zip(self._federation.feature_parties, gradients, strict=True):
                if name != self._party:
                    self._talk.send("gradients", number, name, gradient)
                elif self._bottom is not None:
                    self._bottom.backward(gradient)
        metrics = {**(self._bottom.metrics() if self._bottom is not None else {}), **top.metrics()}
        if not np.isfinite(metrics["loss"]):
            raise DroppedError(f"the loss is {metrics['loss']}", remedy="Lower the learning rate.", lasting=True)
        return self._result(bounded(metrics), tested)

    def _activations(self, kind: Kind, number: int, rows: Indices) -> Generator[float, None, list[Array]]:
        """Return the activations of a batch from all parties with features, in their order."""
        assert self._top is not None
        found = []
        for name, shape in zip(self._federation.feature_parties, self._top.inputs_in_order, strict=True):
            if name != self._party:
                found.append((yield from self._talk.receive(kind, number, name, len(rows), shape.row)))
            else:
                assert self._bottom is not None
                act = self._bottom.forward if kind == "activations" else self._bottom.infer
                found.append(act(self._features(rows)))
        return found

    def _tested(self, top: Top, y: Array) -> Generator[float, None, Tested | None]:
        """Return the test of the weights that the round begins with, on the held-out rows of all parties."""
        batches = []
        for number, rows in self._tests():
            batches.append((yield from self._activations("test", number, rows)))
        if not batches:
            return None
        held_out = self._held.parts["test"]
        whole = [np.concatenate(each) for each in zip(*batches, strict=True)]
        found = top.test(part_of(self._round.start, TOP), whole, y[held_out])
        return Tested(examples=len(held_out), metrics=bounded(found))

    def _tests(self) -> Iterator[tuple[int, Indices]]:
        wanted = self._federation.evaluation.every_round
        return test_batches(self._federation, self._held.parts["test"]) if wanted else iter(())

    def _features(self, rows: Indices) -> Array:
        assert self._held.x is not None
        return self._held.x[rows]

    def _result(self, metrics: dict[str, float], tested: Tested | None) -> Result:
        own: dict[str, Bottom | Top] = {}
        if self._bottom is not None:
            own[bottom_name(self._party)] = self._bottom
        if self._top is not None:
            own[TOP] = self._top
        return Result(
            joined({name: part.weights() for name, part in own.items()}),
            joined({name: part.optimizer_state() for name, part in own.items()}),
            len(self._held.parts["train"]), metrics, tested,
        )  # fmt: skip


def _agreement(held: Held) -> dict[str, Array]:
    """Return what parties compare before they exchange batches: the number of rows, and the digest of their order."""
    return {"rows": numbers(sum(map(len, held.parts.values()))), "order": np.frombuffer(held.order, np.uint8)}


def _form() -> dict[str, Array]:
    return {"rows": numbers(0), "order": np.zeros(32, np.uint8)}


def _check_agreed(name: str, held: Held, found: Mapping[str, Array]) -> None:
    """Check that another party has as many rows in the same order. Raises DroppedError."""
    mine = _agreement(held)
    if not np.array_equal(found["rows"], mine["rows"]):
        raise DroppedError(
            f"{name} has {found['rows'][0]} rows, but the label party has {mine['rows'][0]}",
            remedy=SAME_ROWS,
            lasting=True,
        )
    if not np.array_equal(found["order"], mine["order"]):
        raise DroppedError(
            f"the ids of {name} are not those of the label party, in the same order",
            remedy=SAME_ROWS,
            lasting=True,
        )
