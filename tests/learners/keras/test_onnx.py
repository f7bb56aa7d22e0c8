from __future__ import annotations

import numpy as np
import onnx

from fedpipe.learners.keras.model import KerasModel
from fedpipe.registry.export import largest_difference
from fedpipe.store.objects import digest_of
from tests.learners.contract import X
from tests.models import RICH


def test_a_model_of_several_kinds_of_layers() -> None:
    """BatchNorm and dropout as in inference, and names that do not depend on what was converted before."""
    model, again = (KerasModel(RICH.encode(), digest_of(RICH.encode()), "build") for _ in range(2))
    start = model.initial_weights(0)
    data = model.convert(start, 17)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    assert largest_difference(model.predictor(start), data, X) < 1e-5
    assert np.ptp(model.predictor(start)(X)[0]) > 0.1
    assert model.convert(start, 17) == data
    assert again.convert(start, 17) == data
