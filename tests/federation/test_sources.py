"""A federation from a file, a dictionary or typed objects, with changes of single keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpipe.errors import FederationError
from fedpipe.federation.algorithms import Averaging, Collective
from fedpipe.federation.data import Data
from fedpipe.federation.federation import Federation, LearnerSettings
from fedpipe.federation.file import read_federation
from fedpipe.federation.loading import load
from fedpipe.federation.sources import read_source
from fedpipe.federation.training import Training

CONTENT: dict[str, Any] = {
    "name": "demo",
    "learners": [{"name": "a"}, {"name": "b"}],
    "data": {"uri": "digits.npz"},
    "training": {"rounds": 5, "batch_size": 32, "fit": {"class_weight": {0: 1.0, 1: 2.0}}},
}


def test_a_dictionary_is_read_as_a_file_is(numpy_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = numpy_digits / "federation.yaml"
    monkeypatch.chdir(numpy_digits)
    assert read_source(load(path)) == read_source(path) == read_federation(path)


def test_typed_objects_are_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed = Federation(
        name="demo",
        learners=(LearnerSettings(name="a"), LearnerSettings(name="b")),
        data=Data(uri="digits.npz"),
        training=Training(rounds=5, batch_size=32, fit={"class_weight": {0: 1.0, 1: 2.0}}),
    )
    assert read_source(typed) == read_source(CONTENT)
    assert read_source(read_source(typed)) == read_source(typed)
    assert read_source(typed).data.uri == str(tmp_path / "digits.npz")
    wrong = Federation(name="no name", learners=typed.learners, training=typed.training)
    with pytest.raises(FederationError, match=r"federation: name: not a safe name"):
        read_source(wrong)


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"rounds": np.int64(2)}},
        {"training": Training(rounds=2, batch_size=32, fit={"class_weight": {0: 1.0, 1: 2.0}})},
    ],
)
def test_changes_are_merged(changes: dict[str, Any]) -> None:
    found = read_source(CONTENT, changes).training
    assert (found.rounds, found.batch_size) == (2, 32)
    assert CONTENT["training"]["rounds"] == 5


def test_lists_are_replaced() -> None:
    found = read_source(CONTENT, {"learners": [{"name": "c"}]})
    assert [learner.name for learner in found.learners] == ["c"]


def test_another_algorithm_has_settings_of_its_own() -> None:
    base = {
        **CONTENT,
        "algorithm": {"name": "averaging", "engine": "tff", "server_optimizer": {"name": "adam", "learning_rate": 0.1}},
    }
    assert isinstance(read_source(base, {"algorithm": "collective"}).algorithm, Collective)
    kept = read_source(base, {"algorithm": {"weighting": "uniform"}}).algorithm
    assert isinstance(kept, Averaging)
    assert kept.server_optimizer.learning_rate == 0.1
    plain = read_source(base, {"algorithm": {"server_optimizer": "sgd"}}).algorithm
    assert isinstance(plain, Averaging)
    assert plain.server_optimizer.learning_rate == 1.0
    assert isinstance(read_source(CONTENT, {"algorithm": {"weighting": "uniform"}}).algorithm, Averaging)


RATE = {"rounds": 5, "batch_size": 32, "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("section", "key", "before", "change", "same"),
    [
        ("training", "schedule", {"name": "cosine", "least": 0.1}, {"name": "step", "every": 2, "by": 0.5}, None),
        ("training", "schedule", {"name": "cosine", "least": 0.1}, "constant", {"name": "constant"}),
        ("training", "schedule", "cosine", {"least": 0.1}, {"name": "cosine", "least": 0.1}),
        ("training", "schedule", None, "cosine", {"name": "cosine"}),
        ("training", "method", {"name": "ditto", "lambda": 0.5}, "scaffold", {"name": "scaffold"}),
        ("algorithm", "schedule", {"name": "cosine", "least": 0.1}, "constant", {"name": "constant"}),
        ("algorithm", "before", ["bucketing"], [{"name": "clip", "norm": 1.0}], None),
        ("algorithm", "rule", {"name": "krum", "bad": 0}, "median", {"name": "median"}),
        ("data", "shards", {"by": "dirichlet", "alpha": 0.5}, "iid", {"by": "iid"}),
        ("data", "shards", {"by": "dirichlet", "alpha": 0.5}, {"alpha": 0.2}, {"by": "dirichlet", "alpha": 0.2}),
        ("simulation", "client_optimizer", {"name": "adam", "learning_rate": 0.1, "epsilon": 0.1},
         {"name": "sgd", "learning_rate": 0.2}, None),
    ],
)  # fmt: skip
def test_another_choice_has_settings_of_its_own(section: str, key: str, before: Any, change: Any, same: Any) -> None:
    base = {**CONTENT, "training": RATE, section: {**({"training": RATE}.get(section) or CONTENT.get(section, {}))}}
    base[section] |= {key: before} | ({"name": "averaging"} if section == "algorithm" else {})
    wanted = {**base, section: {**base[section], key: change if same is None else same}}
    assert read_source(base, {section: {key: change}}) == read_source(wanted)


def test_a_short_store_gets_an_endpoint() -> None:
    found = read_source({**CONTENT, "store": "s3://bucket/prefix"}, {"store": {"endpoint": "http://minio:9000"}})
    assert found.store_uri == "s3://bucket/prefix?endpoint=http://minio:9000&region=us-east-1"


def test_paths_start_where_they_were_written(
    numpy_digits: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    changes = {
        "store": Path("here"), "data": {"uri": "mine.npz"}, "simulation": {"process": "p.py:f"},
        "learners": [{"name": "a", "data": "a.npz"}, {"name": "b", "data": "s3://b/b.npz"}, {"name": "c"}],
    }  # fmt: skip
    found, here = read_source(numpy_digits / "federation.yaml", changes), tmp_path / "elsewhere"
    assert found.model == f"{numpy_digits}/model.py:build"
    assert found.store_uri == f"file://{here}/here"
    assert found.data.uri == f"{here}/mine.npz"
    assert found.simulation.process == f"{here}/p.py:f"
    assert [learner.data for learner in found.learners] == [f"{here}/a.npz", "s3://b/b.npz", ""]
    changed = read_source(numpy_digits / "federation.yaml", {"model": "other.py", "store": {"uri": "x"}})
    assert (changed.model, changed.store_uri) == (f"{here}/other.py:build", f"file://{here}/x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainin": {}}, r"unknown key 'trainin'\. Did you mean 'training'\?"),
        ({"training": {"round": 1}}, r"training: unknown key 'round'\. Did you mean 'rounds'\?"),
        ({"training": {"rounds": "x"}}, r"training\.rounds: Expected `int`, got `str`"),
        ({"training": {"rounds": 0}}, r"training\.rounds: Expected `int` >= 1"),
        ({"training": 5}, r"training: Expected `object`"),
        ({"training": {"rounds": print}}, r"federation: training\.rounds: is an object of the type builtin_function"),
        ({"learners": [{"name": "a", "data": np.ones(2)}]}, r"learners\[0\]\.data: is an object of the type ndarray"),
        ({"store": object()}, r"federation: store: is an object of the type object"),
        ({"algorithm": "avergaging"}, r"algorithm\.name: .*Valid: averaging, collective"),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str, numpy_digits: Path) -> None:
    for source in (CONTENT, read_source(CONTENT), numpy_digits / "federation.yaml"):
        with pytest.raises(FederationError, match=message):
            read_source(source, changes)


@pytest.mark.parametrize("source", [{}, {"name": "x"}])
def test_incomplete_dictionaries(source: dict[str, Any]) -> None:
    with pytest.raises(FederationError, match=r"the key '.*' is missing"):
        read_source(source)


def test_an_object_that_contains_itself() -> None:
    table: dict[str, Any] = {**CONTENT}
    table["training"] = {"rounds": 5, "batch_size": 32, "fit": {"again": [table]}}
    with pytest.raises(FederationError, match=r"federation: training: has more than 50 levels\. Write fewer"):
        read_source(table)
    with pytest.raises(FederationError, match="federation: training: has more than 50 levels"):
        read_source(CONTENT, {"training": table["training"]})
