"""The rows of a split network's parties: what they hold, and mistakes in it that are found before a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpipe.engine.preflight import check
from fedpipe.errors import DataError, FederationError, InputError, ModelError
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

ELSEWHERE = "s3://bob/rows.npz?endpoint=http://127.0.0.1:1"
"""A file that this machine does not reach."""


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


def test_a_column_without_a_name_is_not_taken_for_labels(tmp_path: Path) -> None:
    """The index of a data frame is written as such a column."""
    (tmp_path / "bob.csv").write_text(",id,y,weight\n0,p1,1,70\n1,p2,0,80\n")
    learners = [{"name": name, "data": str(tmp_path / f"{name}.csv")} for name in ("alice", "bob")]
    federation = parties(tmp_path, learners=learners, algorithm={"label_party_features": True})
    found = read_rows(federation, "bob", None)
    assert found.x is not None
    assert found.x.tolist() == [[0, 70], [1, 80]]


LABELS, ROWS = (
    "id,y\n" + "".join(f"p{k},{k % 2}\n" for k in range(20)),
    "".join(f"p{k},{k},{k % 2}\n" for k in range(20)),
)
SHEETS: dict[str, tuple[str, str, str]] = {
    "labels at two parties": ("id,age,y\n" + ROWS, LABELS, "the column 'y' has the labels, which only the label party holds"),
    "text as a feature": ("id,age,sex\np0,1,m\n", LABELS, "'m' is not a number"),
    "a missing feature": ("id,age,dose\np0,1,\n", LABELS, "the column 'dose' has a missing value in row 1"),
    "a date as a feature": ("id,age,seen\np0,1,2024-01-31\n", LABELS, "'2024-01-31' is not a number"),
    "no features": ("id\np0\n", LABELS, "there is no column of features"),
    "a row without an id": ("id,age,dose\n,1,2\n", LABELS, "1 row has no id"),
    "a row without a label": ("id,age,dose\n" + ROWS, LABELS.replace("p7,1", "p7,"), "the label is missing"),
    "ids under a name in capitals": ("ID,age,dose\n" + ROWS, LABELS, "there is no column 'id', which algorithm.ids names. Did you mean 'ID'?"),
}  # fmt: skip


@pytest.mark.parametrize(("alice", "bob", "what"), SHEETS.values(), ids=SHEETS.keys())
def test_mistakes_in_sheets_are_found_before_a_run(tmp_path: Path, alice: str, bob: str, what: str) -> None:
    (tmp_path / "alice.csv").write_text(alice)
    (tmp_path / "bob.csv").write_text(bob)
    learners = [{"name": name, "data": str(tmp_path / f"{name}.csv")} for name in ("alice", "bob")]
    with pytest.raises(DataError) as caught:
        check(parties(tmp_path, learners=learners), CODE, "", "")
    assert what in str(caught.value)
    assert caught.value.remedy
    assert "data.features" not in caught.value.remedy, "split learning takes no kinds of columns"
    assert caught.value.exit_code == 2


def test_labels_in_a_file_of_arrays_stay_out_of_the_features(tmp_path: Path) -> None:
    columns = read_rows(parties(tmp_path, {"y": Y}), "alice", None)
    assert columns.y is None
    assert columns.x is not None
    np.testing.assert_array_equal(columns.x, X)


@pytest.mark.parametrize(
    ("made", "what"),
    [
        ("[[1.0, 2.0], [1.0]] * 10", "'x' cannot become an array"),
        ("None", "the features are neither numbers nor text"),
        ("(k for k in range(20))", "the features are neither numbers nor text"),
        ("['a'] * 20", "the features are text"),
        ("3.0", "the features are neither numbers nor text"),
    ],
)
def test_load_that_returns_no_features_is_reported(tmp_path: Path, made: str, what: str) -> None:
    code = f"{CODE}\ndef load(uri):\n    return {{'x': {made}, 'y': [0, 1] * 10, 'id': list(range(20))}}\n"
    with pytest.raises(DataError) as caught:
        check(parties(tmp_path), code, "", "")
    assert what in caught.value.what
    assert caught.value.remedy


def test_load_of_the_users_file_gives_arrays_by_name(tmp_path: Path) -> None:
    module = type("module", (), {"load": staticmethod(lambda uri: {"x": X, "y": Y, "id": np.arange(20)})})
    federation = parties(tmp_path)
    assert held_rows(federation, "alice", module).order == held_rows(federation, "bob", module).order  # type: ignore[arg-type]
    module.load = staticmethod(lambda uri: (X, Y))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="returns tuple, not arrays by name"):
        held_rows(federation, "alice", module)  # type: ignore[arg-type]


DATA: dict[str, tuple[Any, Any, str]] = {
    "no ids": ({}, {"id": np.array([""] * 20)}, "20 rows have no id"),
    "duplicate ids": ({"id": np.array(["p1"] * 20)}, {}, "19 ids are duplicates"),
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
    "ids of which some are missing": ({"id": np.where(X[:, 0] == 4, np.nan, X[:, 0])}, {}, "1 row has no id"),
    "ids that differ by spaces only": ({"id": np.array(["p1", "p1 ", *IDS[2:]])}, {}, "1 id is a duplicate"),
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
    "ids that are duplicates": ({"id": np.array(["p1", *IDS[1:]])}, "1 id is a duplicate"),
    "rows without an id": ({"id": np.array(["", *IDS[1:]])}, "1 row has no id"),
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
        learners=[{"name": "alice", "data": str(tmp_path / "alice.npz")}, {"name": "bob", "data": ELSEWHERE}],
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


LAYERS = "[keras.Input((2,)), keras.layers.Dense(3)]"
BOTTOM = f"keras.Sequential({LAYERS})"
TOP = 'keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])'


def of_tensor(text: str) -> str:
    """A bottom that is made of its input `i` and the output `o` of its layer."""
    return f"[keras.Model(i, {text}) for i in [keras.Input((2,))] for o in [keras.layers.Dense(3)(i)]][0]"


MODELS: dict[str, tuple[str, str, str]] = {
    "parts that do not fit": ("Dense(3)", "Dense(4)", 'bottom("alice") returns float32 [4] a row, but top() takes float32 [3]'),
    "a party without a part": ("    model = keras.Sequential([keras.Input((2,))", "    return None\n    model = keras.Sequential([keras.Input((2,))", 'bottom("alice") returns None'),
    "no bottom": ("def bottom", "def lower", "there is no function 'bottom'"),
    "no top": ("def top", "def upper", "there is no function 'top'"),
    "a part that is not compiled": ('    model.compile(optimizer="sgd")\n', "", "the model is not compiled"),
    "a bottom with two outputs": (BOTTOM, of_tensor("[o, o + 1]"), 'bottom("alice") returns several tensors'),
    "a bottom that returns a list": (BOTTOM, of_tensor("[o]"), 'bottom("alice") returns a list or dict of tensors'),
    "a bottom that returns a dict": (BOTTOM, of_tensor("{'a': o}"), 'bottom("alice") returns a list or dict of tensors'),
    "a bottom with two inputs": (BOTTOM, of_tensor("o").replace("Model(i", "Model([i, keras.Input((2,))]"), 'bottom("alice") has several inputs'),
    "a bottom that takes a list": (BOTTOM, of_tensor("o").replace("Model(i,", "Model([i],"), 'bottom("alice") takes a list or dict of tensors'),
    "whole numbers as activations": (BOTTOM, of_tensor("keras.ops.cast(o, 'int32')"), 'bottom("alice") returns int32 [3] a row, but top() takes float32 [3]'),
    "a row that becomes two": (BOTTOM, of_tensor("keras.ops.repeat(o, 2, axis=0)"), 'bottom("alice") makes 40 rows of activations from 20 rows'),
    "activations that are not finite": (BOTTOM, of_tensor("keras.ops.log(-1 - keras.ops.abs(o))"), 'the activations of bottom("alice") are not finite'),
    "a row of an unknown size": ("keras.Input((2,))", "keras.Input((None, 2))", 'bottom("alice") returns float32 [None, 3] a row, but top() takes float32 [3]'),
    "a top with two outputs": (TOP, "[keras.Model(i, [keras.layers.Dense(2)(i), keras.layers.Dense(2)(i)]) for i in [keras.Input((3,))]][0]", "top() returns several tensors"),
    "a top with too many inputs": (TOP, "[keras.Model([i, j], keras.layers.Dense(2)(i + j)) for i in [keras.Input((3,))] for j in [keras.Input((3,))]][0]", "top() takes 2 inputs, but 1 party holds features"),
    "a top without a loss": (', loss="sparse_categorical_crossentropy"', "", "No loss to compute"),
    "a loss that there is not": ("sparse_categorical_crossentropy", "nope", "loss"),
    "a bottom without a parameter": ("bottom(party)", "bottom()", "bottom() cannot be called with the name of a party"),
    "a bottom with two parameters": ("bottom(party)", "bottom(party, size)", "bottom() cannot be called with the name of a party"),
    "a top with a parameter": ("top()", "top(party)", "top() cannot be called with no argument"),
    "a bottom that is a model": ("def top", 'bottom = bottom("alice")\n\ndef top', "bottom is a model, not a function that makes one"),
    "a bottom that is not callable": ("def top", "bottom = 3\n\ndef top", "there is no function 'bottom'"),
    "steps of its own": (BOTTOM, f"type('Own', (keras.Sequential,), {{'train_step': lambda *a: None}})({LAYERS})", 'bottom("alice") has a train_step() of its own'),
    "averages of weights": ('    model.compile(optimizer="sgd")\n', "    model.compile(keras.optimizers.SGD(use_ema=True))\n", 'the optimizer of bottom("alice") has use_ema'),
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


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "bool"])
def test_activations_are_float32(tmp_path: Path, dtype: str) -> None:
    code = CODE.replace(BOTTOM, of_tensor(f"keras.ops.cast(o, '{dtype}')"))
    code = code.replace("keras.Input((3,))", f"keras.Input((3,), dtype='{dtype}')")
    with pytest.raises(ModelError, match=f"returns {dtype}, but parties send each other float32"):
        check(parties(tmp_path), code, "", "")


@pytest.mark.parametrize(("y", "span"), [(Y * 5, "0 to 5"), (Y - 1, "-1 to 0")])
def test_labels_outside_of_the_classes_are_found_before_a_run(tmp_path: Path, y: Any, span: str) -> None:
    with pytest.raises(ModelError) as caught:
        check(parties(tmp_path, None, {"y": y}), CODE, "", "")
    assert caught.value.what == f"the labels range from {span}, but the model has 2 outputs"
    assert caught.value.where == "model.py"
    assert caught.value.remedy


def test_a_bottom_is_tried_although_the_file_of_another_party_is_elsewhere(tmp_path: Path) -> None:
    parties(tmp_path)
    learners = [{"name": "alice", "data": str(tmp_path / "alice.npz")}, {"name": "bob", "data": ELSEWHERE}]
    federation = parties(tmp_path, learners=learners)
    with pytest.raises(ModelError, match="does not fit its rows"):
        check(federation, CODE.replace("keras.Input((2,))", "keras.Input((5,))"), "", "")


def test_parts_with_common_weights_are_found_before_a_run(tmp_path: Path) -> None:
    learners = [{"name": name, "data": str(tmp_path / f"{name}.npz")} for name in ("alice", "carol", "bob")]
    np.savez(tmp_path / "carol.npz", x=X, id=IDS)
    code = CODE.replace(TOP, two_inputs()) + "\nONE = bottom('x')\n\ndef bottom(party):\n    return ONE\n"
    with pytest.raises(ModelError, match=r'bottom\("alice"\) and bottom\("carol"\) share'):
        check(parties(tmp_path, learners=learners), code, "", "")


def two_inputs(first: str = "left", second: str = "right") -> str:
    """A top with inputs of these names."""
    return (
        f"[keras.Model([i, j], keras.layers.Dense(2, activation='softmax')(i + j)) "
        f"for i in [keras.Input((3,), name='{first}')] for j in [keras.Input((3,), name='{second}')]][0]"
    )


NAMES = {
    "of the parties, in another order": (["carol", "alice"], ""),
    "of nobody": (["left", "right"], ""),
    "in capitals, in their order": (["Alice", "Carol"], ""),
    "in capitals, in another order": (["Carol", "Alice"], "top() has an input 'Carol' in the place of alice"),
    "of a party in the place of another": (["carol", "other"], "top() has an input 'carol' in the place of alice"),
}


@pytest.mark.parametrize(("names", "what"), NAMES.values(), ids=NAMES.keys())
def test_inputs_of_the_top_have_the_names_of_all_parties_or_their_order(
    tmp_path: Path, names: list[str], what: str
) -> None:
    learners = [{"name": name, "data": str(tmp_path / f"{name}.npz")} for name in ("alice", "carol", "bob")]
    np.savez(tmp_path / "carol.npz", x=X, id=IDS)
    federation, code = parties(tmp_path, learners=learners), CODE.replace(TOP, two_inputs(*names))
    assert code != CODE
    if not what:
        assert check(federation, code, "", "")
        return
    with pytest.raises(ModelError) as caught:
        check(federation, code, "", "")
    assert what in caught.value.what


@pytest.mark.parametrize("name", ["top", "bottom-bob", "dense", "sequential", "x"])
def test_a_party_may_have_the_name_of_a_part(tmp_path: Path, name: str) -> None:
    learners = [{"name": name, "data": str(tmp_path / "alice.npz")}, {"name": "bob", "data": str(tmp_path / "bob.npz")}]
    federation = parties(tmp_path, None, {"x": X}, learners=learners, algorithm={"label_party_features": True})
    found = {checked.subject: checked.what for checked in check(federation, CODE.replace(TOP, two_inputs()), "", "")}
    assert found[name] == "16 train, 2 vote, 2 test"


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
