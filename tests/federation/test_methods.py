"""Methods of training and shared weights: short forms, and combinations that are refused with the path of the key."""

from __future__ import annotations

from typing import Any

import pytest

from fedpipe.errors import FederationError
from fedpipe.federation.methods import Ditto, FedProx, Scaffold, Sharing
from tests.federations import make_federation

PLAIN: dict[str, Any] = {"rounds": 1, "batch_size": 4, "learning_rate": 0.1}
PRIVATE = {"noise_multiplier": 1.0, "l2_norm_clip": 1.0, "microbatches": 4, "delta": 1e-5, "target_epsilon": 3.0}
DITTO = {"name": "ditto", "lambda": 0.5}
PROX = {"name": "fedprox", "mu": 0.5}


def test_what_a_file_may_say() -> None:
    assert make_federation(training={**PLAIN, "method": "scaffold"}).method == Scaffold()
    assert make_federation(training={**PLAIN, "method": DITTO}).method == Ditto(strength=0.5)
    assert make_federation(training={**PLAIN, "method": PROX}, algorithm="collective").method == FedProx(mu=0.5)
    assert make_federation(share={"local": ["a*"]}).share == Sharing(local=("a*",))
    assert make_federation(training={**PLAIN, "method": "fednova"}, privacy=PRIVATE).privacy
    both = make_federation(share="trainable", training={**PLAIN, "method": "scaffold"})
    assert both.personal


@pytest.mark.parametrize(
    ("training", "more", "message"),
    [
        ({}, {"share": "trainable", "algorithm": "collective"}, "share: needs averaging"),
        ({}, {"share": "trainable", "privacy": PRIVATE}, "share: cannot be combined with privacy"),
        ({"method": DITTO}, {"share": "trainable"}, "share: cannot be combined with ditto"),
        ({"method": DITTO}, {"algorithm": "collective"}, "training.method: ditto needs averaging"),
        ({"method": PROX}, {"privacy": PRIVATE}, "training.method: fedprox cannot be combined with privacy"),
        ({"method": "scaffold"}, {"privacy": PRIVATE}, "training.method: scaffold cannot be combined with privacy"),
        ({"clip_norm": 1.0}, {"privacy": PRIVATE}, "training.clip_norm: cannot be combined with privacy"),
        ({"accumulate": 2}, {"privacy": PRIVATE}, "training.accumulate: cannot be combined with privacy"),
        ({"method": PROX}, {"framework": "custom"}, "training.method: cannot be combined with framework: custom"),
        ({"clip_norm": 1.0}, {"framework": "custom"}, "training.clip_norm: cannot be combined with framework: custom"),
        ({"accumulate": 2}, {"framework": "custom"}, "training.accumulate: cannot be combined with framework: custom"),
        ({}, {"share": "trainable", "framework": "custom"}, "share: trainable needs Keras"),
        ({"method": "scaffold", "learning_rate": 0}, {}, "training.learning_rate: is missing, and scaffold needs it"),
        ({"method": "scaffold", "clip_norm": 1.0}, {}, "training.clip_norm: cannot be combined with scaffold"),
        ({"method": "fednova", "preprocessing": "batch(2)"}, {}, "training.preprocessing: cannot be combined with fed"),
        ({"method": "scaffold", "callbacks": {"EarlyStopping": {}}}, {}, "training.callbacks: cannot be combined"),
        ({"method": "fednova", "fit": {"validation_split": 0.1}}, {}, "training.fit.validation_split: cannot be comb"),
        ({"method": "fednova", "accumulate": 2, "optimizer": "keep"}, {}, "training.optimizer: must be reset for fed"),
        ({"method": "scaffold"}, {"algorithm": {"name": "averaging", "most_share": 0.5}}, "algorithm.most_share: can"),
        ({"method": "fednova"}, {"algorithm": {"name": "averaging", "engine": "tff"}}, "algorithm.engine: must be fed"),
        (
            {"method": "scaffold"},
            {"algorithm": {"name": "averaging", "engine": "tff", "rule": "robust"}},
            "algorithm.rule: must be mean for scaffold",
        ),
        ({"exchange": {"as": "weights", "dtype": "int8"}}, {}, "training.exchange.as: must be delta for int8"),
        ({"exchange": {}}, {"algorithm": "collective"}, "training.exchange: needs averaging"),
        (
            {"exchange": {}},
            {"algorithm": {"name": "averaging", "engine": "tff"}},
            "training.exchange: needs engine: fedpipe",
        ),
        ({"exchange": {}, "method": "scaffold"}, {}, "training.exchange: cannot be combined with scaffold"),
        (
            {"exchange": {"dtype": "int4"}},
            {},
            "training.exchange.dtype: Invalid enum value 'int4'. Valid: bfloat16, float32, int8",
        ),
        ({"exchange": {"dtyp": "int8"}}, {}, "training.exchange: unknown key 'dtyp'. Did you mean 'dtype'?"),
        ({"method": "ditto"}, {}, "training.method: the key 'lambda' is missing"),
        ({"method": {"name": "ditto", "lamda": 1}}, {}, "training.method: unknown key 'lamda'. Did you mean 'lambda'?"),
        ({"method": {"name": "fedprox", "mu": 0}}, {}, r"training.method.mu: Expected `float` > 0.0"),
        ({"method": "fedprix"}, {}, "training.method.name: Invalid value 'fedprix'. Valid: ditto, fednova, fedprox"),
        ({"accumulate": 0}, {}, r"training.accumulate: Expected `int` >= 1"),
        ({}, {"share": {"local": []}}, r"share.local: Expected `array` of length >= 1"),
        ({}, {"share": "trainables"}, "share: Invalid enum value 'trainables'"),
    ],
)
def test_combinations_that_are_refused(training: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(FederationError) as caught:
        make_federation(training={**PLAIN, **training}, **more)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
