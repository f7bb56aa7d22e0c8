"""Values that JSON has not are refused, except keys that are whole numbers, which are carried exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedpipe.compiled.compiler import as_json
from fedpipe.errors import FederationError
from fedpipe.federation.federation import Federation
from fedpipe.federation.file import parse_federation, read_federation
from fedpipe.federation.training import Training
from fedpipe.federation.values import as_arguments
from fedpipe.steps.shard import read
from fedpipe.store.objects import decode, encode

HEAD = "name: digits\nlearners: [{name: a, data: a.npz}]\n"


def written(folder: Path, training: str, more: str = "") -> Path:
    path = folder / "federation.yaml"
    path.write_text(f"{HEAD}training: {{rounds: 1, batch_size: 1, {training}}}\n{more}")
    return path


def test_weights_of_classes_reach_a_step_as_they_were_written(tmp_path: Path) -> None:
    federation = read_federation(written(tmp_path, "fit: {class_weight: {0: 1.0, 1: 2.0, -3: 0.5}}"))
    for carried in (read(as_json(federation)), decode(encode(federation), Federation, where="here")):
        assert carried.training == federation.training
        found = as_arguments(carried.training.fit)
        assert found == {"class_weight": {0: 1.0, 1: 2.0, -3: 0.5}}
        assert all(type(key) is int for key in found["class_weight"])


def test_callbacks_too(tmp_path: Path) -> None:
    federation = read_federation(written(tmp_path, "callbacks: {Schedule: {rates: {10: [0.1, null, true]}}}"))
    assert as_arguments(read(as_json(federation)).training.callbacks) == {
        "Schedule": {"rates": {10: [0.1, None, True]}}
    }


def test_arguments_from_python_are_carried_too() -> None:
    training = Training(rounds=1, batch_size=1, fit={"class_weight": {0: 1.0}, "shape": (1, 2)})
    assert decode(encode(training), Training, where="here") == training
    assert as_arguments(training.fit) == {"class_weight": {0: 1.0}, "shape": [1, 2]}


def test_only_whole_numbers_become_numbers_again() -> None:
    names = {"01": 1, "1.5": 2, "x": 3, "-0": 4, "": 5}
    assert as_arguments(names) == names


REFUSED = {
    "a date": ("fit: {a: 2024-01-31}", "training.fit.a: is a date, not text. Write it in quotes."),
    "a time": ("fit: {a: 2024-01-31T10:00:00Z}", "training.fit.a: is a date, not text"),
    "a date as a key": ("fit: {a: {2024-01-31: 1}}", "training.fit.a: the key 2024-01-31 is not text"),
    "binary": ("fit: {a: !!binary aGk=}", "training.fit.a: is binary data"),
    "a set": ("fit: {a: !!set {x, y}}", "training.fit.a: is a set. Write a list."),
    "infinity in a list": ("fit: {a: [1, [2, .inf]]}", "training.fit.a[1][1]: is inf, not a finite number"),
    "a key that is true": ("fit: {a: {yes: 1}}", "training.fit.a: the key true is not text. Write it in quotes."),
    "a key that is nothing": ("fit: {a: {~: 1}}", "training.fit.a: the key null is not text"),
    "a key with a fraction": ("fit: {class_weight: {0.5: 1}}", "training.fit.class_weight: the key 0.5 is not text"),
    "a huge key": ("fit: {a: {1000000000000000000: 1}}", "training.fit.a: the key 1000000000000000000 is not text"),
    "an argument that is a number": ("fit: {0: 1}", "training.fit: the key 0 is not text"),
    "a callback that is a number": ("callbacks: {0: {}}", "training.callbacks: the key 0 is not text"),
    "a callback's argument that is a number": ("callbacks: {A: {0: 1}}", "training.callbacks.A: the key 0 is not text"),
    "a key twice": ("fit: {a: {1: 1, '1': 2}}", "training.fit.a: the key 1 is written twice"),
    "a key of a section": ("1: 2", "training: the key 1 is not text"),
    "deep": (f"fit: {{a: {'[' * 60}{']' * 60}}}", "is nested too deeply"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_values_that_json_has_not(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FederationError) as caught:
        read_federation(written(tmp_path, text))
    assert message in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("export: {classes: [2024-01-31]}", "export.classes[0]: is a date"),
        ("placement: {train: {labels: {on: x}}}", "placement.train.labels: the key true is not text"),
        ("placement: {train: {labels: {a: 1}}}", "placement.train.labels.a: Expected `str`, got `int`"),
        ("1: 2", "the key 1 is not text"),
        ("store: !!binary aGk=", "store: is binary data"),
    ],
)
def test_anywhere_in_the_file(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(FederationError) as caught:
        read_federation(written(tmp_path, "seed: 1", more))
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), complex(1, 2)])
def test_values_of_python(value: Any) -> None:
    content = {"name": "a", "learners": [{"name": "a", "data": "x.npz"}]}
    with pytest.raises(FederationError, match=r"federation: training\.fit\.a: is "):
        parse_federation({**content, "training": {"rounds": 1, "batch_size": 1, "fit": {"a": value}}})
