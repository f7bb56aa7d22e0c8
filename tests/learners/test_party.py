"""The rows of a split network's parties: what they hold, and mistakes in it that are found before a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpipe.engine.preflight import check
from fedpipe.errors import DataError, FederationError, InputError
from fedpipe.federation.federation import Federation
from fedpipe.learners.party import held_rows, read_rows
from tests.federations import make_federation

CODE = """
import keras

def bottom(party):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.compile(optimizer="sgd")
    return model

def top():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
    model.compile(optimizer="sgd", loss="sparse_categorical_crossentropy")
    return model
"""
X = np.arange(40, dtype=np.float32).reshape(20, 2)
Y = np.arange(20) % 2
IDS = np.array([f"p{k}" for k in range(20)])


def parties(folder: Path, alice: Any = None, bob: Any = None, **more: Any) -> Federation:
    np.savez(folder / "alice.npz", **{"x": X, "id": IDS, **(alice or {})})
    np.savez(folder / "bob.npz", **{"y": Y, "id": IDS, **(bob or {})})
    algorithm = {"name": "split", "label_party": "bob", "ids": "id", "batch_size": 4, **more.pop("algorithm", {})}
    learners = [{"name": name, "data": str(folder / f"{name}.npz")} for name in ("alice", "bob")]
    return make_federation(
        **{"learners": learners, "algorithm": algorithm, "training": {"rounds": 1}, "data": {}, **more}
    )


def test_parties_split_their_rows_alike(tmp_path: Path) -> None:
    federation = parties(tmp_path)
    alice, bob = (held_rows(federation, name, None) for name in ("alice", "bob"))
    assert alice.y is None
    assert bob.x is None
    assert alice.order == bob.order
    for part in ("train", "vote", "test"):
        np.testing.assert_array_equal(alice.parts[part], bob.parts[part])
    assert [len(alice.parts[part]) for part in ("train", "vote", "test")] == [16, 2, 2]


def test_columns_of_a_sheet_are_features_but_for_labels_and_ids(tmp_path: Path) -> None:
    (tmp_path / "alice.csv").write_text("id,age,dose\np1,1,0.5\np2,2,1.5\n")
    (tmp_path / "bob.csv").write_text("ill,id,weight\n1,p1,70\n0,p2,80\n")
    learners = [{"name": name, "data": str(tmp_path / f"{name}.csv")} for name in ("alice", "bob")]
    federation = parties(tmp_path, learners=learners, data={"labels": "ill"}, algorithm={"label_party_features": True})
    alice, bob = (read_rows(federation, name, None) for name in ("alice", "bob"))
    assert alice.x is not None
    assert bob.x is not None
    assert alice.x.tolist() == [[1, 0.5], [2, 1.5]]
    assert bob.x.tolist() == [[70], [80]]
    assert bob.y is not None
    assert bob.y.tolist() == [1, 0]
    assert [list(found.ids if found.ids is not None else ()) for found in (alice, bob)] == [["p1", "p2"]] * 2


def test_load_of_the_users_file_gives_arrays_by_name(tmp_path: Path) -> None:
    module = type("module", (), {"load": staticmethod(lambda uri: {"x": X, "y": Y, "id": np.arange(20)})})
    federation = parties(tmp_path)
    assert held_rows(federation, "alice", module).order == held_rows(federation, "bob", module).order  # type: ignore[arg-type]
    module.load = staticmethod(lambda uri: (X, Y))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="returns tuple, not arrays by name"):
        held_rows(federation, "alice", module)  # type: ignore[arg-type]


DATA: dict[str, tuple[Any, Any, str]] = {
    "no ids": ({}, {"id": np.array([""] * 20)}, "20 rows have no id"),
    "doubled ids": ({"id": np.array(["p1"] * 20)}, {}, "19 ids are doubled"),
    "another order": ({"id": IDS[::-1]}, {}, "the ids are not those of alice, in the same order"),
    "fewer rows": ({"x": X[:10], "id": IDS[:10]}, {}, "there are 20 rows, but alice has 10"),
    "a batch larger than the rows": (
        {"x": X[:4], "id": IDS[:4]},
        {},
        "there are 3 train rows, fewer than a batch of 4",
    ),
    "rows without ids": ({"x": X[:10]}, {}, "the numbers of rows differ: 10 in 'x', 20 in 'id'"),
    "NaN": ({"x": X * np.float32("nan")}, {}, "the features contain NaN or infinity, first in row 1"),
    "text as labels": ({}, {"y": IDS}, "the labels are text"),
    "ids that are numbers with a fraction": ({"id": X[:, 0] / 4}, {}, "the ids are not whole numbers or text"),
    "ids that are too large for their type": ({"id": X[:, 0] + 2.0**60}, {}, "the ids are not whole numbers or text"),
    "ids that are not in a row": ({"id": X}, {}, "the ids are not whole numbers or text"),
    "ids that are infinite": ({"id": np.full(20, np.inf)}, {}, "the ids are not whole numbers or text"),
    "ids of which some are missing": ({"id": np.where(X[:, 0] == 4, np.nan, X[:, 0])}, {}, "1 rows have no id"),
    "ids that differ by spaces only": ({"id": np.array(["p1", "p1 ", *IDS[2:]])}, {}, "1 ids are doubled"),
}


@pytest.mark.parametrize(("alice", "bob", "what"), DATA.values(), ids=DATA.keys())
def test_mistakes_in_the_rows_are_found_before_a_run(tmp_path: Path, alice: Any, bob: Any, what: str) -> None:
    federation = parties(tmp_path, alice, bob)
    with pytest.raises(DataError) as caught:
        check(federation, CODE, "", "")
    assert what in caught.value.what
    assert caught.value.where is not None
    assert caught.value.where.startswith("learners[")
    assert caught.value.remedy
    assert caught.value.exit_code == 2


SAME = {
    "numbers and texts": (np.arange(20), np.arange(20).astype(str)),
    "floats and numbers": (np.arange(20.0), np.arange(20)),
    "texts of floats": (np.array([f"{k}.0" for k in range(20)]), np.arange(20)),
    "spaces": (np.array([f" {k}  " for k in range(20)]), np.arange(20)),
    "bytes": (np.arange(20).astype("S"), np.arange(20).astype("U")),
    "composed letters": (
        np.array([f"Zo\u00eb {k}" for k in range(20)]),
        np.array([f"Zoe\u0308 {k}" for k in range(20)]),
    ),
}


@pytest.mark.parametrize(("alice", "bob"), SAME.values(), ids=SAME.keys())
def test_ids_that_are_written_in_another_way_are_the_same(tmp_path: Path, alice: Any, bob: Any) -> None:
    federation = parties(tmp_path, {"id": alice}, {"id": bob})
    assert held_rows(federation, "alice", None).order == held_rows(federation, "bob", None).order


def test_ids_with_other_zeros_are_others(tmp_path: Path) -> None:
    federation = parties(tmp_path, {"id": np.array([f"{k:03}" for k in range(20)])}, {"id": np.arange(20)})
    assert held_rows(federation, "alice", None).order != held_rows(federation, "bob", None).order


def aligned(folder: Path, alice: Any = None, bob: Any = None, **more: Any) -> Federation:
    return parties(folder, alice, bob, algorithm={"align": "intersection", **more})


def test_a_check_tells_how_many_rows_are_common(tmp_path: Path) -> None:
    federation = aligned(tmp_path, {"id": IDS[::-1]}, {"id": np.array([*IDS[:15], *"abcde"])})
    found = {checked.subject: checked.what for checked in check(federation, CODE, "", "")}
    assert found["alice"] == found["bob"] == "12 train, 2 vote, 1 test; 15 of 20 rows are common to all"


FEW: dict[str, tuple[Any, str]] = {
    "none": ({"id": np.arange(20)}, "no id is common to all parties"),
    "fewer than a batch": ({"id": np.array([*IDS[:3], *map(str, range(17))])}, "there are 2 train rows, fewer than a batch of 4"),
    "ids that are doubled": ({"id": np.array(["p1", *IDS[1:]])}, "1 ids are doubled"),
    "rows without an id": ({"id": np.array(["", *IDS[1:]])}, "1 rows have no id"),
}  # fmt: skip


@pytest.mark.parametrize(("bob", "what"), FEW.values(), ids=FEW.keys())
def test_rows_that_cannot_be_aligned_are_found_before_a_run(tmp_path: Path, bob: Any, what: str) -> None:
    with pytest.raises(DataError) as caught:
        check(aligned(tmp_path, None, bob), CODE, "", "")
    assert what in str(caught.value)
    assert caught.value.remedy
    assert caught.value.exit_code == 2


def test_a_party_whose_file_is_elsewhere_is_not_compared(tmp_path: Path) -> None:
    federation = aligned(tmp_path)
    (tmp_path / "bob.npz").unlink()
    elsewhere = make_federation(
        learners=[{"name": "alice", "data": str(tmp_path / "alice.npz")}, {"name": "bob", "data": "s3://bob/rows.npz"}],
        algorithm={"name": "split", "label_party": "bob", "ids": "id", "align": "intersection", "batch_size": 4},
        training={"rounds": 1}, data={},
    )  # fmt: skip
    assert federation.split == elsewhere.split
    found = {checked.subject: checked.what for checked in check(elsewhere, CODE, "", "")}
    assert found["alice"] == "16 train, 2 vote, 2 test"
    assert found["bob"].startswith("not read: ")


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    federation = parties(tmp_path, algorithm={"ids": "patient"})
    with pytest.raises(DataError, match=r"there is no array 'patient'. Set algorithm.ids"):
        held_rows(federation, "alice", None)
    with pytest.raises(DataError, match=r"there is no array 'y'\. .* algorithm.label_party to the party that has them"):
        held_rows(parties(tmp_path, algorithm={"label_party": "alice"}), "alice", None)
    with pytest.raises(DataError, match="there is no array 'x'"):
        held_rows(parties(tmp_path, algorithm={"label_party_features": True}), "bob", None)


MODELS: dict[str, tuple[str, str, str]] = {
    "parts that do not fit": ("Dense(3)", "Dense(4)", 'bottom("alice") returns float32 [4] a row, but top() takes float32 [3]'),
    "a party without a part": ("    model = keras.Sequential([keras.Input((2,))", "    return None\n    model = keras.Sequential([keras.Input((2,))", 'bottom("alice") returns None'),
    "no bottom": ("def bottom", "def lower", "there is no function 'bottom'"),
    "no top": ("def top", "def upper", "there is no function 'top'"),
    "a part that is not compiled": ('    model.compile(optimizer="sgd")\n', "", "the model is not compiled"),
    "columns that the bottom does not take": ("keras.Input((2,))", "keras.Input((5,))", 'bottom("alice") does not fit its rows: the features have shape (2,), but'),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "what"), MODELS.values(), ids=MODELS.keys())
def test_mistakes_in_the_parts_are_found_before_a_run(tmp_path: Path, old: str, new: str, what: str) -> None:
    assert CODE.count(old) == 1
    with pytest.raises(InputError) as caught:
        check(parties(tmp_path), CODE.replace(old, new), "", "")
    assert what in str(caught.value)
    assert caught.value.remedy
    assert caught.value.where
    assert caught.value.exit_code == 2


def test_sound_parties_pass(tmp_path: Path) -> None:
    found = {checked.subject: checked.what for checked in check(parties(tmp_path), CODE, "", "")}
    assert found["alice"] == found["bob"] == "16 train, 2 vote, 2 test"
    assert found["model"].startswith("17 parameters")


SETTINGS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no such party": (lambda f: f["algorithm"].update(label_party="carol"), "algorithm.label_party: there is no learner"),
    "two label parties": (lambda f: f["algorithm"].update(label_party=["a", "b"]), "algorithm.label_party: Expected `str`"),
    "no label party": (lambda f: f["algorithm"].pop("label_party"), "the key 'label_party' is missing"),
    "an unknown exchange": (lambda f: f["algorithm"].update(exchange="int4"), "algorithm.exchange: Invalid"),
    "no features": (lambda f: f["learners"].pop(0), "learners: no party holds features"),
    "no data": (lambda f: f["learners"][0].pop("data"), "learners[0].data: is missing"),
    "two sizes": (lambda f: f["training"].update(batch_size=8), "algorithm.batch_size: is 4, but training.batch_size is 8"),
    "privacy": (
        lambda f: f.update(privacy={"noise_multiplier": 1, "l2_norm_clip": 1, "microbatches": 1, "delta": 1e-4, "target_epsilon": 1}),
        "privacy: cannot be combined with split learning",
    ),
    "single steps": (lambda f: f["training"].update(rounds_per_step=1), "training.rounds_per_step: is 1"),
    "a quorum": (lambda f: f.update(quorum={"min_learners": 1}), "quorum.min_learners: must be all parties"),
    "another framework": (lambda f: f.update(framework="numpy"), "framework: cannot be combined"),
    "a method": (lambda f: f["training"].update(method="fedprox"), "training.method"),
    "updates in fewer bytes": (lambda f: f["training"].update(exchange={"dtype": "int8"}), "training.exchange: cannot be combined"),
    "a dataset": (lambda f: f.update(data={"uri": "x.npz"}), "data.uri: cannot be combined"),
    "an intersection of nothing": (lambda f: f["algorithm"].update(align="intersection"), "algorithm.align: is intersection, but no ids"),
    "an unknown alignment": (lambda f: f["algorithm"].update(ids="id", align="union"), "algorithm.align: Invalid"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "what"), SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_that_do_not_fit_show_their_path(change: Callable[[dict[str, Any]], None], what: str) -> None:
    content: dict[str, Any] = {
        "learners": [{"name": "alice", "data": "a.npz"}, {"name": "bob", "data": "b.npz"}],
        "algorithm": {"name": "split", "label_party": "bob", "batch_size": 4},
        "training": {"rounds": 1}, "data": {},
    }  # fmt: skip
    change(content)
    with pytest.raises(FederationError) as caught:
        make_federation(**content)
    assert what in str(caught.value)
