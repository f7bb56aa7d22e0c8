"""The policy of a site: it can only tighten, and each objection has both values in one sentence."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fedpipe.codec import converted
from fedpipe.errors import FederationError
from fedpipe.federation.federation import Federation
from fedpipe.federation.mistakes import quantity
from fedpipe.sites.demands import demands_of
from fedpipe.sites.journal import Usage
from fedpipe.sites.policy import Policy, effective, objections, pause
from tests.sites.plans import PRIVACY, federation, training

TABLE = {"uri": "x.csv", "features": {"age": "number", "sex": "category"}, "labels": "outcome"}


def policy(**more: Any) -> Policy:
    return converted(more, Policy)


CASES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"epochs": 2}, {"training": training(local_epochs=5)},
     "the plan trains 5 epochs a round; this site's policy allows 2"),
    ({"epochs": 2}, {"training": training(preprocessing="repeat(3).repeat(2).batch(8)")},
     "the plan trains 6 epochs a round; this site's policy allows 2"),
    ({"epochs": 1}, {"training": training(method={"name": "ditto", "lambda": 0.1})},
     "the plan trains 2 epochs a round; this site's policy allows 1"),
    ({"steps": 10}, {"training": training(local_epochs=0, local_steps=11)},
     "the plan trains 11 steps a round; this site's policy allows 10"),
    ({"steps": 10}, {"training": training(local_epochs=2)},
     "the plan trains 2 epochs a round; this site's policy needs training.local_steps"),
    ({"batch_size": 4}, {"training": training()},
     "the plan has batches of 8 examples; this site's policy allows 4"),
    ({"batch_size": 8}, {"training": training(accumulate=2)},
     "the plan has batches of 16 examples; this site's policy allows 8"),
    ({"batch_size": 8}, {"training": training(preprocessing="batch(9)")},
     "the plan has batches of 9 examples; this site's policy allows 8"),
    ({"algorithms": ["averaging"]}, {"algorithm": "collective"},
     "the plan uses the algorithm collective; this site's policy allows averaging"),
    ({"cpu": "2"}, {"learners": [{"name": "a"}, {"name": "b", "placement": {"cpu": "3500m"}}]},
     "the plan asks for 3500m cores; this site's policy allows 2"),
    ({"memory": "1Gi"}, {"learners": [{"name": "a"}, {"name": "b", "placement": {"memory": "2Gi"}}]},
     "the plan asks for 2Gi of memory; this site's policy allows 1Gi"),
    ({"gpus": 0}, {"learners": [{"name": "a"}, {"name": "b", "placement": {"accelerator": {"count": 2}}}]},
     "the plan asks for 2 GPUs; this site's policy allows 0"),
    ({"privacy": {"target_epsilon": 3}}, {"privacy": PRIVACY},
     "the plan protects less than this site's policy demands: target_epsilon is 4, the most is 3"),
    ({"privacy": {"noise_multiplier": 2}}, {"privacy": PRIVACY},
     "the plan protects less than this site's policy demands: noise_multiplier is 1.5, the least is 2"),
    ({"privacy": {"l2_norm_clip": 0.5}}, {"privacy": PRIVACY},
     "the plan protects less than this site's policy demands: l2_norm_clip is 1, the most is 0.5"),
    ({"privacy": {}}, {}, "the plan protects less than this site's policy demands: the plan has no privacy for it"),
    ({"secure_sums": True}, {},
     "the plan shows single updates to its coordinator; this site's policy allows secure sums only"),
    ({"norm": 0.5}, {"algorithm": "averaging"}, "the plan has updates of any L2 norm; this site's policy allows 0.5"),
    ({"norm": 0.5}, {"algorithm": {"name": "averaging", "secure": {"norm": 0.6}}},
     "the plan has updates of an L2 norm up to 0.6; this site's policy allows 0.5"),
    ({"learners": 3}, {}, "a round of the plan can consist of 2 learners; this site's policy needs 3"),
    ({"learners": 3}, {"algorithm": "collective"},
     "a round of the plan can consist of 2 learners; this site's policy needs 3"),
    ({"columns": {"age": "number", "outcome": "category"}}, {"data": TABLE},
     "the plan reads the column 'sex'; this site's policy allows age, outcome"),
    ({"columns": {"age": "number", "sex": "category"}}, {"data": TABLE},
     "the plan reads the column 'outcome'; this site's policy allows age, sex"),
    ({"columns": {"age": "date", "sex": "category", "outcome": "category"}}, {"data": TABLE},
     "the plan reads the column 'age' as number; this site's policy allows date"),
    ({"leaves": {"examples": 20}}, {"data": TABLE},
     "the plan has statistics of 3 examples (data.statistics.rare); this site's policy needs 20"),
    ({"leaves": {"metrics": ["accuracy"]}}, {"algorithm": "collective"},
     "the plan votes by 'loss'; this site's policy lets accuracy leave"),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "asked", "objection"), CASES, ids=[case[2][:60] for case in CASES])
def test_a_plan_that_asks_for_more(limits: dict[str, Any], asked: dict[str, Any], objection: str) -> None:
    assert objections(policy(**limits), federation(**asked), "b") == (objection,)
    assert objections(policy(), federation(**asked), "b") == (), "without this limit it runs"


def test_limits_that_a_plan_just_fulfils() -> None:
    limits = policy(
        epochs=2, batch_size=8, algorithms=["averaging"], cpu="500m", memory="1Gi", gpus=0, learners=2,
        privacy={"noise_multiplier": 1.5, "target_epsilon": 4, "delta": 1e-5, "l2_norm_clip": 1},
    )  # fmt: skip
    asked = federation(
        training=training(local_epochs=2), privacy=PRIVACY,
        learners=[{"name": name, "placement": {"cpu": "500m", "memory": "1Gi"}} for name in "abc"],
    )  # fmt: skip
    assert objections(limits, asked, "b") == ()


def test_messages_of_a_cut_network_need_a_permission() -> None:
    asked = federation(
        learners=[{"name": "a", "data": "a.npz"}, {"name": "b", "at": "site"}], data={}, training=training(local_epochs=2),
        algorithm={"name": "split", "label_party": "a", "ids": "patient", "align": "intersection"},
    )  # fmt: skip
    (objection,) = objections(policy(), asked, "b")
    assert objection.startswith("the plan sends activations or gradients of each row to other parties")
    assert objections(policy(leaves={"activations": True}), asked, "b") == ()
    limits = policy(leaves={"activations": True}, epochs=1, batch_size=4, columns={"x": "number"})
    assert [one.split(";")[0] for one in objections(limits, asked, "b")] == [
        "the plan trains 2 epochs a round", "the plan has batches of 8 examples",
        "the plan reads the column 'patient'",
    ]  # fmt: skip


def test_epochs_are_as_many_steps_as_the_examples_need() -> None:
    asked = federation(training=training(local_epochs=2))
    assert objections(policy(steps=10), asked, "b", examples=40) == ()
    assert objections(policy(steps=10), asked, "b", examples=41) == (
        "the plan trains 12 steps a round; this site's policy allows 10",
    )


def test_secure_sums_count_their_threshold() -> None:
    asked = federation(learners=[{"name": name} for name in "abcdef"], algorithm={"name": "averaging", "secure": {}})
    assert objections(policy(secure_sums=True, learners=5), asked, "b") == ()
    limited = {"name": "averaging", "secure": {"norm": 0.5}}
    assert objections(policy(norm=0.5), federation(algorithm=limited), "b") == ()
    assert objections(policy(secure_sums=True, learners=6), asked, "b") == (
        "a round of the plan can consist of 5 learners; this site's policy needs 6",
    )


def test_several_objections_come_together() -> None:
    found = objections(policy(epochs=1, batch_size=4), federation(training=training(local_epochs=2)), "b")
    assert len(found) == 2


def test_a_plan_of_others() -> None:
    assert objections(policy(), federation(), "z") == ("the plan has no learner 'z'; this site has this name",)


def test_data_that_only_the_plan_names() -> None:
    asked = federation(learners=[{"name": "a"}, {"name": "b", "data": "/etc/shadow.npz"}])
    assert objections(policy(), asked, "b") == ("the plan reads '/etc/shadow.npz'; this site's policy names no data",)


@pytest.mark.parametrize(
    ("more", "objection"),
    [
        ({"callbacks": {"CSVLogger": {"filename": "log"}}}, "the plan uses the callback 'CSVLogger'; a site allows "),
        ({"callbacks": {"RemoteMonitor": {}}}, "the plan uses the callback 'RemoteMonitor'; a site allows "),
        ({"fit": {"x": 1}}, "the plan gives `fit` the argument 'x'; a site allows class_weight, shuffle, "),
        ({"callbacks": {"EarlyStopping": {"monitor": "../../key"}}},
         "the plan has '../../key' in training.callbacks.EarlyStopping.monitor, which may name a file"),
        ({"fit": {"class_weight": {0: "s3://b/x"}}}, "the plan has 's3://b/x' in training.fit.class_weight.0, which"),
        ({"evaluate": {"a": [["file.npz"]]}}, "the plan has 'file.npz' in training.evaluate.a[0][0], which may name"),
    ],
)  # fmt: skip
def test_arguments_that_no_site_runs(more: dict[str, Any], objection: str) -> None:
    base = federation()
    asked = replace(base, training=replace(base.training, **more))
    assert objections(policy(), asked, "b")[0].startswith(objection)


def test_harmless_arguments() -> None:
    more = {"callbacks": {"EarlyStopping": {"monitor": "val_loss"}}, "fit": {"class_weight": {0: 1.0, 1: 2.0}}}
    assert objections(policy(), federation(training=training(**more)), "b") == ()


def test_a_plan_with_a_mistake_that_no_file_could_have() -> None:
    base = federation()
    asked = replace(base, training=replace(base.training, preprocessing="__import__('os')"))
    (found,) = objections(policy(epochs=1), asked, "b")
    assert found.startswith("the plan has a mistake: training.preprocessing ")


@pytest.mark.parametrize(
    ("limits", "usage", "why"),
    [
        ({"hours": "18:00-06:00"}, Usage(), "it is 12:30; this site's policy allows training at 18:00-06:00"),
        ({"hours": "08:00-12:30"}, Usage(), "it is 12:30; this site's policy allows training at 08:00-12:30"),
        ({"hours": "12:30-13:00"}, Usage(), ""),
        ({"hours": "00:00-00:00"}, Usage(), ""),
        ({"rounds_a_day": 5}, Usage(5, 0), "5 rounds ran in 24 hours; this site's policy allows 5"),
        ({"rounds_a_day": 5}, Usage(4, 0), ""),
        ({"bytes_a_day": "1Ki"}, Usage(1, 1024), "1024 bytes left in 24 hours; this site's policy allows 1Ki"),
        ({"bytes_a_day": "1Ki"}, Usage(1, 1023), ""),
    ],
)
def test_when_the_site_trains(limits: dict[str, Any], usage: Usage, why: str) -> None:
    assert pause(policy(**limits), usage, datetime(2026, 11, 28, 12, 30)) == why


POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "epochs": st.integers(1, 6), "steps": st.integers(1, 60), "batch_size": st.integers(1, 40),
        "algorithms": st.lists(st.sampled_from(["averaging", "collective"]), unique=True),
        "cpu": st.sampled_from(["500m", "1", "2", "4"]), "memory": st.sampled_from(["512Mi", "2Gi", "8Gi"]),
        "gpus": st.integers(0, 2), "learners": st.integers(0, 4), "secure_sums": st.booleans(),
        "norm": st.sampled_from([0.0, 0.5, 2.0]),
        "privacy": st.fixed_dictionaries({}, optional={
            "noise_multiplier": st.floats(0.5, 3), "target_epsilon": st.floats(1, 9), "l2_norm_clip": st.floats(0.5, 2),
        }),
        "columns": st.dictionaries(st.sampled_from(["age", "sex", "outcome", "id"]), st.sampled_from(["number", "category"])),
        "leaves": st.fixed_dictionaries({}, optional={
            "metrics": st.lists(st.sampled_from(["loss", "accuracy"]), unique=True), "examples": st.integers(0, 30),
            "tensorboard": st.booleans(),
        }),
    },
)  # fmt: skip
PLANS = st.fixed_dictionaries(
    {
        "training": st.fixed_dictionaries(
            {"rounds": st.integers(1, 5), "batch_size": st.integers(1, 40)},
            optional={
                "accumulate": st.integers(1, 3), "tensorboard": st.booleans(),
                "preprocessing": st.sampled_from(["", "repeat(4).batch(8)", "batch(3).repeat(2)", "shuffle(10)"]),
                "method": st.sampled_from([None, {"name": "ditto", "lambda": 0.1}, {"name": "fedprox", "mu": 0.1}]),
                "callbacks": st.sampled_from([{}, {"CSVLogger": {"filename": "x"}}, {"TerminateOnNaN": {}}]),
            },
        ),
        "work": st.sampled_from([{"local_epochs": 1}, {"local_epochs": 5}, {"local_epochs": 0, "local_steps": 20}]),
    },
    optional={
        "algorithm": st.sampled_from(
            ["averaging", "collective", {"name": "averaging", "secure": {}}, {"name": "averaging", "secure": {"norm": 1.0}}]
        ),
        "quorum": st.fixed_dictionaries({"min_learners": st.integers(0, 3)}),
        "privacy": st.fixed_dictionaries({
            "noise_multiplier": st.floats(0.5, 3), "target_epsilon": st.floats(1, 9), "l2_norm_clip": st.floats(0.5, 2),
            "microbatches": st.just(1), "delta": st.just(1e-5),
        }),
        "placement": st.fixed_dictionaries({"train": st.fixed_dictionaries({}, optional={
            "cpu": st.sampled_from(["1", "3"]), "memory": st.sampled_from(["1Gi", "4Gi"]),
            "accelerator": st.fixed_dictionaries({"count": st.integers(1, 3)}),
        })}),
        "data": st.sampled_from([{"uri": "x.npz"}, TABLE, {**TABLE, "statistics": {"rare": 25}}]),
    },
)  # fmt: skip


def made(asked: dict[str, Any]) -> Federation | None:
    """The federation of a draw; None if no file may have it."""
    content = {**asked, "training": {**asked["training"], **asked["work"]}}
    del content["work"]
    try:
        return federation(**content)
    except FederationError:
        return None


def beyond(limits: dict[str, Any], asked: dict[str, Any], examples: int) -> bool:
    """Whether a plan asks for more than a policy allows, worked out from both files again."""
    own, leaves = asked["training"], limits.get("leaves", {})
    steps = asked["work"].get("local_steps", 0)
    times = {"repeat(4).batch(8)": 4, "batch(3).repeat(2)": 2}.get(own.get("preprocessing", ""), 1)
    times *= 2 if (own.get("method") or {}).get("name") == "ditto" else 1
    batch = {"repeat(4).batch(8)": 8, "batch(3).repeat(2)": 3}.get(own.get("preprocessing", ""), own["batch_size"])
    batch *= own.get("accumulate", 1)
    epochs = 0 if steps else asked["work"]["local_epochs"] * times
    steps = steps * times or epochs * -(-examples // batch)
    algorithm = asked.get("algorithm", "averaging")
    secure = isinstance(algorithm, dict)
    name = "averaging" if secure else algorithm
    table = asked.get("data", {}).get("labels") == "outcome"
    rare = asked.get("data", {}).get("statistics", {}).get("rare", 3)
    placed = asked.get("placement", {}).get("train", {})
    privacy, least = asked.get("privacy"), limits.get("privacy")
    kinds = {"age": "number", "sex": "category", "outcome": None} if table else {"x": None, "y": None}
    columns = limits.get("columns")
    fewest = max(asked.get("quorum", {}).get("min_learners") or 2, 3 if secure else 1)
    return any((
        "CSVLogger" in own.get("callbacks", {}),
        epochs > limits.get("epochs", 10**9), steps > limits.get("steps", 10**9),
        batch > limits.get("batch_size", 10**9), bool(limits.get("algorithms")) and name not in limits["algorithms"],
        "cpu" in placed and quantity(placed["cpu"]) > quantity(limits.get("cpu", "999")),
        "memory" in placed and quantity(placed["memory"]) > quantity(limits.get("memory", "999Ti")),
        placed.get("accelerator", {}).get("count", 0) > limits.get("gpus", 999),
        least is not None and (
            privacy is None or privacy["noise_multiplier"] < least.get("noise_multiplier", 0)
            or privacy["target_epsilon"] > least.get("target_epsilon", 1e9)
            or privacy["l2_norm_clip"] > least.get("l2_norm_clip", 1e9)
        ),
        limits.get("secure_sums", False) and not secure,
        limits.get("norm", 0) and not (secure and 0 < algorithm["secure"].get("norm", 0) <= limits["norm"]),
        fewest < limits.get("learners", 0),
        bool(columns) and any(n not in columns or (k and columns[n] != k) for n, k in kinds.items()),
        table and rare < leaves.get("examples", 0),
        name == "collective" and "loss" not in (leaves.get("metrics") or ["loss"] if "metrics" not in leaves else leaves["metrics"]),
    ))  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(limits=POLICIES, asked=PLANS, examples=st.integers(1, 100))
def test_no_plan_loosens_a_policy(limits: dict[str, Any], asked: dict[str, Any], examples: int) -> None:
    plan = made(asked)
    if plan is None:
        return
    own = policy(**limits)
    found = objections(own, plan, "b", examples=examples)
    assert bool(found) == beyond(limits, asked, examples)
    runs = effective(own, demands_of(plan, "b"))
    leaves = own.leaves
    assert not runs.demands.tensorboard or leaves.tensorboard
    assert runs.metrics == leaves.metrics
    assert runs.gpus <= (own.gpus if own.gpus is not None else runs.gpus)


def tightened(limits: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Policies that are at least as tight in each key."""
    lower = {key: st.integers(1, limits[key]) for key in ("epochs", "steps", "batch_size") if key in limits}
    higher = {"learners": st.integers(limits.get("learners", 0), 5), "secure_sums": st.just(True)}
    fixed = {key: st.just(value) for key, value in limits.items() if key not in (*lower, *higher)}
    return st.fixed_dictionaries({**fixed, **lower}, optional=higher).map(
        lambda made: {**{k: limits[k] for k in higher if k in limits}, **made}
    )


@settings(max_examples=200, deadline=None)
@given(data=st.data(), limits=POLICIES, asked=PLANS)
def test_a_tighter_policy_refuses_no_less(data: Any, limits: dict[str, Any], asked: dict[str, Any]) -> None:
    plan = made(asked)
    if plan is None:
        return
    tight = data.draw(tightened(limits))
    assert len(objections(policy(**limits), plan, "b")) <= len(objections(policy(**tight), plan, "b"))
