"""Measures the time of a step until its first useful act."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT, Row, at_most, quiet, repeated

# `fedpipe step aggregate` against a store that answers nothing: the process ends at its first store call.
_CORE = (
    "import sys, os; import fedpipe.store.s3 as m; "
    "m.MinioStore.read = lambda *a, **k: os._exit(0); "
    "from fedpipe.__main__ import main; sys.exit(main())"
)
_KERAS = """
import sys, time, os
started = time.perf_counter()
from fedpipe.store.objects import digest_of
from fedpipe.data.examples import Examples
from fedpipe.frameworks import frameworks
from fedpipe.learners.keras.datasets import singles_of
from fedpipe.learners.keras.model import KerasModel
import numpy as np
code = open(sys.argv[1], "rb").read()
tensorflow, keras = frameworks()
model = KerasModel(code, digest_of(code), "build")
class First(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        print(time.perf_counter() - started, flush=True)
        os._exit(0)
model.reset(1)
examples = Examples(np.zeros((320, 8, 8, 1), "float32"), np.zeros(320))
model.keras.fit(singles_of(examples).shuffle(320, seed=1).batch(16), verbose=0, callbacks=[First()])
"""


def _run(*arguments: str) -> None:
    environment = {**quiet(), "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    subprocess.run(
        [sys.executable, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def run() -> list[Row]:
    """Process start to the first store call, and to the first batch."""
    place = {
        "store": "s3://bench?endpoint=http://127.0.0.1:9",
        "federation": "f",
        "run": "r",
        "plan": "sha256:" + "0" * 64,
    }
    values = {"place": place, "round": 1, "base": "b", "updates": []}
    with tempfile.TemporaryDirectory() as folder:
        executor_input = json.dumps({"inputs": {"parameterValues": values}, "outputs": {"outputFile": f"{folder}/o"}})
        core, bare = repeated(
            lambda: _run("-c", _CORE, "step", "aggregate", executor_input),
            lambda: _run("-c", "import numpy, minio, os; os._exit(0)"),
            repeats=9,
        )
    model = str(ROOT / "src/fedpipe/templates/model.py")
    assert Path(model).exists()
    keras, tensorflow = repeated(
        lambda: _run("-c", _KERAS, model), lambda: _run("-c", "import tensorflow, os; os._exit(0)")
    )
    beside, more = f"import tensorflow {tensorflow:.3f} s", keras - tensorflow
    return [
        at_most("core step to its first store call", core, bare, "import numpy, minio", 1.25),
        Row("Keras step to its first batch", f"{keras:.3f} s", beside, round(more, 3), "<= 0.3 s more", more <= 0.3),
    ]
