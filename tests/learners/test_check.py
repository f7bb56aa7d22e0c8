from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedpipe.data.examples import Examples
from fedpipe.data.schema import Column, Schema
from fedpipe.errors import DataError, ModelError
from fedpipe.federation.federation import Federation
from fedpipe.learners.check import check_model, check_own_data, weight_shapes
from tests.federations import make_federation
from tests.learners.contract import PART, X
from tests.models import LINEAR


def federation(**more: Any) -> Federation:
    return make_federation(framework="numpy", **more)


def test_a_model_that_fits_is_described() -> None:
    chosen = federation(algorithm={"name": "collective"}, export={"classes": ["x", "y", "z"]})
    assert check_model(chosen, LINEAR, PART) == "15 parameters, input (None, 4), loss softmax"
    assert check_model(chosen, LINEAR, None)
    assert weight_shapes(chosen, LINEAR) == {"kernel": (4, 3), "bias": (3,)}


STOPPING = {
    "rounds": 3,
    "batch_size": 1,
    "early_stopping": {"patience": 1, "metric": "test_acuracy", "minimise": False},
}
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "classes": (
        {"export": {"classes": ["x"]}},
        r"export.classes: there are 1 class names for outputs of shape \(None, 3\)",
    ),
    "criterion": (
        {"algorithm": {"name": "collective", "vote": {"criterion": "auc", "minimise": False}}},
        "algorithm.vote.criterion: 'auc' is neither the loss nor a compiled metric. Valid: accuracy, loss",
    ),
    "early stopping": (
        {"training": STOPPING},
        "training.early_stopping.metric: 'acuracy' is neither .* Did you mean 'accuracy'?",
    ),
}


@pytest.mark.parametrize(("more", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_settings_that_do_not_fit_the_model(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_model(federation(**more), LINEAR, PART)


def test_examples_that_do_not_fit_the_model() -> None:
    with pytest.raises(ModelError, match="the labels range from 0 to 9"):
        check_model(federation(), LINEAR, Examples(X[:2], np.array([0, 9])))


def test_own_data_in_a_format_that_nobody_reads() -> None:
    chosen = federation(learners=[{"name": "a", "data": "own.npz"}, {"name": "b", "data": "own.xlsx"}])
    what = r"learners\[1\]\.data: own\.xlsx: the file has an unsupported format\. Save the sheet as CSV.*Or define load"
    with pytest.raises(DataError, match=what):
        check_own_data(chosen, LINEAR)
    check_own_data(chosen, f"{LINEAR}\ndef load(uri):\n    return None\n")


PLAIN = """
import keras

def build():
    inputs = keras.Input((2,))
    outputs = keras.layers.Dense(2, activation="softmax")({first}(inputs))
    model = keras.Model(inputs, outputs)
    model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy")
    return model
"""


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize("first", ["keras.layers.Identity()", "keras.ops.nan_to_num"])
def test_missing_numbers_need_a_model_that_takes_them(first: str, missing: bool) -> None:
    schema = Schema(columns=(Column(name="age", kind="number"), Column(name="dose", kind="number", missing=missing)))
    table = Examples(np.ones((4, 2), np.float32), np.arange(4) % 2)
    chosen, code = (
        make_federation(framework="keras", data={"uri": "t.csv", "features": "auto"}),
        PLAIN.format(first=first),
    )
    if "Identity" in first and missing:
        with pytest.raises(ModelError, match=r"the column 'dose' has missing values, .* Use table\.encoded"):
            check_model(chosen, code, table, schema)
    else:
        assert check_model(chosen, code, table, schema)
