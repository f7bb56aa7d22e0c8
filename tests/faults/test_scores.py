"""Scores that a learner may rightly write: extreme, but without a contradiction. The others' evaluation stands."""

from __future__ import annotations

import contextlib
import json
import math
import tracemalloc
from collections.abc import Iterator
from random import Random
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from fedpipe.data.statistics import MOST_VALUES as MOST_OF_STATISTICS
from fedpipe.data.statistics import Report
from fedpipe.errors import CorruptError, DroppedError
from fedpipe.learners.score import evaluate, measured_of, score_learner
from fedpipe.reports.quality import qualities
from fedpipe.rounds import received
from fedpipe.rounds.evaluation import Evaluation, Score, find_score, read_scores
from fedpipe.rounds.histograms import COARSEST, FINEST, Histogram
from fedpipe.rounds.measures import best_threshold, measure
from fedpipe.rounds.received import Source, receive
from fedpipe.rounds.tallies import (
    STEPS,
    Calibration,
    ClassTally,
    Head,
    Ranking,
    Residuals,
    Tally,
    ValueTally,
    add_tallies,
    mistake_in,
)
from fedpipe.store import MemoryStore, keys
from fedpipe.store.objects import canonical, decode, encode
from tests.faults import seeds
from tests.learners.contract import X
from tests.learners.test_score import prepared
from tests.models import LINEAR

COUNT = 50 * seeds.COUNT
REALS = (
    0.0, -0.0, 5e-324, 1e-320, 1e-300, 1e-108, 1e-30, 0.5, 1.0, 3.0, 1e30, 1e38, 1e100, -1.0, -1e100, -5e-324,
)  # fmt: skip
SIZES = (*(value for value in REALS if value >= 0), 1e150, 1e200)
CODES = (-(2**31), 2**31, -0x7F7FFFFF, 0x7F7FFFFF, 0, 1, -1, 0x3F800000, -0x3F800000, -0x44480000)
HEADS = (
    Head("", "binary", "logits", 1), Head("", "binary", "probabilities", 1), Head("", "binary", "margins", 1),
    Head("", "multiclass", "logits", 3), Head("", "multiclass", "probabilities", 3), Head("", "multilabel", "logits", 3),
    Head("", "regression", "probabilities", 1), Head("", "regression", "probabilities", 2), Head("", "", "logits", 0),
)  # fmt: skip


def split(random: Random, count: int, size: int) -> list[int]:
    """Returns counts of this sum; each is at least 1 if there are enough."""
    counts = [int(place < count) for place in range(size)]
    counts[random.randrange(size)] += count - sum(counts)
    return counts


def histogram(random: Random, count: int, *, summed: bool) -> Histogram:
    counts = split(random, count, random.choice([1, min(2, count), min(3, count)]))
    return Histogram(
        exponent=random.choice([FINEST, -60, 0, 1, 40, 200, COARSEST - 3]),
        first=random.choice([0, -1, 1, 63, 2**31, -(2**31), 2**52, -(2**62), 2**62 - 64]),
        counts=tuple(counts),
        sums=tuple(random.choice(REALS) for _ in counts) if summed else (),
        squares=tuple(random.choice(SIZES) for _ in counts) if summed else (),
    )


def column(random: Random, count: int) -> Residuals:
    absolutes = random.choice(SIZES[:-2])
    return Residuals(
        values=count, mean=random.choice(REALS), deviations=random.choice(SIZES),
        errors=random.choice([0.0, absolutes, -absolutes]), absolutes=absolutes,
        squares=random.choice([1e200, max(5e-324, min(1e200, absolutes * absolutes))]),
        residuals=histogram(random, count, summed=False), predictions=histogram(random, count, summed=True),
    )  # fmt: skip


def ranking(random: Random, positives: int, negatives: int) -> Ranking:
    codes = sorted(random.sample(CODES, random.choice([1, 2, 3])))
    return Ranking(
        shift=random.choice([0, 0, 1, 30]), bins=tuple(codes), negatives=tuple(split(random, negatives, len(codes))),
        positives=tuple(split(random, positives, len(codes))),
    )  # fmt: skip


