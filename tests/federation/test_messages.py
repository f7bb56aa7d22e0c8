"""Each kind of message of msgspec becomes the path of the key, the mistake and the remedy."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from fedpipe.errors import FederationError
from fedpipe.federation.file import parse_federation

from .test_file import GOOD, PRIVACY, changed

LEARNER = {"name": "a", "data": "x.npz"}
MESSAGES = {
    "a long entry": (
        "export.classes", ["a", "b" * 101],
        "export.classes[1]: Expected `str` of length <= 100. Write at most 100 characters.",
    ),
    "an empty entry": (
        "export.classes", [""], "export.classes[0]: Expected `str` of length >= 1. Write at least one character."
    ),
    "an empty list": ("learners", [], "learners: Expected `array` of length >= 1. Write at least one entry."),
    "a long list": (
        "export.classes", ["x"] * 10_001,
        "export.classes: Expected `array` of length <= 10000. Write at most 10000 entries.",
    ),
    "text for a list": ("export.classes", "a", "export.classes: Expected `array`, got `str`. Write a list."),
    "no text or table": (
        "store", 3, "store: Expected `str | object`, got `int`. Write text or a table of keys and values."
    ),
    "an unknown key of a table or text": ("store", {"url": "x"}, "store: unknown key 'url'. Did you mean 'uri'?"),
    "a table or none": (
        "privacy", 3,
        "privacy: Expected `object | null`, got `int`. Write a table of keys and values, or leave the key out.",
    ),
    "true, false or none": (
        "training.early_stopping", {"patience": 1, "minimise": "no"},
        "training.early_stopping.minimise: Expected `bool | null`, got `str`. Write true or false, or leave the key",
    ),
    "a word or a number": (
        "training.rounds_per_step", "al", "training.rounds_per_step: Invalid enum value 'al'. Valid: all, a whole number."
    ),
    "a word or a number, which is neither": (
        "training.rounds_per_step", 1.5,
        "training.rounds_per_step: Expected `int | str`, got `float`. Valid: all, a whole number.",
    ),
    "a number for a word": ("framework", 1, "framework: Expected `str`, got `int`. Valid: custom, keras, numpy."),
    "a table of several kinds": (
        "data.shards", 5,
        "data.shards: Expected `object`, got `int`. Write a table of keys and values with 'by', one of dirichlet, fractions,",
    ),
    "a table without its kind": (
        "data.shards", {}, "data.shards: the key 'by' is missing. Add it, one of dirichlet, fractions, iid,"
    ),
    "a file without a function": (
        "model", "model:build", "model: does not name a function. Write FILE.py:FUNCTION, such as model.py:build."
    ),
    "a file or none": (
        "simulation.process", "p", "simulation.process: does not name a function. Write FILE.py:FUNCTION, or leave it empty."
    ),
    "an exported name": ("export.name", "A B", "export.name: not a safe name. Use at most 40 lower-case letters"),
    "cores by kind": (
        "placement", {"vote": {}, "train": {"cpu": "many"}},
        "placement.train.cpu: is not a number of cores. Write cores such as '4' or '500m', in quotes.",
    ),
    "cores as a number": (
        "placement", {"train": {"cpu": 4}},
        "placement.train.cpu: Expected `str`, got `int`. Write text, in quotes when it looks like a number.",
    ),
    "a size of memory": (
        "learners", [{**LEARNER, "placement": {"memory": "8 GB"}}],
        "learners[0].placement.memory: is not a size. Write a size such as '8Gi' or '500Mi', in quotes.",
    ),
    "a digest": ("images", {"digests": {"core": "x"}}, "images.digests.core: is not a digest. Write sha256: and 64"),
    "a key of a table of words": (
        "images", {"digests": {"cor": "x"}}, "images.digests: Invalid enum value 'cor'. Did you mean 'core'?"
    ),
    "a label": ("placement", {"train": {"labels": {"b": "x", "a": 1}}}, "placement.train.labels.a: Expected `str`, got `int`"),
    "a callback": ("training.callbacks", {"A": {}, "B": 3}, "training.callbacks.B: Expected `object`, got `int`. Write a table"),
    "a key of another kind": (
        "training.schedule", {"name": "step", "every": 2, "by": 0.5, "least": 0.1},
        "training.schedule: unknown key 'least' for step. cosine has it. Known keys: by, every, name, warm_up",
    ),
    "a name alone that needs settings": (
        "algorithm", {"name": "averaging", "before": ["bucketing"]},
        "algorithm.before[0]: the key 'size' is missing.",
    ),
    "a name alone that is unknown": (
        "training.schedule", "cosin", "training.schedule.name: Invalid value 'cosin'. Valid: constant, cosine, step.",
    ),
    "an abbreviation": ("training.lr", 1, "training: unknown key 'lr'. Did you mean 'learning_rate'?"),
    "a key unlike all": ("quorum.zzz", 1, "quorum: unknown key 'zzz'. Known keys: deadline, learners_per_round, min_learners"),
    "nothing for a section": ("quorum", "", "quorum: Expected `object`, got `str`. Write a table of keys and values."),
    "a weight": (
        "placement", {"train": {"affinity": [{"weight": 101, "expressions": [{"key": "x", "values": ["y"]}]}]}},
        "placement.train.affinity[0].weight: Expected `int` <= 100. Write a number <= 100.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), MESSAGES.values(), ids=MESSAGES.keys())
def test_messages(path: str, value: Any, message: str) -> None:
    with pytest.raises(FederationError) as caught:
        parse_federation(changed(path, value), where="f.yaml")
    assert str(caught.value).startswith(f"f.yaml: {message}")


FULL: dict[str, Any] = msgspec.to_builtins(
    parse_federation(
        {
            **GOOD,
            "learners": [
                {**LEARNER, "privacy": PRIVACY, "placement": {"tolerations": [{"key": "x"}], "accelerator": {"count": 2}}},
                {"name": "b"},
            ],
            "store": {"uri": "s3://bucket"},
            "privacy": PRIVACY,
            "algorithm": {"name": "averaging", "vote": {}, "engine": "tff", "weighting": "uniform",
                          "rule": {"name": "dp_fixed", "noise_multiplier": 1, "clip": 1}},
            "training": {**GOOD["training"], "early_stopping": {"patience": 1}, "fit": {"shuffle": False}},
            "placement": {"train": {"labels": {"a": "b"}, "affinity": [{"expressions": [{"key": "x", "values": ["y"]}]}]}},
            "simulation": {"client_optimizer": {"name": "adam", "learning_rate": 1}},
            "images": {"digests": {"core": f"sha256:{'0' * 64}"}},
            "export": {"classes": ["a"]},
        }
    )
)  # fmt: skip
WRONG: list[Any] = [
    None,
    True,
    -1,
    3,
    1e99,
    "",
    "x y",
    [],
    [1],
    [[]],
    {},
    {"x": 1},
    {"x": {}},
    {1: 2},
    float("nan"),
    b"x",
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@pytest.mark.parametrize("path", [p for p in places(FULL) if p], ids=lambda path: ".".join(map(str, path)))
def test_a_wrong_value_anywhere_names_its_place_and_a_remedy(path: tuple[Any, ...]) -> None:
    refused = []
    for wrong in WRONG:
        content = copy.deepcopy(FULL)
        place: Any = content
        for key in path[:-1]:
            place = place[key]
        if isinstance(place, tuple):
            return  # the list as a whole has its turn
        place[path[-1]] = wrong
        try:
            parse_federation(content, where="f.yaml")
        except FederationError as error:
            refused.append(error)
    assert refused
    for mistake in refused:
        assert mistake.remedy, str(mistake)
        assert str(path[0]) in str(mistake)
        assert not re.search(r"`\$|\[\.\.\.\]|`key`|regex", str(mistake))
