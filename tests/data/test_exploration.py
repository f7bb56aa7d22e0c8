from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from typer.testing import CliRunner

import fedpipe
from fedpipe.cli.main import app
from fedpipe.commands.explore import explore
from fedpipe.data.examples import Examples
from fedpipe.data.exploration import (
    Exploration,
    advice,
    column_views,
    distances,
    distances_from_all,
    heterogeneity,
    jensen_shannon,
    view_of,
)
from fedpipe.reports.exploration_page import column_rows, render_html, render_markdown, table

COUNTS = st.lists(st.integers(0, 1000), min_size=5, max_size=5).filter(any)
RANDOM = np.random.default_rng(3)


@given(COUNTS, COUNTS)
def test_the_distance_is_scipys(p: list[int], q: list[int]) -> None:
    ours = jensen_shannon(np.array(p, float), np.array(q, float))
    assert ours == pytest.approx(float(jensenshannon(p, q, base=2)), abs=1e-7)
    assert 0 <= ours <= 1 + 1e-12


def explored(**labels: list[int]) -> Exploration:
    views = [
        view_of(name, {"train": Examples(RANDOM.normal(size=(len(y), 3)), np.array(y))}) for name, y in labels.items()
    ]
    return Exploration("tiny", tuple(views), {})


def test_learners_with_the_same_mixture_are_not_apart() -> None:
    found = explored(a=[0, 1], b=[0, 0, 1, 1])
    np.testing.assert_array_equal(distances(found), np.zeros((2, 2)))
    assert heterogeneity(found) == 0
    assert advice(0.0) == "nearly the same mixture everywhere"


def test_learners_with_nothing_in_common() -> None:
    found = explored(a=[0, 0], b=[1, 1], c=[0, 1])
    np.testing.assert_allclose(distances(found)[0], [0, 1, jensenshannon([1, 0], [0.5, 0.5], base=2)])
    weights, apart = [2, 2, 2], distances_from_all(found)
    assert heterogeneity(found) == pytest.approx(np.average(apart, weights=weights))
    assert "pull their models apart" in advice(0.3)


def test_a_learner_of_pictures() -> None:
    x = np.zeros((6, 8, 4, 1), np.float32)
    x[2] = 1
    y = np.array([0, 0, 7, 0, 1, 1])
    view = view_of("a", {"train": Examples(x[:4], y[:4]), "test": Examples(x[4:], y[4:])})
    assert view.parts == {"train": 4, "test": 2}
    assert view.examples == 6
    assert view.labels == {"0": 3, "1": 2, "7": 1}
    assert view.samples["7"].shape == (8, 4)
    np.testing.assert_array_equal(view.samples["7"], np.ones((8, 4)))
    np.testing.assert_array_equal(view.means["0"], np.zeros((8, 4)))
    assert view.features == (0.0, 1.0, pytest.approx(1 / 6), pytest.approx(np.sqrt(5) / 6))


def test_one_hot_labels_colours_and_rows() -> None:
    colour = view_of("a", {"train": Examples(RANDOM.random((3, 5, 5, 3)), np.eye(4)[[3, 3, 0]])})
    assert colour.labels == {"0": 1, "3": 2}
    assert colour.samples["3"].shape == (5, 5, 3)
    x = RANDOM.normal(size=(9, 4))
    rows = view_of("b", {"train": Examples(x, RANDOM.normal(size=9))})
    assert (rows.labels, rows.samples) == ({}, {})
    np.testing.assert_allclose(rows.columns, x.mean(axis=0))


def test_the_page_shows_every_learner_and_escapes_names() -> None:
    found = explored(a=[0, 1], b=[0, 0])._replace(federation="<b>", left_out={"c": "no <i>data</i>"})
    page = render_html(found)
    assert page.count("<svg") == 3  # labels, distances, features
    assert "&lt;b&gt;" in page
    assert "c was left out: no &lt;i&gt;data&lt;/i&gt;" in page
    markdown = render_markdown(found)
    assert markdown.splitlines()[0] == "| learner | examples | classes | distance of labels | features |"
    assert "- c was left out" in markdown


def test_quantities_have_no_distances() -> None:
    views = [view_of(n, {"train": Examples(RANDOM.normal(size=(4, 2)), RANDOM.normal(size=4))}) for n in "ab"]
    found = Exploration("tiny", tuple(views), {})
    assert "Jensen" not in render_html(found)
    assert "distance of labels" not in table(found)[0]


