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
FASTER = f"{WITH_MOMENTUM}, rate 2"
CENTERED = "centered_clip, momentum"
HONEST = "mean of the honest, momentum"
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
        FASTER: lambda: moved(ours(*RULES[GUARDED]), Sgd(learning_rate=2.0, momentum=0.9)),
        CENTERED: lambda: moved(ours(CenteredClip(norm=0.5)), MOMENTUM),
        HONEST: lambda: moved(_of_the_honest, MOMENTUM),
    }


FEW_CLASSES = 0.2
"""Concentration below which hostile learners take classes away, and the mean of the honest is the fair comparison."""
_HEAD = """# Accuracy under attack

Ten learners, two of them hostile, softmax regression on the digits, {rounds} rounds. `mean` is without its guards. Flower's rules get
the updates of the same simulation. Momentum is the server optimizer `sgd` with `momentum: 0.9`, its rate is 1 or what the line says.
`centered_clip` has the norm 1, with momentum 0.5. Bulyan needs eleven learners for two hostile ones. `mean of the honest` knows who is
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
    """Points of accuracy that guarded rules lose to the same without an attack, or to the mean of the honest."""
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
        for rule in (WITH_MOMENTUM, FASTER) if alpha >= FEW_CLASSES else (WITH_MOMENTUM,):
            rows += [_row(rule, name, attack, table[rule]["none"], table[rule][attack]) for attack in ATTACKS[1:]]
        if alpha < FEW_CLASSES:
            best = table[HONEST]["none"]
            rows += [_row(CENTERED, name, a, best, table[CENTERED][a], "mean of the honest") for a in ATTACKS[1:]]
    PAGE.write_text("\n".join(pages))
    return rows


def _row(rule: str, shards: str, attack: str, best: float, found: float, other: str = "unattacked") -> Row:
    lost = 100 * (best - found)
    return Row(
        f"{rule}; {shards}, {attack}", f"{100 * found:.1f} %", f"{other} {100 * best:.1f} %", round(lost, 1),
        "<= 3 points lost", lost <= 3.0,
    )  # fmt: skip


def _table(table: Mapping[str, Mapping[str, float]]) -> str:
    lines = [f"| rule | {' | '.join(ATTACKS)} |", "| --- |" + " --- |" * len(ATTACKS)]
    for rule, found in table.items():
        lines.append(f"| {rule} | {' | '.join(f'{100 * found[attack]:.1f}' for attack in ATTACKS)} |")
    return "\n".join(lines) + "\n"
