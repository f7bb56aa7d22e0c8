"""Copies what a run has left in the store to a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedpipe.rounds.plan import RunPlace
from fedpipe.store import keys
from fedpipe.store.files import write_whole


def fetch_results(place: RunPlace, folder: Path) -> dict[str, Any]:
    """Copies a run's summary, report and model from the store to a folder, and returns the summary.

    The folder has no model afterwards if the run has none.

    Raises:
        InputError: a file cannot be written. The results are still in the store.
    """
    store = place.open()
    summary: dict[str, Any] = json.loads(store.read(keys.summary(place.run)).data)
    write_whole(folder / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    write_whole(folder / "report.html", store.read(keys.report(place.run)).data)
    if summary["onnx"]:
        store.download(summary["onnx"]["path"], folder / "model.onnx")
    else:
        (folder / "model.onnx").unlink(missing_ok=True)  # of an earlier run with the same folder
    return summary
