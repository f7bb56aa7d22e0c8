"""Secure sums in the federation file: defaults, and every combination that is refused with the path of its key."""

from __future__ import annotations

from typing import Any

import pytest

from fedpipe.errors import FederationError
from fedpipe.federation.algorithms import QuantileBound, SecureSums
from tests.federations import make_federation

NAMES = tuple(f"n{k}" for k in range(10))
PRIVATE = {"noise_multiplier": 1.0, "l2_norm_clip": 1.0, "microbatches": 4, "delta": 1e-5, "target_epsilon": 3.0}


def secure(names: tuple[str, ...] = NAMES, settings: Any = None, **more: Any) -> Any:
    algorithm = {"name": "averaging", "secure": settings or {}, **more.pop("algorithm", {})}
    training = {"rounds": 2, "batch_size": 4, "rounds_per_step": "all", **more.pop("training", {})}
    return make_federation(names, algorithm=algorithm, training=training, **more)


def test_defaults() -> None:
    federation = secure()
    assert federation.secure == SecureSums(bits=16, bound=1.0, most_clipped=0.01, norm=0.0, threshold=0)
    assert (federation.threshold, federation.min_updates) == (7, 7)
    assert federation.algorithm.norm_limit == 0, "nobody can compare norms"
    assert make_federation().secure is None
    assert make_federation().threshold == 0
    assert secure(settings={"threshold": 9}).min_updates == 9
    assert secure(quorum={"min_learners": 8}).min_updates == 8


def test_a_bound_that_follows_a_quantile() -> None:
    followed = secure(settings={"bound": {"quantile": 0.999}, "most_clipped": 0.001}).secure
    assert followed.bound == QuantileBound(quantile=0.999, margin=2.0, initial=1.0)


@pytest.mark.parametrize(("count", "threshold"), [(3, 3), (4, 3), (6, 5), (10, 7), (64, 43)])
def test_threshold(count: int, threshold: int) -> None:
    assert secure(tuple(f"n{k}" for k in range(count))).threshold == threshold


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ({"bits": 7}, {}, "algorithm.secure.bits"),
        ({"bits": 33}, {}, "algorithm.secure.bits"),
        ({"bound": 0}, {}, "algorithm.secure.bound"),
        ({"bound": 1e-13}, {}, "algorithm.secure.bound"),
        ({"bound": {"quantile": 0.999, "initial": 1e-13}}, {}, "algorithm.secure.bound.initial"),
        ({"bound": {"quantile": 1.0}}, {}, "algorithm.secure.bound.quantile"),
        ({"bound": {"quantile": 0.999, "margin": 0.5}}, {}, "algorithm.secure.bound.margin"),
        ({"bound": {"quantil": 0.999}}, {}, "unknown key 'quantil'. Did you mean 'quantile'"),
        ({"bound": {}}, {}, "algorithm.secure.bound: the key 'quantile' is missing"),
        ({"bound": "large"}, {}, "algorithm.secure.bound"),
        (
            {"bound": {"quantile": 0.98}},
            {},
            "algorithm.secure.bound.quantile: 0.98 lets more changes be clipped than most_clipped, 0.01",
        ),
        ({"most_clipped": 1.5}, {}, "algorithm.secure.most_clipped"),
        ({"norm": -1}, {}, "algorithm.secure.norm"),
        ({"treshold": 7}, {}, "unknown key 'treshold'. Did you mean 'threshold'"),
        ({"threshold": 5}, {}, "algorithm.secure.threshold: is 5, but 10 learners need 7 to 10"),
        ({"threshold": 11}, {}, "algorithm.secure.threshold: is 11, but 10 learners need 7 to 10"),
        ({}, {"algorithm": {"rule": "median"}}, "algorithm.rule: cannot be combined with algorithm.secure"),
        ({}, {"algorithm": {"rule": {"name": "krum", "byzantine": 1}}}, "algorithm.rule: cannot be combined"),
        ({}, {"algorithm": {"before": [{"name": "clip", "norm": 1.0}]}}, "algorithm.before: cannot be combined"),
        ({}, {"algorithm": {"engine": "tff"}}, "algorithm.engine: cannot be combined"),
        ({}, {"algorithm": {"engine": "tff", "rule": "compression"}}, "algorithm.rule: cannot be combined"),
        ({}, {"algorithm": {"vote": {}}}, "algorithm.vote: cannot be combined"),
        ({}, {"algorithm": {"most_share": 0.5}}, "algorithm.most_share: cannot be combined"),
        ({}, {"training": {"rounds_per_step": 1}}, "training.rounds_per_step: 1 cannot be combined"),
        ({}, {"quorum": {"learners_per_round": 5}}, "quorum.learners_per_round: cannot be combined"),
        ({}, {"share": "trainable"}, "share: cannot be combined with algorithm.secure yet"),
        ({}, {"training": {"method": {"name": "ditto", "lambda": 0.5}}}, "training.method: ditto cannot be combined"),
        ({}, {"training": {"method": "fednova"}}, "training.method: fednova cannot be combined"),
        ({}, {"training": {"optimizer": "keep"}}, "training.optimizer: keep cannot be combined"),
        (
            {},
            {"export": {"choose": "best", "metric": "accuracy"}},
            "export.choose: best cannot be combined with algorithm.secure",
        ),
    ],
)
def test_combinations_that_are_refused(settings: Any, more: Any, message: str) -> None:
    with pytest.raises(FederationError) as caught:
        secure(settings=settings, **more)
    assert message in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (2, "algorithm.secure: needs 3 learners, but there are 2"),
        (65, "algorithm.secure: takes 64 learners at most, but there are 65"),
    ],
)
def test_numbers_of_learners_that_are_refused(count: int, message: str) -> None:
    with pytest.raises(FederationError, match=message):
        secure(tuple(f"n{k}" for k in range(count)))


