"""Make datasets of clients' examples for TFF, with batches `OrderedDict(x, y)`."""

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
    """A client's examples; their datasets are made once, because TensorFlow traces each new function again.

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
    """Return a client's training batches of a round: the same in the same order as those of a Keras learner.

    Args:
        client: the client.
        training: epochs or steps, and the size of a batch.
        seed: of the order.
        module: model.py, whose functions the preprocessing may name.

    Raises:
        DataError: preprocessing changes the form of the examples.
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
                remedy="Let `map` keep the form, and put such changes into the model.",
            )
    return made.map(_named)


def client_data(place: RunPlace, part: str = "train") -> Any:
    """Return a run's shards as `tff.simulation.datasets.ClientData` keyed by learner, for your own scripts.

    Args:
        place: the place of the run.
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
    """Return all examples as one batch, for the gradient of federated SGD."""
    return client.singles.batch(max(1, size_of(client.part)))


def test_batches(parts: list[Any], size: int) -> Any:
    """Return a client's test batches: these parts, one after another."""
    datasets = [Client(part).singles for part in parts]
    whole = datasets[0]
    for dataset in datasets[1:]:
        whole = whole.concatenate(dataset)
    return whole.batch(size * WIDER)


def _named(x: Any, y: Any) -> OrderedDict[str, Any]:
    return OrderedDict(x=x, y=y)


def first_examples(parts: Mapping[str, Any], learner: str) -> Examples:
    """Return a few examples of a learner, for shapes and dtypes. Raises DataError."""
    part = next((p for p in parts.values() if size_of(p)), None)
    if part is None:
        raise DataError(f"{learner} has no examples")
    return Examples(part.x[:2], part.y[:2]) if isinstance(part, Examples) else as_examples(part.take(2))


def check_alike(first: Examples, other: Examples, names: tuple[str, str]) -> None:
    """Check that two learners' examples have the same form. Raises DataError with both."""
    for what, a, b in (("features", first.x, other.x), ("labels", first.y, other.y)):
        if (a.dtype, a.shape[1:]) != (b.dtype, b.shape[1:]):
            raise DataError(
                f"the {what} of {names[0]} are {a.dtype}{list(a.shape[1:])}, but those of {names[1]} {b.dtype}"
                f"{list(b.shape[1:])}",
                remedy="Convert one of them: simulated clients need the same form.",
            )