def test_many_learners_and_none() -> None:
    many = explored(**{f"learner-{k}": [0, 1, k % 3] for k in range(40)})
    assert "first 24 learners" in render_html(many)
    empty = Exploration("tiny", (), {"a": "private"})
    assert "a was left out: private" in render_html(empty)
    assert "a was left out" in render_markdown(empty)


def test_the_command(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["explore", str(digits / "federation.yaml")])
    assert result.exit_code == 0, result.output
    assert "hospital-e" in result.output
    assert "heterogeneity of labels 0.380" in result.output
    page = (tmp_path / "data.html").read_text()
    assert "Mean picture of each label" in page
    assert not (digits / "store").exists()


def test_own_data_and_private_learners(digits: Path) -> None:
    with np.load(digits / "digits.npz") as file:
        np.savez(digits / "own.npz", x=file["x"][:50], y=file["y"][:50])
    path = digits / "federation.yaml"
    privacy = "privacy: {noise_multiplier: 1, l2_norm_clip: 1, microbatches: 16, delta: 1e-5, target_epsilon: 9}"
    text = path.read_text().replace("- name: hospital-a", "- {name: hospital-a, data: own.npz}")
    text = text.replace("- name: hospital-b", "- {name: hospital-b, data: absent.npz}")
    path.write_text(text.replace("- name: hospital-c", f"- {{name: hospital-c, {privacy}}}"))
    found = explore(path, digits / "data.html")
    assert [view.learner for view in found.views] == ["hospital-a", "hospital-d", "hospital-e"]
    assert found.views[0].parts == {"examples": 50}
    assert "there is no such dataset" in found.left_out["hospital-b"]
    assert "differential privacy" in found.left_out["hospital-c"]


def test_a_table_shows_the_statistics_of_each_learner_and_over_all(tmp_path: Path) -> None:
    """One hospital measures in other units, and has another mixture of categories; a small one discloses nothing."""
    from tests.commands.test_table_run import federation, rows, write

    path = federation(tmp_path)
    table = [{**row, "pressure": row["pressure"] * 2, "smokes": "ja"} for row in rows(1, 120)]
    write(tmp_path / "own.csv", table)
    found = explore(path, tmp_path / "data.html")
    views = {view.summary.name: view for view in column_views(found)}
    assert set(views) == {"age", "pressure", "smokes"}
    assert views["pressure"].distances["c"] > 0.5 > views["age"].distances["c"]
    own = views["pressure"].learners["c"].numbers
    assert own is not None
    assert own.mean == pytest.approx(np.mean([row["pressure"] for row in table]), rel=1e-6)
    page = (tmp_path / "data.html").read_text()
    assert 'class="bad">1.997e+06' in page  # the mean of pressure at c
    explore(path, tmp_path / "data.json")
    content = json.loads((tmp_path / "data.json").read_text())
    assert content["columns"]["pressure"]["learners"]["c"]["count"] == 120
    assert content["columns"]["pressure"]["all"]["count"] == 270 + 120
    assert content["learners"]["c"]["labels"] == {
        k: sum(r["diagnosis"] == k for r in table) for k in ("benign", "malignant")
    }


def test_the_columns_of_a_table_are_shown_as_people_read_them(tmp_path: Path) -> None:
    """A date is not a number of days, and half of a boolean means nothing."""
    from tests.commands.test_table_run import write

    table = [
        {"age": 40 + k % 9, "ill": "yes" if k % 4 == 0 else "no", "born": f"19{50 + k % 40}-03-01", "y": k % 2}
        for k in range(80)
    ]
    write(tmp_path / "d.csv", table)
    fedpipe.init(tmp_path / "demo", framework="numpy", tables=[tmp_path / "d.csv"], label="y", learners=2)
    found = {row.name: row for row in column_rows(explore(tmp_path / "demo" / "federation.yaml", tmp_path / "d.html"))}
    assert re.fullmatch(r"2\d\.\d % true", found["ill"].values)
    assert found["ill"].quantiles == ""
    assert re.fullmatch(r"19\d\d-\d\d-\d\d ± [\d.e+]+ days \(1950-03-01 to 1989-03-01\)", found["born"].values)
    assert found["born"].quantiles.count("-") == 10
    assert "features" not in (tmp_path / "d.html").read_text().split("<h2>Labels")[0]
