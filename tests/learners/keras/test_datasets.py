from __future__ import annotations

import numpy as np
import pytest

from fedpipe.errors import DataError
from fedpipe.federation.training import Training
from fedpipe.frameworks import frameworks
from fedpipe.learners.check import built_model
from fedpipe.learners.keras.datasets import singles_of
from fedpipe.learners.parts import as_examples, batches_of, label_shape_of, size_of
from fedpipe.learners.reading import own_parts, parts_of
from fedpipe.learners.user_code import load_code
from fedpipe.store.objects import digest_of
from tests.federations import make_federation
from tests.learners.contract import PART, X, Y
from tests.models import DENSE

LOAD = """
def load(uri):
    import numpy as np, tensorflow as tf
    return tf.data.Dataset.from_tensor_slices((np.ones((30, 4), 'float32'), np.zeros(30)))
"""


def test_a_dataset_of_a_learner_is_split_trained_on_and_tested() -> None:
    federation = make_federation(learners=[{"name": "a", "data": "x"}, {"name": "b"}])
    parts = own_parts(federation, "a", load_code(LOAD.encode(), digest_of(LOAD.encode())))
    assert {name: size_of(part) for name, part in parts.items()} == {"train": 24, "vote": 3, "test": 3}
    model, training = built_model(federation, DENSE), Training(rounds=1, batch_size=8)
    start = model.initial_weights(0)
    assert model.train(start, parts["train"], training, seed=1, seconds=60, optimizer=None).steps == 3
    assert model.evaluate(start, parts["test"], training).metrics.keys() == {"loss", "accuracy"}


def test_its_examples_as_arrays() -> None:
    part = parts_of({"train": singles_of(PART)}, make_federation(), "a")["train"]
    found = as_examples(part)
    np.testing.assert_array_equal(found.x, X)
    np.testing.assert_array_equal(found.y, Y)
    assert [batch.count for batch in batches_of(part, 25)] == [25, 25, 10]
    assert label_shape_of(part) == ()


def test_arrays_are_taken_too() -> None:
    assert size_of(parts_of({"train": (X, Y)}, make_federation(), "a")["train"]) == 60
    with pytest.raises(DataError, match=r"is int, not \(x, y\) or \(x, y, weights\) or a tf.data.Dataset"):
        parts_of(3, make_federation(), "a")


def test_a_dataset_of_unknown_length() -> None:
    tensorflow, _ = frameworks()
    endless = tensorflow.data.Dataset.from_tensor_slices((X, Y)).filter(lambda x, y: True)
    with pytest.raises(DataError, match="an unknown length"):
        parts_of(endless, make_federation(), "a")