def classified(random: Random, head: Head, count: int) -> ClassTally:
    classes, matrix = head.classes, ()
    if head.task == "multilabel":
        true, taken = ([random.choice([0, count, count // 2]) for _ in range(classes)] for _ in "ab")
        right = [min(pair) for pair in zip(true, taken, strict=True)]
    else:
        rows = [split(random, part, classes) for part in split(random, count, classes)]
        matrix = tuple(map(tuple, rows))
        true, taken = [sum(row) for row in rows], [sum(row) for row in zip(*rows, strict=True)]
        right = [row[k] for k, row in enumerate(rows)]
    scored = count * (classes if head.task == "multilabel" else 1)
    misses, hits = split(random, scored // 2, STEPS), split(random, scored - scored // 2, STEPS)
    sums = [
        (m + h) * (k + random.choice([0, 0.5, 1])) / STEPS for k, (m, h) in enumerate(zip(misses, hits, strict=True))
    ]
    wanted = true[1:] if head.task == "binary" else true
    return ClassTally(
        task=head.task, form=head.form, true=tuple(true), taken=tuple(taken), right=tuple(right), confusion=matrix,
        rankings=tuple(ranking(random, part, count - part) for part in wanted) if random.random() < 0.8 else (),
        calibration=Calibration(misses=tuple(misses), hits=tuple(hits), sums=tuple(sums)),
        squares=random.choice([0.0, 5e-324, scored / 2, 2.0 * scored]),
    )  # type: ignore[arg-type]  # fmt: skip


def extreme(random: Random, head: Head) -> tuple[Tally, int]:
    count = random.choice([1, 2, 3, 7, 2**31, 2**50, 2**53])
    if head.classes:
        return classified(random, head, count), count
    columns = max(1, head.width)
    return ValueTally(columns=tuple(column(random, count) for _ in range(columns)), pooled=columns != head.width), count


def test_extreme_tallies_are_refused_or_shown() -> None:
    """A tally that passes the checks can be measured, written, added to others, and shown in the report."""
    shown, before = 0, dict[Head, Tally]()
    for seed in range(seeds.FIRST, seeds.FIRST + COUNT):
        random = Random(seed)
        head = random.choice(HEADS)
        tally, count = extreme(random, head)
        with contextlib.suppress(CorruptError):
            tally = decode(canonical(tally), type(tally), where="tally")
            if not mistake_in(tally, head, count):
                before[head], shown = tally, shown + shows(seed, head, tally, count, before.get(head))
    assert shown > COUNT / 8, "the tallies do not pass the checks"


def shows(seed: int, head: Head, tally: Tally, count: int, other: Tally | None) -> bool:
    try:
        return show(head, tally, count, other)
    except Exception as error:
        raise AssertionError(f"{seeds.how_to_repeat(seed)}: {tally}") from error


def show(head: Head, tally: Tally, count: int, other: Tally | None) -> bool:
    """Returns whether a tally and its sum with another could be shown; a sum may be out of bounds."""
    score = Score(learner="a", weights="", examples=count, tallies={"": tally})
    for each in (tally, add_tallies([tally, other]) if other else None):
        if each is None:
            continue
        found = Evaluation(
            weights="", learners={"a": measured_of(score)}, tallies={"federated": {"": each}},
            classes=("x", "y", "z")[: head.classes],
        )  # fmt: skip
        measure(each)
        try:
            encode(found)
        except CorruptError:
            return False
        pictures = "".join(picture for quality in qualities(found, found.classes) for picture in quality.pictures)
        assert not {'"nan', '"inf', '"-inf', " nan", " inf"} & set(pictures.lower().split("="))
        json.dumps(msgspec.to_builtins(found), allow_nan=False)
    return True


def test_a_threshold_far_from_zero_has_a_probability() -> None:
    lowest = Ranking(shift=0, bins=(-0x7F000000, 0), negatives=(1, 1), positives=(3, 0))
    highest = Ranking(shift=0, bins=(0, 0x7F000000), negatives=(2, 0), positives=(0, 3))
    common: dict[str, Any] = {"task": "binary", "form": "logits", "true": (2, 3), "taken": (2, 3), "right": (2, 3)}
    assert best_threshold(ClassTally(**common, rankings=(lowest,))) == (0.0, 6 / 8)
    assert best_threshold(ClassTally(**common, rankings=(highest,))) == (1.0, 1.0)


def test_an_empty_bin_is_refused() -> None:
    empty = Ranking(shift=0, bins=(0, 5), negatives=(2, 0), positives=(3, 0))
    tally = ClassTally(
        task="binary", form="logits", true=(2, 3), taken=(2, 3), right=(2, 3), confusion=((2, 0), (0, 3)),
        rankings=(empty,),
    )  # fmt: skip
    assert mistake_in(tally, HEADS[0], 5) == "a ranking has an empty bin"


def test_measures_too_large_for_a_table_are_left_out() -> None:
    flat = {"values": 3, "mean": 0.0, "errors": 0.0, "absolutes": 0.0}
    bins = Histogram(exponent=0, first=0, counts=(3,))
    summed = Histogram(exponent=0, first=0, counts=(3,), sums=(0.0,), squares=(0.0,))
    one = Residuals(**flat, deviations=1e-108, squares=1e200, residuals=bins, predictions=summed)
    tally = ValueTally(columns=(one, one))
    assert not mistake_in(tally, HEADS[7], 3)
    assert "r2" not in measure(tally)
    assert "rmse" not in measured_of(Score(learner="a", weights="", examples=3, tallies={"": tally})).measures


SPOILING: dict[str, dict[str, Any]] = {
    "a mean": {"mean": 1e100}, "deviations": {"deviations": 1e200, "mean": -9e99}, "squares": {"squares": 1e200},
    "sums of residuals": {"errors": 1e99, "absolutes": 1e99, "squares": 1e200},
}  # fmt: skip


@pytest.mark.parametrize("changes", SPOILING.values(), ids=SPOILING)
@pytest.mark.parametrize("guilty", ["a", "b"])
def test_one_score_leaves_out_no_other(store: MemoryStore, changes: dict[str, Any], guilty: str) -> None:
    """Also if the others have more examples and larger sums."""
    plan, digest = prepared(store, LINEAR.replace("4, 3,", "4, 1, 'squared',"), X[:, 0] * 7)
    scores = {name: score_learner(store, plan, name, digest) for name in "ab"}
    tally = scores[guilty].tallies[""]
    assert isinstance(tally, ValueTally)
    honest = scores["b" if guilty == "a" else "a"]
    spoiled = ValueTally(columns=(replace(tally.columns[0], **changes),))
    given = [replace(scores[guilty], tallies={"": spoiled}), honest, replace(honest, learner="c")]
    found = evaluate(store, plan, digest, given)
    encode(found)
    assert {honest.learner, "c"} <= found.learners.keys()
    assert found.federated is not None
    assert all(math.isfinite(value) for value in found.federated.measures.values())


def dense() -> Iterator[tuple[str, type[Any], bytes]]:
    """Yields objects of many short values, as many as their bytes allow."""
    numbers, rest = b"1," * 8_000_000 + b"1", b'"learner":"a","weights":"x","examples":1'
    yield "states", Score, b'{%s,"states":[[%s]]}' % (rest, numbers)
    yield "label shapes", Score, b'{%s,"label_shape":[%s]}' % (rest, numbers)
    table = b'"tallies":{"":{"type":"classes","task":"binary","form":"logits","true":[%s],"taken":[],"right":[]}}'
    yield "counts", Score, b"{%s,%s}" % (rest, table % numbers)
    names = ",".join(f'"{number:x}":1' for number in range(10_000))
    described = b'{"name":"c","kind":"category","missing":0,"categories":{%s}}' % names.encode()
    yield "categories", Report, b'{"learner":"a","examples":9,"columns":[%s]}' % b",".join([described] * 700)


OBJECTS = {name: (kind, data) for name, kind, data in dense()}


@pytest.mark.parametrize("name", OBJECTS)
def test_dense_objects_take_little_memory(store: MemoryStore, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MiB of numbers would take 600 MiB, and 64 MiB of categories 1.2 GiB."""
    kind, data = OBJECTS[name]
    monkeypatch.setattr(received, "MANIFEST", 2**30)
    key = keys.score("a", "r1") if kind is Score else keys.statistics("a", "r1")
    store.create(key, data)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        if kind is Score:
            (score,) = read_scores(store, "r1", ["a"])
            assert "values, the limit is" in score.why or "bytes, the limit is" in score.why
        else:
            source = Source(store, "r1", key, "statistics", 2**27, MOST_OF_STATISTICS)
            with pytest.raises(DroppedError, match="values, the limit is"):
                receive(source, Report)
        assert tracemalloc.get_traced_memory()[1] - before < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_the_largest_score_that_is_read(store: MemoryStore) -> None:
    numbers = b"1," * 1_690_000 + b"1"
    store.create(keys.score("a", "r1"), b'{"learner":"a","weights":"x","examples":1,"states":[[%s]]}' % numbers)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assert find_score(store, "a", "r1") is not None
        assert tracemalloc.get_traced_memory()[1] - before < 100 * 2**20
    finally:
        tracemalloc.stop()
