"""Accuracy of the digits under attack, with fedpipe's rules and with Flower's: writes `benchmarks/attacks.md`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.attacks import ATTACKS, HOSTILE, ROUNDS, SHARDS, Arrays, Rule, accuracy, dealt, saved
from benchmarks.measure import Row, script
from fedpipe.aggregation import combine_arrays, make_rule
from fedpipe.federation.rules import (
    CenteredClip,
    Clip,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MultiKrum,
    NearestNeighbourMixing,
    TrimmedMean,
)

PAGE = Path(__file__).parent / "attacks.md"
GUARDED = "clip, mixing, trimmed_mean"
RULES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "mean": (Mean(), ()),
    "median": (Median(), ()),
    "trimmed_mean": (TrimmedMean(share=0.2), ()),
    "krum": (Krum(byzantine=HOSTILE), ()),
    "multi_krum": (MultiKrum(byzantine=HOSTILE), ()),
    "geometric_median": (GeometricMedian(), ()),
    "centered_clip": (CenteredClip(norm=1.0), ()),
    GUARDED: (TrimmedMean(share=0.2), (Clip(quantile=0.8), NearestNeighbourMixing(byzantine=HOSTILE))),
}
_HEAD = """# Accuracy under attack

Ten learners, two of them hostile, softmax regression on the digits, {rounds} rounds. `mean` is without its guards. Flower's rules get
the updates of the same simulation. `benchmarks/attacks.py` describes the attacks; `python -m benchmarks robustness` writes this page.
Percent of the test set.
"""


def ours(settings: Any, before: Sequence[Any] = ()) -> Rule:
    """Returns a rule over updates that are held in memory; all learners weigh the same."""
    rule = make_rule(settings, before)

    def combined(updates: list[Arrays], base: Arrays) -> Arrays:
        return combine_arrays(updates, [1.0] * len(updates), rule=rule, base=base)

    return combined


def run() -> list[Row]:
    """Points of accuracy that the guarded rule loses to the mean of an unattacked run."""
    rows, pages = [], [_HEAD.format(rounds=ROUNDS)]
    for name, alpha in SHARDS.items():
        data = dealt(alpha)
        table = {
            rule: {attack: accuracy(ours(*settings), data, attack) for attack in ATTACKS}
            for rule, settings in RULES.items()
        }
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.npz"
            saved(data, path)
            table |= script("bench", "peers/attacks_flower.py", path)
        pages += [f"## {name}: {', '.join(str(len(y)) for _, y in data.shards)} examples\n", _table(table)]
        best = table["mean"]["none"]
        rows += [_row(name, attack, best, table[GUARDED][attack]) for attack in ATTACKS[1:]]
    PAGE.write_text("\n".join(pages))
    return rows


def _row(shards: str, attack: str, best: float, found: float) -> Row:
    lost = 100 * (best - found)
    return Row(
        f"{GUARDED}; {shards}, {attack}", f"{100 * found:.1f} %", f"unattacked mean {100 * best:.1f} %", round(lost, 1),
        "<= 3 points lost", lost <= 3.0,
    )  # fmt: skip


def _table(table: Mapping[str, Mapping[str, float]]) -> str:
    lines = [f"| rule | {' | '.join(ATTACKS)} |", "| --- |" + " --- |" * len(ATTACKS)]
    for rule, found in table.items():
        lines.append(f"| {rule} | {' | '.join(f'{100 * found[attack]:.1f}' for attack in ATTACKS)} |")
    return "\n".join(lines) + "\n"
