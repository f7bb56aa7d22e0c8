"""Clients' examples as TFF takes them: a tf.data.Dataset of batches `OrderedDict(x, y)` for each."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from fedpipe.data.examples import Examples
from fedpipe.data.parts import get_parts, get_shard
from fedpipe.errors import DataError, NotFoundError
from fedpipe.federation.preprocessing import applied, parse
from fedpipe.federation.training import Training
from fedpipe.frameworks import frameworks
from fedpipe.learners.keras.datasets import singles_of
from fedpipe.learners.keras.training import WIDER
from fedpipe.learners.parts import Part, as_examples, size_of
from fedpipe.rounds.history import read_record
from fedpipe.rounds.plan import RunPlace, read_plan
from fedpipe.tff.runtime import federated


class Client:
    """A client's examples; their datasets are made once, for TensorFlow traces each function anew.

    Args:
        part: arrays, or a tf.data.Dataset of single (x, y).
    """

    def __init__(self, part: Part) -> None:
        self.part = part

    @functools.cached_property
    def singles(self) -> Any:
        """A dataset of single `OrderedDict(x, y)`."""
        if not isinstance(self.part, Examples):
            return singles_of(self.part).map(_named)
        tensorflow, _ = frameworks()
        return tensorflow.data.Dataset.from_tensor_slices(_named(*self.part))


def train_batches(client: Client, training: Training, seed: int, module: ModuleType) -> Any:
    """What a client trains on in a round: the same batches in the same order as a Keras learner.

    Args:
        client: who trains.
        training: epochs or steps, and the size of a batch.
        seed: of the order.
        module: model.py, whose functions the preprocessing may name.

    Raises:
        DataError: preprocessing gives other forms than the examples have.
    """
    if training.preprocessing:
        return _preprocessed(client.part, training, seed, module)
    dataset = client.singles
    if isinstance(client.part, Examples) and training.fit.get("shuffle", True):
        dataset = dataset.shuffle(len(client.part.y), seed=seed)
    if training.local_steps:
        return dataset.repeat().batch(training.batch_size).take(training.local_steps)
    return dataset.batch(training.batch_size).repeat(training.local_epochs)


def _preprocessed(part: Any, training: Training, seed: int, module: ModuleType) -> Any:
    singles = singles_of(part)
    made = applied(parse(training.preprocessing), singles, module, batch_size=training.batch_size, seed=seed)
    for what, before, after in zip(("features", "labels"), singles.element_spec, made.element_spec, strict=True):
        if (after.dtype, after.shape[1:]) != (before.dtype, before.shape):
            raise DataError(
                f"preprocessing makes {what} of {before.dtype.name}{before.shape.as_list()} into "
                f"{after.dtype.name}{after.shape[1:].as_list()}",
                where="training.preprocessing",
                remedy="Let `map` keep the form; what every example needs belongs into the model.",
            )
    return made.map(_named)


def client_data(place: RunPlace, part: str = "train") -> Any:
    """The shards of a run as a `tff.simulation.datasets.ClientData` keyed by learner, for scripts of one's own.

    Args:
        place: where the run is.
        part: `train`, `vote` or `test`.

    Raises:
        NotFoundError: there is no such run, or no learner has such a part.
    """
    store = place.open()
    begun = read_record(store, place.run, 0)
    if begun is None:
        raise NotFoundError(f"there is no run {place.run!r}", where=store.uri)
    shards = read_plan(store, begun.plan).shards
    found = {name: get_parts(store, get_shard(store, name, digest).data, name) for name, digest in shards.items()}
    columns = {name: OrderedDict(parts[part]._asdict()) for name, parts in found.items() if part in parts}
    if not columns:
        raise NotFoundError(f"no learner has a part {part!r}", where=store.uri, remedy="Parts: train, vote, test.")
    return federated().simulation.datasets.TestClientData(columns)


def whole_batch(client: Client) -> Any:
    """All examples as one batch: what federated SGD takes the gradient of."""
    return client.singles.batch(max(1, size_of(client.part)))


def test_batches(parts: list[Any], size: int) -> Any:
    """What a client tests with: these parts, one after another."""
    datasets = [Client(part).singles for part in parts]
    whole = datasets[0]
    for dataset in datasets[1:]:
        whole = whole.concatenate(dataset)
    return whole.batch(size * WIDER)


def _named(x: Any, y: Any) -> OrderedDict[str, Any]:
    return OrderedDict(x=x, y=y)


def first_examples(parts: Mapping[str, Any], learner: str) -> Examples:
    """A few examples of a learner, to know shapes and dtypes by. Raises DataError."""
    part = next((p for p in parts.values() if size_of(p)), None)
    if part is None:
        raise DataError(f"{learner} has no examples")
    return Examples(part.x[:2], part.y[:2]) if isinstance(part, Examples) else as_examples(part.take(2))


def check_alike(first: Examples, other: Examples, names: tuple[str, str]) -> None:
    """Checks that two learners' examples have the same form. Raises DataError with both."""
    for what, a, b in (("features", first.x, other.x), ("labels", first.y, other.y)):
        if (a.dtype, a.shape[1:]) != (b.dtype, b.shape[1:]):
            raise DataError(
                f"the {what} of {names[0]} are {a.dtype}{list(a.shape[1:])}, those of {names[1]} {b.dtype}"
                f"{list(b.shape[1:])}",
                remedy="Simulated clients need the same form: convert one of them.",
            )
