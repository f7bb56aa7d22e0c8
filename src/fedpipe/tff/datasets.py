"""Converts clients' examples for TFF: to a tf.data.Dataset of batches `OrderedDict(x, y)` for each client."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from fedpipe.data.disclosure import schema_of
from fedpipe.data.examples import Examples
from fedpipe.data.parts import get_shard_parts
from fedpipe.data.settling import settled
from fedpipe.data.trees import Tree, leaves
from fedpipe.errors import DataError, ModelError, NotFoundError
from fedpipe.federation.preprocessing import applied, parse
from fedpipe.federation.training import Training
from fedpipe.frameworks import frameworks
from fedpipe.learners.keras.datasets import singles_of
from fedpipe.learners.keras.training import WIDER
from fedpipe.learners.parts import Part, as_examples, size_of
from fedpipe.rounds.history import read_record
from fedpipe.rounds.plan import RunPlace, read_plan
from fedpipe.tff.inputs import Entry
from fedpipe.tff.runtime import federated


class Client:
    """Holds a client's examples; their dataset is built once, because TensorFlow would trace new functions again.

    Args:
        part: arrays, or a tf.data.Dataset of single (x, y), as `Entry.entered` returns them.
    """

    def __init__(self, part: Part) -> None:
        self.part = part

    @functools.cached_property
    def singles(self) -> Any:
        """Returns a dataset of single `OrderedDict(x, y)`."""
        if not isinstance(self.part, Examples):
            return singles_of(self.part).map(_named)
        tensorflow, _ = frameworks()
        return tensorflow.data.Dataset.from_tensor_slices(_named(self.part.x, self.part.y))


def train_batches(client: Client, training: Training, seed: int, module: ModuleType) -> Any:
    """Returns a client's batches of a round, the same in the same order as a Keras learner's.

    Args:
        client: the client.
        training: settings with epochs or steps, and the size of a batch.
        seed: seed of the order.
        module: model.py, whose functions the preprocessing may name.

    Raises:
        DataError: preprocessing changes dtypes or shapes of the examples.
    """
    if training.preprocessing:
        return _preprocess(client.singles, training, seed, module)
    dataset = client.singles
    if isinstance(client.part, Examples) and training.fit.get("shuffle", True):
        dataset = dataset.shuffle(len(client.part.y), seed=seed)
    if training.local_steps:
        return dataset.repeat().batch(training.batch_size).take(training.local_steps)
    return dataset.batch(training.batch_size).repeat(training.local_epochs)


def _preprocess(named: Any, training: Training, seed: int, module: ModuleType) -> Any:
    singles = named.map(lambda example: (example["x"], example["y"]))
    batches = applied(parse(training.preprocessing), singles, module, batch_size=training.batch_size, seed=seed)
    for what, before, after in zip(("features", "labels"), singles.element_spec, batches.element_spec, strict=True):
        if isinstance(before, Mapping):  # no function has changed them: see `check_preprocessing`
            continue
        if (after.dtype, after.shape[1:]) != (before.dtype, before.shape):
            raise DataError(
                f"preprocessing changes {what} from {before.dtype.name}{before.shape.as_list()} to "
                f"{after.dtype.name}{after.shape[1:].as_list()}",
                where="training.preprocessing",
                remedy="Keep dtype and shape in `map`, and move such changes into the model.",
            )
    return batches.map(_named)


def check_preprocessing(training: Training, entry: Entry) -> None:
    """Checks that preprocessing does not map features that are looked up beforehand. Raises ModelError."""
    steps = parse(training.preprocessing) if training.preprocessing else ()
    if entry.body is not None and any(step.name == "map" for step in steps):
        raise ModelError(
            "`map` cannot be simulated for a model of texts or of several inputs",
            where="training.preprocessing",
            remedy="Move such changes into the model. To rehearse it on this machine, use `fedpipe run`.",
        )


def client_data(place: RunPlace, part: str = "train") -> Any:
    """Returns the shards of a run as a `tff.simulation.datasets.ClientData` keyed by learner, for the user's scripts.

    Args:
        place: location of the run.
        part: `train`, `vote` or `test`.

    Raises:
        NotFoundError: there is no such run, or no learner has such a part.
    """
    store = place.open()
    start = read_record(store, place.run, 0)
    if start is None:
        raise NotFoundError(f"there is no run {place.run!r}", where=store.uri)
    plan = read_plan(store, start.plan)
    schema, classes = schema_of(store, plan), plan.federation.class_names
    held = {name: get_shard_parts(store, name, digest).get(part) for name, digest in plan.shards.items()}
    read = {name: settled(one, schema, classes, where=name) for name, one in held.items() if one is not None}
    columns = {name: _named(one.x, one.y) for name, one in read.items()}
    if not columns:
        remedy = "Choose one of: train, vote, test."
        raise NotFoundError(f"no learner has a part {part!r}", where=store.uri, remedy=remedy)
    return federated().simulation.datasets.TestClientData(columns)


def whole_batch(client: Client) -> Any:
    """Returns all examples as one batch, for the gradient of federated SGD."""
    return client.singles.batch(max(1, size_of(client.part)))


def test_batches(clients: Sequence[Client], size: int) -> Any:
    """Returns batches of the examples of these clients, one after another."""
    datasets = [client.singles for client in clients]
    combined = datasets[0]
    for dataset in datasets[1:]:
        combined = combined.concatenate(dataset)
    return combined.batch(size * WIDER)


def _named(x: Any, y: Any) -> OrderedDict[str, Any]:
    return OrderedDict(x=OrderedDict(sorted(x.items())) if isinstance(x, Mapping) else x, y=y)


def check_plain(examples: Examples, where: str | None = None) -> None:
    """Checks for what a simulation cannot use: several outputs, and sample weights. Raises DataError."""
    remedy = "To rehearse it on this machine, use `fedpipe run`."
    if isinstance(examples.y, dict) and len(examples.y) > 1:
        names = ", ".join(repr(name) for name in examples.y)
        raise DataError(f"a model with several outputs ({names}) cannot be simulated", where=where, remedy=remedy)
    if examples.weight is not None:
        raise DataError("sample weights cannot be simulated", where=where, remedy=remedy)


def first_examples(parts: Mapping[str, Any], learner: str) -> Examples:
    """Returns a few examples of a learner, for their shapes and dtypes. Raises DataError."""
    part = next((p for p in parts.values() if size_of(p)), None)
    if part is None:
        raise DataError(f"{learner} has no examples", remedy="Remove it from the federation, or give it data.")
    first = part.rows(slice(0, 2)) if isinstance(part, Examples) else as_examples(part.take(2))
    check_plain(first, learner)
    return first


def check_alike(first: Examples, other: Examples, names: tuple[str, str]) -> None:
    """Checks that two learners' examples have the same dtypes and shapes. Raises DataError with both."""
    for what, a, b in (("features", first.x, other.x), ("labels", first.y, other.y)):
        one, another = _form(a), _form(b)
        if one != another:
            raise DataError(
                f"the {what} of {names[0]} are {one}, but those of {names[1]} are {another}",
                remedy="Convert one of them: simulated clients need the same dtypes and shapes.",
            )


def form_of(examples: Examples) -> str:
    """Returns dtypes and shapes of features and labels as text."""
    return f"{_form(examples.x)}; {_form(examples.y)}"


def _form(tree: Tree) -> str:
    """Returns names, dtypes and shapes of a tree's arrays as text."""
    return ", ".join(f"{name} {leaf.dtype}{list(leaf.shape[1:])}".strip() for name, leaf in leaves(tree))
