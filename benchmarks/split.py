"""Split learning of the digits through MinIO: batches a second, and the share of the time in which a party waits."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Row, at_least, median, quiet
from benchmarks.session import stores

FEDPIPE = str(Path(sys.executable).parent / "fedpipe")
ROUNDS, EPOCHS, TRAINED, BATCH = 4, 5, 1437, 32
BATCHES = ROUNDS * EPOCHS * -(-TRAINED // BATCH)
REPEATS = 3


def run() -> list[Row]:
    """The rows: exact on a folder and on MinIO, and two batches ahead."""
    rows = []
    with stores() as uris:
        for kind, ahead in (("folder", 0), ("MinIO", 0), ("MinIO", 2)):
            found = [_measured(uris[kind], f"digits-{ahead}-{number}", ahead) for number in range(REPEATS)]
            rate, share = (median(list(values)) for values in zip(*found, strict=True))
            what = f"split learning of the digits, {kind}" + (f", {ahead} batches ahead" if ahead else "")
            rows.append(at_least(what, rate, 20.0, "goal", 1.0, "batches/s"))
            note = "of the time of the party with features"
            rows.append(Row("the same: time awaiting parcels", f"{share:.0%}", note, round(share, 3), "stated", True))
    return rows


def _measured(uri: str, name: str, ahead: int) -> tuple[float, float]:
    """Batches a second of a whole run, and alice's share of waiting."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [FEDPIPE, "init", folder, "--force", "--algorithm", "split"], check=True, capture_output=True, env=quiet()
        )
        file = Path(folder) / "federation.yaml"
        text = file.read_text().replace("label_party: bob", f"label_party: bob\n  ahead: {ahead}")
        file.write_text(text.replace("name: split-digits", f"name: {name}"))
        command = [FEDPIPE, "run", str(file), "--store", uri, "--out", f"{folder}/out"]
        subprocess.run(command, check=True, capture_output=True, env=quiet())
        traffic = json.loads((Path(folder) / "out" / "summary.json").read_text())["traffic"]["alice"]
    seconds = traffic["computing"] + traffic["waiting"]
    return BATCHES / seconds, traffic["waiting"] / seconds
