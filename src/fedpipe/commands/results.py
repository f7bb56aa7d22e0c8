"""Copies what a run has left in the store to a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedpipe.rounds.plan import RunPlace
from fedpipe.store import keys


def fetch_results(place: RunPlace, folder: Path) -> dict[str, Any]:
    """Copies a run's summary, report and model from the store to a folder, and returns the summary.

    The folder has no model afterwards if the run has none.
    """
    store = place.open()
    summary: dict[str, Any] = json.loads(store.read(keys.summary(place.run)).data)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (folder / "report.html").write_bytes(store.read(keys.report(place.run)).data)
    if summary["onnx"]:
        store.download(summary["onnx"]["path"], folder / "model.onnx")
    else:
        (folder / "model.onnx").unlink(missing_ok=True)  # of an earlier run with the same folder
    return summary
