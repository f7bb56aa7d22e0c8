"""Methods for learners that differ, on the digits: a shift per learner, skewed labels, and both; whatever comes out.

Five learners share the 1797 digits of scikit-learn. With a *shift*, each rotates its pictures by an angle of its own and
changes contrast and brightness. *Skewed* labels are a Dirichlet draw with alpha 0.1. Settings are the same for all
methods and were not tuned. Accuracies are means over all test examples of the learners, 40 % of each shard, and over
the seeds. The table goes into `docs/personal.md`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace
from scipy import ndimage
from sklearn.datasets import load_digits

from benchmarks.measure import ROOT, Row
from fedpipe.data.examples import Examples
from fedpipe.data.parts import put_shard
from fedpipe.federation.file import parse_federation
from fedpipe.learners.assembly import make_learner, plan_model
from fedpipe.learners.contribute import contribute
from fedpipe.learners.score import score_learner
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.closing import close_round
from fedpipe.rounds.plan import Plan
from fedpipe.store import MemoryStore
from fedpipe.store.objects import put_bytes

LEARNERS = 5
ROUNDS = 10
SEEDS = (0,)
ALPHA = 0.1
FEWEST = 40
"""Fewest examples of a learner."""
MARGIN = 0.02
"""Goal: personal models are better than the shared one of federated averaging by this accuracy."""
PAGE = ROOT / "docs/personal.md"
MARKS = ("<!-- measured -->", "<!-- end of measured -->")

MODEL = """
import keras

def build():
    model = keras.Sequential([
        keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(64, name="base"),
        keras.layers.BatchNormalization(momentum=0.9), keras.layers.ReLU(), keras.layers.Dense(10, "softmax", name="head"),
    ])
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
"""
METHODS: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedProx, mu 0.1": {"method": {"name": "fedprox", "mu": 0.1}},
    "SCAFFOLD": {"method": "scaffold"},
    "FedNova, statistics stay": {"method": "fednova", "share": "trainable"},
    "FedBN": {"share": {"local": ["*batch_normalization*"]}},
    "FedPer": {"share": {"local": ["head/*"]}},
    "Ditto, lambda 0.1": {"method": {"name": "ditto", "lambda": 0.1}},
    "MR-MTL, lambda 0.1": {"method": {"name": "mr_mtl", "lambda": 0.1}},
}
SETTINGS = {"shift": (True, False), "skewed labels": (False, True), "both": (True, True)}


class Found(NamedTuple):
    """Accuracies over the learners' test parts: of the shared model and of personal ones, and the worst learner's."""

    shared: float
    worst_shared: float
    personal: float | None = None
    worst_personal: float | None = None


def shards(seed: int, *, shifted: bool, skewed: bool) -> dict[str, dict[str, Examples]]:
    """Returns each learner's train and test part."""
    generator = np.random.default_rng(seed)
    pictures, labels = load_digits(return_X_y=True)
    pictures = pictures.reshape(-1, 8, 8) / 16
    owner = generator.permutation(len(labels)) % LEARNERS
    while skewed:
        owner = np.zeros(len(labels), np.int64)
        for label in range(10):
            members = generator.permutation(np.flatnonzero(labels == label))
            shares = np.cumsum(generator.dirichlet([ALPHA] * LEARNERS))[:-1]
            for learner, part in enumerate(np.split(members, (shares * len(members)).astype(int))):
                owner[part] = learner
        if np.bincount(owner, minlength=LEARNERS).min() >= FEWEST:
            break
    found = {}
    for learner in range(LEARNERS):
        mine = generator.permutation(np.flatnonzero(owner == learner))
        x = pictures[mine]
        if shifted:
            angle, contrast = -60 + 30 * learner, (1.0, 0.6, 0.3)[learner % 3]
            x = ndimage.rotate(x, angle, axes=(1, 2), reshape=False, order=1) * contrast + (1 - contrast) / 2
        x, y = x[..., None].astype(np.float32), labels[mine].astype(np.int64)
        cut = int(0.6 * len(mine))
        found[f"learner-{learner}"] = {"train": Examples(x[:cut], y[:cut]), "test": Examples(x[cut:], y[cut:])}
    return found


def planned(store: MemoryStore, parts: dict[str, dict[str, Examples]], seed: int, given: dict[str, Any]) -> Plan:
    """Returns the plan of a run over these parts."""
    training = {"rounds": ROUNDS, "batch_size": 16, "local_epochs": 3, "learning_rate": 0.1, "seed": seed}
    if "method" in given:
        training["method"] = given["method"]
    federation = parse_federation({
        "name": "digits", "learners": [{"name": name} for name in parts], "data": {"uri": "x.npz"}, "training": training,
        "share": given.get("share", "all"), "evaluation": {"every_round": False}, "algorithm": "averaging",
    })  # fmt: skip
    return Plan(
        run="r", federation=federation, code=put_bytes(store, MODEL.encode()), function="build",
        shards={name: put_shard(store, name, part)[1] for name, part in parts.items()},
    )  # fmt: skip


