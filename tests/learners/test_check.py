from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedpipe.data.examples import Examples
from fedpipe.data.schema import Column, Schema
from fedpipe.errors import DataError, InputError, ModelError
from fedpipe.federation.federation import Federation
from fedpipe.learners.check import check_bound, check_model, check_own_data, weight_shapes
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


START = {"w": np.zeros(4, np.float32), "steps": np.int64(0)}


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ([1, 1, 1, 0], {"bound": 0.5}, "bound: 0.5 clips 3 of the 3 values that one batch changes, by up to 1"),
        ([3, 1, 1, 0], {"bound": {"quantile": 0.99, "initial": 0.5}}, "bound.initial: 0.5 clips 3 of .* up to 3"),
        ([1, 1, 1, 0], {"bound": 1.0}, ""),
        ([9, 9, 1, 1], {"bound": 2.0}, ""),  # half of them: later rounds may change less
        ([1, 1, 1, 1], {"bound": 0.5, "most_clipped": 1.0}, ""),
        ([1, 1, 1, 1], {"bound": 0.5, "norm": 1.0}, ""),  # the learner halves such an update
        ([0, 0, 0, 0], {"bound": 1e-12}, ""),
    ],
)
def test_a_bound_of_secure_sums_holds_most_of_one_batch(
    change: list[float], settings: dict[str, Any], message: str
) -> None:
    trained = {"w": np.array(change, np.float32), "steps": np.int64(10**6)}
    secure = federation(
        algorithm={"name": "averaging", "secure": settings},
        training={"rounds": 1, "batch_size": 1, "rounds_per_step": "all"},
    ).secure
    assert secure
    if not message:
        check_bound(secure, START, trained)
        return
    with pytest.raises(InputError, match=message):
        check_bound(secure, START, trained)
