"""What a run did, put together from its records: `summary.json` and the tables of the report."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from fedpipe.data import Shard, get_shard
from fedpipe.errors import NotFoundError
from fedpipe.evaluation import Evaluation
from fedpipe.manifests import Record, Update
from fedpipe.objects import decode
from fedpipe.plan import Plan, read_plan
from fedpipe.rounds import history
from fedpipe.store import Store
from fedpipe.timings import Timing, read_timings


class Story(Struct, frozen=True, kw_only=True):
    """All that the store tells about a run."""

    store: str
    plan: Plan
    records: tuple[Record, ...]
    shards: tuple[Shard, ...]
    evaluation: Evaluation | None
    onnx: dict[str, Any]
    timings: tuple[Timing, ...]


def read_story(store: Store, run: str, uri: str = "") -> Story:
    """Reads a run.

    Args:
        store: the federation's part of the store.
        run: the run's name.
        uri: of the whole store, as `--store` takes it.

    Raises:
        NotFoundError: there is no such run.
        CorruptError: its chain is broken.
    """
    records = tuple(history(store, run))
    if not records:
        raise NotFoundError(f"there is no run {run!r}", where=store.uri)
    plan = read_plan(store, records[0].plan)
    names = tuple(learner.name for learner in plan.federation.learners)
    return Story(
        store=uri or store.uri,
        plan=plan,
        records=records,
        shards=tuple(get_shard(store, name, digest) for name, digest in sorted(plan.shards.items())),
        evaluation=_optional(store, f"runs/{run}/evaluation", Evaluation),
        onnx=_optional(store, f"runs/{run}/onnx", dict) or {},
        timings=tuple(sorted(read_timings(store, run, names), key=lambda t: t.started)),
    )


def _optional(store: Store, key: str, kind: type[Any]) -> Any:
    try:
        return decode(store.read(key).data, kind, where=key)
    except NotFoundError:
        return None


def tested(records: tuple[Record, ...], number: int) -> dict[str, float]:
    """Metrics of the model that round `number` made, from the learners' tests at the start of the next round.

    Means over the learners' test parts, weighted by their examples; empty when nobody tested it.
    """
    following = next((r.updates for r in records if r.round == number + 1), ())
    return mean_tested(following)


def mean_tested(updates: tuple[Update, ...]) -> dict[str, float]:
    """Means of what the updates' learners tested, weighted by test examples."""
    tests = [u.tested for u in updates if u.tested]
    names = set.intersection(*(set(t.metrics) for t in tests)) if tests else set()
    total = sum(t.examples for t in tests)
    return {n: sum(t.metrics[n] * t.examples for t in tests) / total for n in sorted(names)}


def global_metrics(story: Story, number: int) -> dict[str, float]:
    """As `tested`; for the last round from the federated evaluation."""
    found = tested(story.records, number)
    last = story.records[-1]
    federated = story.evaluation.federated if story.evaluation else None
    if (
        not found
        and number == last.round
        and federated
        and story.evaluation
        and story.evaluation.weights == last.weights
    ):
        found = dict(federated.metrics)
    return found


def round_seconds(story: Story, number: int) -> float:
    """From the first step's start to the last one's end, in seconds."""
    spans = [
        (t.started, t.started + t.seconds)
        for t in story.timings
        if t.round == number and t.step in ("train", "aggregate")
    ]
    return max(e for _, e in spans) - min(s for s, _ in spans) if spans else 0.0


def summarise(story: Story) -> dict[str, Any]:
    """`summary.json`.

    `loss` and the metrics without a prefix are of the learners' training in the round; `test_...` are of the model
    that the round made, on the learners' test parts.
    """
    rounds = [_round(story, record) for record in story.records if record.round]
    timings = story.timings
    ends = [t.started + t.seconds for t in timings]
    return {
        "federation": story.plan.federation.name,
        "run": story.plan.run,
        "store": story.store,
        "rounds": rounds,
        "evaluation": msgspec.to_builtins(story.evaluation) if story.evaluation else {},
        "onnx": {k: story.onnx[k] for k in ("path", "digest", "max_abs_difference", "opset") if k in story.onnx},
        "seconds": round(max(ends) - min(t.started for t in timings), 3) if timings else 0.0,
    }


def _round(story: Story, record: Record) -> dict[str, Any]:
    metrics = {k: v for k, v in record.metrics.items() if k != "loss"}
    metrics |= {f"test_{k}": v for k, v in global_metrics(story, record.round).items()}
    return {
        "round": record.round,
        "loss": record.metrics.get("loss"),
        "metrics": metrics,
        "learners": [u.learner for u in record.updates],
        "dropped": [{"learner": d.learner, "why": d.why} for d in record.dropped],
        "record": record.ref.record,
        "weights": record.weights,
        "seconds": round(round_seconds(story, record.round), 3),
    }
