"""Accuracy of the digits under attack, with fedpipe's rules and with Flower's: writes `benchmarks/attacks.md`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attacks import ATTACKS, HOSTILE, LEARNERS, ROUNDS, SHARDS, Arrays, Rule, accuracy, dealt, saved
from benchmarks.measure import Row, script
from fedpipe.aggregation import combine_arrays, make_rule, make_server_step
from fedpipe.aggregation.optimizers import State
from fedpipe.federation.optimizers import OptimizerSettings, Sgd
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
WITH_MOMENTUM = f"{GUARDED}, momentum"
MOMENTUM = Sgd(learning_rate=1.0, momentum=0.9)
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


def _rules() -> dict[str, Callable[[], Rule]]:
    """Makes the rules; each simulation makes its own, as momentum remembers earlier rounds."""
    plain = {name: partial(ours, *settings) for name, settings in RULES.items()}
    return plain | {
        "mean, momentum": lambda: moved(ours(*RULES["mean"]), MOMENTUM),
        WITH_MOMENTUM: lambda: moved(ours(*RULES[GUARDED]), MOMENTUM),
        "mean of the honest, momentum": lambda: moved(_of_the_honest, MOMENTUM),
    }


_HEAD = """# Accuracy under attack

Ten learners, two of them hostile, softmax regression on the digits, {rounds} rounds. `mean` is without its guards. Flower's rules get
the updates of the same simulation. Momentum is the server optimizer `sgd` with `momentum: 0.9`. `mean of the honest` knows who is
hostile, and shows what their absence costs. `benchmarks/attacks.py` describes the attacks; `python -m benchmarks robustness` writes this page.
Percent of the test set.
"""


def ours(settings: Any, before: Sequence[Any] = ()) -> Rule:
    """Returns a rule over updates that are held in memory; all learners weigh the same."""
    rule = make_rule(settings, before)

    def combined(updates: list[Arrays], base: Arrays) -> Arrays:
        return combine_arrays(updates, [1.0] * len(updates), rule=rule, base=base)

    return combined


def moved(rule: Rule, settings: OptimizerSettings) -> Rule:
    """Returns a rule whose result a server optimizer follows, without momentum yet."""
    step, states, rounds = make_server_step(settings), dict[str, State](), count(1)

    def follow(updates: list[Arrays], base: Arrays) -> Arrays:
        aggregate, number, result = rule(updates, base), next(rounds), dict[str, Any]()
        for name, value in base.items():
            state = states.get(name) or {slot: np.zeros(value.shape) for slot in step.slots}
            after, states[name] = step.step(value.astype("f8"), aggregate[name].astype("f8"), state, number)
            result[name] = after.astype(value.dtype)
        return result

    return follow


def _of_the_honest(updates: list[Arrays], base: Arrays) -> Arrays:
    """Averages the last eight updates: what an oracle that knows the hostile learners would do."""
    return ours(*RULES["mean"])(updates[-(LEARNERS - HOSTILE) :], base)


def run() -> list[Row]:
    """Points of accuracy that the guarded rule loses to the same without an attack."""
    rows, pages = [], [_HEAD.format(rounds=ROUNDS)]
    for name, alpha in SHARDS.items():
        data = dealt(alpha)
        table = {
            rule: {attack: accuracy(make(), data, attack) for attack in ATTACKS} for rule, make in _rules().items()
        }
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.npz"
            saved(data, path)
            table |= script("bench", "peers/attacks_flower.py", path)
        pages += [f"## {name}: {', '.join(str(len(y)) for _, y in data.shards)} examples\n", _table(table)]
        found = table[WITH_MOMENTUM]
        rows += [_row(name, attack, found["none"], found[attack]) for attack in ATTACKS[1:]]
    PAGE.write_text("\n".join(pages))
    return rows


def _row(shards: str, attack: str, best: float, found: float) -> Row:
    lost = 100 * (best - found)
    return Row(
        f"{WITH_MOMENTUM}; {shards}, {attack}", f"{100 * found:.1f} %", f"unattacked {100 * best:.1f} %", round(lost, 1),
        "<= 3 points lost", lost <= 3.0,
    )  # fmt: skip


def _table(table: Mapping[str, Mapping[str, float]]) -> str:
    lines = [f"| rule | {' | '.join(ATTACKS)} |", "| --- |" + " --- |" * len(ATTACKS)]
    for rule, found in table.items():
        lines.append(f"| {rule} | {' | '.join(f'{100 * found[attack]:.1f}' for attack in ATTACKS)} |")
    return "\n".join(lines) + "\n"
