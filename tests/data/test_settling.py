"""The schema of a table, from reports of learners and the federation file."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from fedpipe.data.disclosure import (
    basis_of,
    find_report,
    publish_report,
    put_schema,
    schema_of,
    schema_of_head,
    settle_schema,
)
from fedpipe.data.examples import Examples
from fedpipe.data.schema import MOST_CLASSES, Column, Schema
from fedpipe.data.settling import settle, settled
from fedpipe.data.statistics import Numbers, Report, report_of
from fedpipe.errors import DataError, FederationError, InputError
from fedpipe.federation.data import StatisticsSettings
from fedpipe.federation.federation import Federation
from fedpipe.rounds.beginning import begin
from fedpipe.rounds.history import commit
from fedpipe.store import keys
from fedpipe.store.memory import MemoryStore
from tests.federations import fresh, make_federation, make_plan


def federation(features: Any = "auto", **more: Any) -> Federation:
    return make_federation(data={"uri": "x.csv", "features": features, "labels": "y"}, **more)


def report(learner: str, *, kinds: tuple[str, ...] = ("number", "category"), count: int = 20, seed: int = 0) -> Report:
    """The report of a learner with columns c0, c1, ... of these kinds."""
    generator = np.random.default_rng(seed)
    columns = tuple(Column(name=f"c{k}", kind=kind) for k, kind in enumerate(kinds))  # type: ignore[arg-type]
    numbers = [generator.normal(5, 2, count) for kind in kinds if kind in ("number", "boolean", "date")]
    words = [np.array(["f", "m"] * (count // 2), object) for kind in kinds if kind == "category"]
    texts = [np.array([f"note {k}" for k in range(count)], object) for kind in kinds if kind == "text"]
    found = {"numbers": numbers, "categories": words, "texts": texts}
    x = {name: np.stack(own, axis=1) for name, own in found.items() if own}
    y = np.array(["benign", "malignant"] * (count // 2), object)
    return report_of(learner, x if list(x) != ["numbers"] else x["numbers"], y, columns, StatisticsSettings())


def test_the_schema_of_two_learners_in_any_order() -> None:
    reports = [report("a", seed=1), report("b", seed=2, count=60), report("c", seed=3)]
    schemas = [settle(federation(), order).schema for order in itertools.permutations(reports)]
    assert len(set(schemas)) == 1
    number, category = schemas[0].columns
    values = np.concatenate([np.random.default_rng(s).normal(5, 2, n) for s, n in ((1, 20), (2, 60), (3, 20))])
    assert number.mean == pytest.approx(values.mean())
    assert number.deviation == pytest.approx(values.std())
    assert (number.missing, category.categories) == (False, ("f", "m"))
    assert (schemas[0].labels, schemas[0].classes) == ("names", ("benign", "malignant"))


def test_without_normalisation() -> None:
    chosen = make_federation(data={"uri": "x", "features": "auto", "labels": "y", "normalise": "none"})
    column = settle(chosen, [report("a")]).schema.columns[0]
    assert (column.mean, column.deviation) == (0.0, 1.0)


def test_a_constant_column_is_only_shifted() -> None:
    columns = (Column(name="c0", kind="number"),)
    constant = report_of("a", np.full((20, 1), 0.1, np.float32), np.zeros(20), columns, StatisticsSettings())
    assert settle(federation(), [constant]).schema.columns[0].deviation == 1.0


def test_declared_kinds_categories_and_classes_win() -> None:
    chosen = federation(
        {"c1": {"kind": "category", "categories": ["m", "f", "x"]}, "c0": "number", "c2": "ignore"},
        export={"classes": ["malignant", "benign"]},
    )
    schema = settle(chosen, [report("a")]).schema
    assert [column.name for column in schema.columns] == ["c0", "c1"]  # the order of the data
    assert schema.columns[1].categories == ("m", "f", "x")
    assert schema.classes == ("malignant", "benign")


def test_a_report_that_contradicts_itself_is_left_out_by_name() -> None:
    wrong = report("b")
    number = wrong.columns[0]
    assert number.numbers is not None
    huge = Numbers(count=20, mean=1e30, squares=0.0, minimum=5, maximum=6, bounds=(5.0, 6.0), counts=(20,))
    forged = Report(
        learner="b", examples=20, labels="names", classes=wrong.classes,
        columns=(type(number)(name="c0", kind="number", missing=0, numbers=huge), *wrong.columns[1:]),
    )  # fmt: skip
    outcome = settle(federation(), [report("a"), forged])
    assert outcome.schema == settle(federation(), [report("a")]).schema
    assert outcome.left_out == {"b": "its statistics are refused: the column 'c0' has a mean outside its range"}


def test_a_learner_with_other_columns_is_left_out_by_name() -> None:
    outcome = settle(federation(), [report("a"), report("b"), report("c", kinds=("number", "category", "number"))])
    assert outcome.left_out == {"c": "it has other columns than most: only one side has 'c2'"}


def test_kinds_that_learners_guess_differently() -> None:
    mixed = settle(federation(), [report("a", kinds=("number",)), report("b", kinds=("boolean",))])
    assert mixed.schema.columns[0].kind == "number"
    long = settle(federation(), [report("a", kinds=("category",)), report("b", kinds=("text",), count=60)])
    assert long.schema.columns[0].kind == "text"
    odd = settle(federation(), [report(name, kinds=("number",)) for name in "ac"] + [report("b", kinds=("category",))])
    assert odd.left_out == {"b": "its column 'c0' looks like the kind category, unlike that of most"}
    assert odd.schema == settle(federation(), [report(name, kinds=("number",)) for name in "ac"]).schema


def test_nobody_discloses_anything() -> None:
    private = Report(learner="a", why="it trains with differential privacy")
    with pytest.raises(DataError, match=r"no learner discloses statistics.*a: it trains.*Declare the columns"):
        settle(federation(), [private])
    declared = settle(federation({"c0": "number"}), [private]).schema
    assert (declared.columns, declared.statistics) == ((Column(name="c0", kind="number", missing=True),), False)
    with pytest.raises(DataError, match=r"no learner discloses categories of the column 'c1'. Declare them: c1: {kind"):
        settle(federation({"c1": "category"}), [private])


def test_labels_that_do_not_fit_the_classes() -> None:
    chosen = federation(export={"classes": ["benign"]})
    with pytest.raises(
        DataError, match=r"no learner discloses.*a: its label 'malignant' is not among the classes benign"
    ):
        settle(chosen, [report("a")])


def test_one_learner_with_other_labels_is_left_out() -> None:
    numbers = report_of(
        "z", np.ones((20, 1)), np.arange(20) % 2, (Column(name="c0", kind="number"),), StatisticsSettings()
    )
    outcome = settle(federation(), [report(name, kinds=("number",)) for name in "ab"] + [numbers])
    assert outcome.left_out == {"z": "its labels are numbers, unlike those of most"}
    assert outcome.schema.classes == ("benign", "malignant")


SCHEMA = Schema(columns=(Column(name="a", kind="number"),), label="y", labels="names", classes=("no", "yes"))


def test_labels_become_numbers_of_classes() -> None:
    columns = (Column(name="b", kind="number"), Column(name="a", kind="number"))
    raw = Examples(np.array([[1, 2], [3, 4]], np.float32), np.array(["yes", "no"], object), columns=columns)
    found = settled(raw, SCHEMA)
    assert (found.x.tolist(), found.y.tolist(), found.columns) == ([[2], [4]], [1, 0], ())  # type: ignore[union-attr]
    with pytest.raises(
        DataError, match=r"h: the label 'maybe' in column 'y' is none of the classes no, yes. Correct it"
    ):
        settled(Examples(raw.x, np.array(["maybe"], object), columns=columns), SCHEMA, where="h")


@pytest.mark.parametrize(
    ("given", "y", "expected"),
    [
        (("1", "2"), np.array([2, 1, 1]), [1, 0, 0]),  # numbers that are names
        (("low", "high"), np.array([0, 1, 1]), [0, 1, 1]),  # numbers from 0 that have names
        ((), np.array([0, 1, 2]), [0, 1, 2]),
        ((), np.array([0.5, 1, 2]), [0.5, 1, 2]),
        (("low", "high"), np.array([0.0, 1.0, 1.0]), [0, 1, 1]),
    ],
)
def test_numbers_as_labels(given: tuple[str, ...], y: Any, expected: list[float]) -> None:
    columns = (Column(name="a", kind="number"),)
    x = np.ones((len(y), 1), np.float32)
    disclosed = report_of("a", x, y, columns, StatisticsSettings(floor=1, rare=1))
    schema = settle(federation(export={"classes": list(given)}), [disclosed]).schema
    assert settled(Examples(x, y, columns=columns), schema).y.tolist() == expected  # type: ignore[union-attr]


def test_labels_of_arrays_are_names_too() -> None:
    raw = Examples(np.ones((2, 1)), np.array(["yes", "no"], object))
    assert settled(raw, None, ("no", "yes")).y.tolist() == [1, 0]  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"labels are text, such as 'yes'.*Name the classes in export.classes"):
        settled(raw, None)


def published(store: MemoryStore, chosen: Federation, run: str, found: Report) -> None:
    publish_report(store, run, replace(found, basis=basis_of(chosen, found.learner, {})))


def test_a_report_on_other_data_or_settings_does_not_count() -> None:
    store, chosen = MemoryStore("s"), federation()
    published(store, chosen, "r1", report("a"))
    assert settle_schema(store, chosen, "r1", {}) == settle(chosen, [report("a")]).schema
    with pytest.raises(DataError, match="no learner discloses statistics"):
        settle_schema(store, chosen, "r1", {"a": f"sha256:{'0' * 64}"})
    with pytest.raises(DataError, match="no learner discloses statistics"):
        settle_schema(store, chosen, "r1", {}, absent=["a"])
    assert settle_schema(store, make_federation(), "r1", {}) is None


def test_a_corrupt_report_discloses_nothing() -> None:
    store, chosen = MemoryStore("s"), federation()
    published(store, chosen, "r1", report("a"))
    store.create(keys.statistics("b", "r1"), b"{nonsense")
    publish_report(store, "r1", replace(report("x"), basis=basis_of(chosen, "c", {})))
    store.replace(keys.statistics("c", "r1"), store.read(keys.statistics("x", "r1")).data)
    for learner, why in (("b", "is not a valid report"), ("c", "the statistics's learner is x")):
        found = find_report(store, learner, "r1", basis_of(chosen, learner, {}))
        assert found is not None
        assert why in found.why
    assert settle_schema(store, chosen, "r1", {}) == settle(chosen, [report("a")]).schema


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"features": {"age": "numbr"}}, r"features.*number"),
        ({"features": {}}, r"data.features: names no column"),
        ({"features": {"a": "ignore"}}, "data.features: names no column"),
        ({"features": {"y": "number"}}, "data.features.y: is the label"),
        ({"features": {"a": "number"}, "ignore": ["b"]}, "data.ignore: has no effect"),
        ({"features": {"a": {"kind": "number", "categories": ["x"]}}}, "data.features.a.categories: need the kind"),
        ({"features": {"a": {"kind": "category", "categories": ["x", "x"]}}}, "'x' is listed twice"),
    ],
)
def test_mistakes_in_the_file(data: dict[str, Any], message: str) -> None:
    with pytest.raises(FederationError, match=message) as caught:
        make_federation(data={"uri": "x.csv", **data})
    assert caught.value.remedy


def test_a_run_that_continues_takes_the_schema_of_head_or_says_why_not() -> None:
    store, chosen = MemoryStore("s"), federation({"c0": "number", "c1": "category"})
    published(store, chosen, "r1", report("a"))
    first = settle_schema(store, chosen, "r1", {})
    assert schema_of_head(store, chosen) is None
    record = begin(store, make_plan(chosen), fresh, lambda: put_schema(store, first))
    assert schema_of(store, make_plan(chosen)) == first
    commit(store, replace(record, round=1, previous=record.ref))
    published(store, chosen, "r2", report("a", seed=5))
    assert settle_schema(store, chosen, "r2", {}) == first
    with pytest.raises(InputError, match=r"the data of HEAD have other columns than data.features, such as 'c1'"):
        settle_schema(store, federation({"c0": "number"}), "r3", {})


class TestALearnerThatSpoilsTheSchema:
    """Its statistics are well-formed, and would leave the others without a usable schema."""

    def test_too_many_classes(self) -> None:
        many = replace(report("z"), examples=2**53, classes={f"class {k}": 1 for k in range(MOST_CLASSES)})
        found = settle(federation(), [report("a"), many, report("b", seed=2)])
        assert found.left_out == {"z": "with its categories and classes, the schema would be too large"}
        assert found.schema == settle(federation(), [report("a"), report("b", seed=2)]).schema

    def test_too_many_characters(self) -> None:
        honest = [report("a"), report("b", seed=2)]
        words = {f"{k:>900}": 1 for k in range(10_000)}
        columns = tuple(replace(c, categories=words) if c.kind == "category" else c for c in honest[0].columns)
        found = settle(federation(), [*honest, replace(honest[0], learner="c", examples=2**53, columns=columns)])
        assert found.left_out.keys() == {"c"}
        assert found.schema == settle(federation(), honest).schema

    def test_declared_names_are_not_counted(self) -> None:
        chosen = federation({"c0": "number", "c1": {"kind": "category", "categories": ["f", "m"]}},
                            export={"classes": ["benign", "malignant"]})  # fmt: skip
        words = {f"{k:>900}": 1 for k in range(10_000)}
        columns = tuple(replace(c, categories=words) if c.kind == "category" else c for c in report("a").columns)
        found = settle(chosen, [replace(report("a"), examples=2**53, columns=columns), report("b")])
        assert found.left_out == {}
        assert found.schema.columns[1].categories == ("f", "m")

    @pytest.mark.parametrize("factor", [3.4e38, -3.4e38, 1e30, 1e4])
    def test_numbers_that_would_make_the_column_constant(self, factor: float) -> None:
        honest = [report(name, seed=k) for k, name in enumerate("abcd")]
        numbers = Numbers(
            count=20, mean=factor, squares=0.0, minimum=factor, maximum=factor, bounds=(factor, factor), counts=(20,)
        )
        column = replace(honest[0].columns[0], numbers=numbers)
        spoiling = replace(honest[0], learner="z", columns=(column, *honest[0].columns[1:]))
        found = settle(federation(), [spoiling, *honest])
        assert found.schema == settle(federation(), honest).schema
        assert found.left_out == {}
        assert found.columns[0].numbers == settle(federation(), honest).columns[0].numbers

    @pytest.mark.parametrize("value", [3.4e38, -1e30])
    def test_labels_that_would_make_the_quantity_constant(self, value: float) -> None:
        columns = (Column(name="c0", kind="number"),)

        def quantity(name: str, y: np.ndarray) -> Report:
            return report_of(name, np.zeros((20, 1)), y, columns, StatisticsSettings())

        honest = [quantity(name, np.arange(20) + k + 0.5) for k, name in enumerate("abcd")]
        spoiling = quantity("z", np.full(20, value))
        assert settle(federation(), [spoiling, *honest]).schema == settle(federation(), honest).schema

    def test_numbers_that_differ_as_data_do_count(self) -> None:
        reports = [report(name, seed=k) for k, name in enumerate("abcd")]
        columns = (Column(name="c0", kind="number"), Column(name="c1", kind="category"))
        x = {"numbers": np.full((20, 1), 90.0), "categories": np.array([["f"]] * 20, object)}
        large = report_of("e", x, np.array(["benign", "malignant"] * 10, object), columns, StatisticsSettings())
        assert settle(federation(), [*reports, large]).schema.columns[0].mean > 15