def played(parts: dict[str, dict[str, Examples]], seed: int, given: dict[str, Any]) -> Found:
    """Plays a run by the functions that the steps call, and tests its models."""
    store = MemoryStore("benchmark")
    plan = planned(store, parts, seed, given)
    record = begin(store, plan, lambda: plan_model(store, plan).initial_weights(seed))
    for number in range(1, ROUNDS + 1):
        for name in parts:
            contribute(store, plan, name, number, record.weights, partial(make_learner, store, plan, name, number))
        record = close_round(store, plan, number, record.weights)
        if record.dropped:
            raise RuntimeError(f"{record.dropped[0].learner}: {record.dropped[0].why}")
    scores = [score_learner(store, plan, name, record.weights) for name in parts]
    shared = [(score.metrics["accuracy"], score.examples) for score in scores]
    own = [(score.personal.metrics["accuracy"], score.examples) for score in scores if score.personal]
    return Found(*_summed(shared), *(_summed(own) if own else ()))


def alone(parts: dict[str, dict[str, Examples]], seed: int) -> Found:
    """Returns the accuracy of learners that train alone, as long as in a run."""
    store = MemoryStore("benchmark")
    plan = planned(store, parts, seed, {})
    model, own = plan_model(store, plan), []
    training = plan.federation.training
    for part in parts.values():
        start = model.initial_weights(seed)
        longer = replace(training, local_epochs=ROUNDS * training.local_epochs)
        fitted = model.train(start, part["train"], longer, seed=seed, seconds=1e6, optimizer=None)
        own.append((model.evaluate(fitted.weights, part["test"], training).metrics["accuracy"], len(part["test"].y)))
    return Found(float("nan"), float("nan"), *_summed(own))


def _summed(found: list[tuple[float, int]]) -> tuple[float, float]:
    """Returns the mean over all examples, and the worst learner's."""
    return sum(a * n for a, n in found) / sum(n for _, n in found), min(a for a, _ in found)


def measured() -> Iterator[tuple[str, dict[str, Found]]]:
    """Yields each setting with the accuracies by method, as means over the seeds."""
    for setting, (shifted, skewed) in SETTINGS.items():
        dealt = {seed: shards(seed, shifted=shifted, skewed=skewed) for seed in SEEDS}
        found = {"alone": _mean([alone(dealt[seed], seed) for seed in SEEDS])}
        for name, given in METHODS.items():
            started = time.perf_counter()
            found[name] = _mean([played(dealt[seed], seed, given) for seed in SEEDS])
            print(f"{setting}, {name}: {found[name]}, {time.perf_counter() - started:.0f} s", file=sys.stderr)
        yield setting, found


def _mean(found: list[Found]) -> Found:
    return Found(*(None if None in each else float(np.mean(each)) for each in zip(*found, strict=True)))  # type: ignore[type-var]


def written(table: dict[str, dict[str, Found]]) -> str:
    """Returns the table as Markdown."""
    lines = ["| method | " + " | ".join(f"{setting}: shared | personal" for setting in table) + " |"]
    lines.append("| --- |" + " ---: |" * (2 * len(table)))
    for name in ("alone", *METHODS):
        cells = []
        for found in (table[setting][name] for setting in table):
            cells.append("" if np.isnan(found.shared) else f"{found.shared:.1%} ({found.worst_shared:.1%})")
            cells.append("" if found.personal is None else f"{found.personal:.1%} ({found.worst_personal:.1%})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run() -> list[Row]:
    """Measures, and writes the table into the page."""
    table: dict[str, dict[str, Found]] = {}
    for setting, accuracies in measured():
        table[setting] = accuracies
        before, _, rest = PAGE.read_text().partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        PAGE.write_text("\n".join([before + MARKS[0], written(table), MARKS[1] + after]))
    rows = []
    for setting, found in table.items():
        average = found["FedAvg"].shared
        name, best = max(
            ((name, one.personal) for name, one in found.items() if name != "alone" and one.personal is not None),
            key=lambda pair: pair[1],
        )
        rows.append(Row(
            f"personal models on the digits, {setting}: {name}", f"{best:.1%}", f"shared model of FedAvg {average:.1%}",
            round(best / average, 3), f">= {MARGIN:.0%} more", best - average >= MARGIN,
        ))  # fmt: skip
    return rows
