from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedpipe.errors import DataError
from fedpipe.learners.parts import Part, as_examples, batches_of, label_shape_of, size_of
from fedpipe.learners.reading import own_parts, parts_of
from fedpipe.learners.user_code import load_code
from fedpipe.store.objects import digest_of
from tests.federations import make_federation
from tests.learners.contract import PART, X, Y

FEDERATION = make_federation(("a", "b"), framework="numpy")


def own(uri: str, code: str = "") -> dict[str, Part]:
    federation = make_federation(framework="numpy", learners=[{"name": "a", "data": uri}, {"name": "b"}])
    return own_parts(federation, "a", load_code(code.encode(), digest_of(code.encode())))


def test_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=X, y=Y)
    found = own(str(tmp_path / "own.npz"))
    assert {name: size_of(part) for name, part in found.items()} == {"train": 48, "vote": 6, "test": 6}
    rows = np.concatenate([as_examples(part).x for part in found.values()])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, X))  # each example is in one part


def test_what_load_returns() -> None:
    code = "def load(uri):\n    import numpy as np\n    return np.ones((int(uri), 4)), np.zeros(int(uri))\n"
    found = own("20", code)
    assert {name: size_of(part) for name, part in found.items()} == {"train": 16, "vote": 2, "test": 2}


def test_a_load_that_fails_names_the_reason() -> None:
    with pytest.raises(DataError, match=r"load\('x'\) fails, because OSError: gone"):
        own("x", "def load(uri):\n    raise OSError('gone')\n")


def test_a_table_of_parts_is_taken_as_it_is() -> None:
    parts = parts_of({"train": (X, Y), "test": (X[:5], Y[:5])}, FEDERATION, "a")
    assert {name: size_of(part) for name, part in parts.items()} == {"train": 60, "test": 5}


@pytest.mark.parametrize(
    ("value", "message"),
    [(3, r"the data of a is int, not \(x, y\)"), ((X, Y[:5]), "60 features but 5 labels"), ((X[:0], Y[:0]), "empty")],
)
def test_what_cannot_be_used(value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parts_of(value, FEDERATION, "a")


def test_arrays_in_batches() -> None:
    assert [batch.count for batch in batches_of(PART, 25)] == [25, 25, 10]
    assert label_shape_of(PART) == ()