def test_collective_learning_has_no_sums() -> None:
    with pytest.raises(FederationError, match="unknown key 'secure' for collective") as caught:
        make_federation(algorithm={"name": "collective", "secure": {}})
    assert "Sums hide single proposals, on which learners would vote." in str(caught.value.remedy)


@pytest.mark.parametrize(
    "more",
    [{"algorithm": {"rule": {"name": "krum", "byzantine": 4}}}, {"names": ("a", "b"), "quorum": {"min_learners": 3}}],
)
def test_the_reason_comes_before_remedies_that_would_not_help(more: Any) -> None:
    with pytest.raises(FederationError, match=r"algorithm\.(rule|secure): (cannot be combined|needs 3 learners)"):
        secure(**more)


@pytest.mark.parametrize(("threshold", "remedy"), [(6, "less than two thirds"), (11, "no sum can have so many")])
def test_what_is_wrong_with_a_threshold(threshold: int, remedy: str) -> None:
    with pytest.raises(FederationError) as caught:
        secure(settings={"threshold": threshold})
    assert remedy in str(caught.value.remedy)


def test_own_data_needs_a_largest_number_of_examples() -> None:
    learners = [{"name": "a", "data": "a.npz"}, {"name": "b"}, {"name": "c"}]
    with pytest.raises(FederationError, match=r"algorithm.most_examples: is missing, and learners\[0\] has data"):
        secure(learners=learners)
    assert secure(learners=learners, algorithm={"most_examples": 100}).secure
    assert secure(learners=learners, algorithm={"weighting": "uniform"}).secure


def test_private_training_is_allowed() -> None:
    assert secure(privacy=PRIVATE).privacy_of("n3").target_epsilon == 3.0


def test_fedprox_is_allowed() -> None:
    assert secure(training={"method": {"name": "fedprox", "mu": 0.1}, "learning_rate": 0.1}).secure
