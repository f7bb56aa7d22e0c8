"""Settings of rules: how many updates they need, and mistakes that are found before a run."""

from __future__ import annotations

from typing import Any

import pytest

from fedpipe.errors import FederationError
from fedpipe.federation.federation import Federation
from tests.federations import make_federation

KRUM = {"name": "krum", "byzantine": 1}
MIXING = {"name": "nearest_neighbour_mixing", "byzantine": 3}
TOO_FEW: dict[str, tuple[int, dict[str, Any], str]] = {
    "krum": (6, {"rule": {"name": "krum", "byzantine": 2}}, "algorithm.rule.byzantine: 2 needs 7 updates, but a round"),
    "multi_krum": (4, {"rule": {"name": "multi_krum", "byzantine": 1}}, "algorithm.rule.byzantine: 1 needs 5 updates"),
    "multi_krum keeps too many": (
        6, {"rule": {"name": "multi_krum", "byzantine": 1, "keep": 6}}, "algorithm.rule.keep: 6 needs 7 updates",
    ),
    "bulyan": (6, {"rule": {"name": "bulyan", "byzantine": 1}}, "algorithm.rule.byzantine: 1 needs 7 updates, but"),
    "mixing": (6, {"before": [MIXING]}, "algorithm.before[0].byzantine: 3 needs 7 updates, but a round asks for 6"),
    "buckets": (
        8, {"before": [{"name": "bucketing", "size": 2}], "rule": KRUM},
        "algorithm.before[0].size: 2 needs 9 updates, but a round asks for 8 learners. Lower it, or ask more learners.",
    ),
    "one bucket": (6, {"before": [{"name": "bucketing", "size": 6}]}, "before[0].size: 6 puts all 6 learners into one"),
    "nothing is cut off": (
        5, {"rule": {"name": "trimmed_mean", "share": 0.1}},
        "algorithm.rule.share: 0.1 of 5 values is less than one, so none is cut off. Use at least 0.2.",
    ),
    "nothing is cut off two": (2, {"rule": {"name": "trimmed_mean", "share": 0.4}}, "is cut off. Use the rule median."),
    "nothing is cut off buckets": (
        9, {"before": [{"name": "bucketing", "size": 3}], "rule": {"name": "trimmed_mean", "share": 0.2}},
        "algorithm.rule.share: 0.2 of 3 values is less than one",
    ),
}  # fmt: skip
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "half is cut off": ({"rule": {"name": "trimmed_mean", "share": 0.5}}, "rule.share: Expected `float` < 0.5. Write a"),
    "no f": ({"rule": "krum"}, "algorithm.rule: the key 'byzantine' is missing"),
    "a negative f": ({"rule": {"name": "krum", "byzantine": -1}}, "algorithm.rule.byzantine: Expected `int` >= 0"),
    "no length": ({"before": [{"name": "clip"}]}, "algorithm.before[0]: has neither norm nor quantile. Set one of"),
    "two lengths": ({"before": [{"name": "clip", "norm": 1, "quantile": 0.5}]}, "has both norm and quantile. Set one"),
    "an unknown step": ({"before": [{"name": "clop"}]}, "algorithm.before[0].name: Invalid value 'clop'. Valid: bucketing"),
    "a rule of ours in TFF": (
        {"engine": "tff", "rule": "median"},
        "algorithm.rule: 'median' is not a rule of TensorFlow Federated. Remove `engine: tff`.",
    ),
    "a step of ours in TFF": (
        {"engine": "tff", "before": [{"name": "clip", "norm": 1}]},
        "algorithm.before: is not supported by TensorFlow Federated",
    ),
    "a share of equal weights": (
        {"rule": "median", "most_share": 0.5},
        "algorithm.most_share: has no effect with median, which weighs all updates the same. Remove it.",
    ),
}  # fmt: skip


def federation_of(count: int, algorithm: dict[str, Any], **more: Any) -> Federation:
    return make_federation(
        tuple(f"l{k}" for k in range(count)), algorithm={"name": "averaging", **algorithm}, **more
    )  # fmt: skip


@pytest.mark.parametrize(("count", "algorithm", "message"), TOO_FEW.values(), ids=TOO_FEW.keys())
def test_a_rule_that_needs_more_learners(count: int, algorithm: dict[str, Any], message: str) -> None:
    with pytest.raises(FederationError) as caught:
        federation_of(count, algorithm)
    assert message in str(caught.value)


@pytest.mark.parametrize(("algorithm", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(algorithm: dict[str, Any], message: str) -> None:
    with pytest.raises(FederationError) as caught:
        federation_of(9, algorithm)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("count", "algorithm", "needed"),
    [
        (7, {"rule": {"name": "krum", "byzantine": 2}}, 7),
        (8, {"rule": {"name": "multi_krum", "byzantine": 1, "keep": 6}}, 7),
        (11, {"rule": {"name": "bulyan", "byzantine": 2}}, 11),
        (9, {"before": [MIXING], "rule": "median"}, 7),
        (9, {"before": [{"name": "bucketing", "size": 2}], "rule": KRUM}, 9),
        (9, {"before": [MIXING, {"name": "clip", "norm": 1}], "rule": "geometric_median"}, 7),
        (9, {"rule": {"name": "trimmed_mean", "share": 0.25}}, 5),
        (9, {"rule": {"name": "trimmed_mean", "share": 0.12}}, 9),
        (9, {"before": [{"name": "bucketing", "size": 2}], "rule": {"name": "trimmed_mean", "share": 0.25}}, 7),
    ],
)
def test_a_round_has_the_updates_that_the_rule_needs(count: int, algorithm: dict[str, Any], needed: int) -> None:
    """Otherwise a quorum of more than half."""
    assert federation_of(count, algorithm).min_updates == needed


def test_a_quorum_below_what_the_rule_needs() -> None:
    rule = {"rule": {"name": "krum", "byzantine": 2}}
    with pytest.raises(FederationError) as caught:
        federation_of(9, rule, quorum={"min_learners": 6})
    assert "quorum.min_learners: is 6, but krum needs 7 updates. Raise it to 7, or leave it out." in str(caught.value)
    assert federation_of(9, rule, quorum={"min_learners": 8}).min_updates == 8


def test_a_sample_of_the_learners_must_be_enough() -> None:
    with pytest.raises(FederationError, match="2 needs 7 updates, but a round asks for 5 learners"):
        federation_of(20, {"rule": {"name": "krum", "byzantine": 2}}, quorum={"learners_per_round": 5})
