from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpipe.data.examples import Examples
from fedpipe.errors import DataError
from fedpipe.learners.own_data import check_own_parts, few_of, is_here
from tests.federations import make_federation
from tests.models import LINEAR

RNG = np.random.default_rng(0)


def checked(folder: Path, content: dict[str, Any] | bytes | None, code: str = LINEAR) -> str:
    file = folder / "a.npz"
    if isinstance(content, dict):
        np.savez(file, **content)
    elif content is not None:
        file.write_bytes(content)
    learners = [{"name": "north", "data": str(file)}, {"name": "south", "data": "/nowhere/else/b.npz"}]
    training = {"rounds": 1, "batch_size": 8}
    (one, other) = check_own_parts(make_federation(framework="numpy", learners=learners, training=training), code)
    assert other[0] == "south"
    assert other[1].startswith("not read: there is no such dataset")
    return one[1]


GOOD = {"x": RNG.normal(size=(20, 4)), "y": np.tile([0, 1], 10)}


def test_sizes_of_what_can_be_read(tmp_path: Path) -> None:
    assert checked(tmp_path, GOOD) == "16 train, 2 vote, 2 test"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such dataset"),
        (b"PK and nonsense", "the dataset cannot be read"),
        ({"x": np.zeros((0, 4)), "y": np.zeros(0, int)}, "the dataset is empty"),
        ({"x": GOOD["x"][:6], "y": GOOD["y"][:6]}, "there are 5 train examples, fewer than a batch of 8"),
        ({"x": GOOD["x"][:, :3], "y": GOOD["y"]}, r"the features have shape \(3,\), but the model takes \(4,\)"),
        ({"x": GOOD["x"], "y": GOOD["y"] + 5}, "the labels range from 5 to 6"),
        ({"x": GOOD["x"]}, "there is no array 'y'"),
    ],
    ids=["missing", "garbage", "empty", "few", "columns", "labels", "no labels"],
)
def test_mistakes_name_the_learner(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        checked(tmp_path, content)
    assert refused.value.where == "learners[0].data, north"


def test_the_users_own_load(tmp_path: Path) -> None:
    code = LINEAR + "\ndef load(uri):\n    raise ValueError('the table has no rows')\n"
    with pytest.raises(DataError, match="fails, because ValueError: the table has no rows"):
        checked(tmp_path, GOOD, code)


def test_where_data_would_lie(tmp_path: Path) -> None:
    assert is_here(str(tmp_path / "missing.npz"))
    assert is_here(f"file://{tmp_path}/missing.npz")
    assert not is_here("/nowhere/at/all.npz")
    assert not is_here("s3://bucket/a.npz")


def test_a_few_examples_have_the_extreme_labels() -> None:
    y = np.ones(500)
    y[400], y[450] = -3, 9
    found = few_of(Examples(np.arange(500), y))
    assert (found.y.min(), found.y.max(), found.count) == (-3, 9, 32)  # type: ignore[union-attr]
