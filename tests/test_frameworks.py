"""The late import of the frameworks."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
from fedpipe.frameworks import frameworks

_, keras = frameworks()
assert "sklearn" not in sys.modules and "scipy.stats" not in sys.modules
import sklearn.base  # the user's model.py may need it
assert sklearn.base.BaseEstimator in type("Own", (sklearn.base.BaseEstimator,), {}).__mro__
assert keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).count_params() == 3
"""


def test_keras_is_imported_without_scikit_learn_which_stays_usable() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_package_that_is_imported_already_stays() -> None:
    import json

    from fedpipe.frameworks import hidden

    with hidden("json"):
        assert sys.modules["json"] is json
    assert sys.modules["json"] is json
