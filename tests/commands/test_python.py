"""The Python API: results in notebooks, progress, servers that stop, and runs of dictionaries and typed objects."""

from __future__ import annotations

import html.parser
import inspect
import logging
import threading
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedpipe
from fedpipe.commands.arguments import BOUNDS
from fedpipe.commands.live import Live, find_display
from fedpipe.errors import FedpipeError, InputError, NotFoundError
from fedpipe.federation.loading import load
from tests import servers


@pytest.fixture(autouse=True)
def here(numpy_digits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the federation is the working folder."""
    monkeypatch.chdir(numpy_digits)
    return numpy_digits


class Cells(html.parser.HTMLParser):
    """Collects the texts of cells, and checks that all tags are closed in order."""

    VOID = ("progress",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self._open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._open.append(tag)
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_a_run_shows_metrics_and_curves() -> None:
    result = fedpipe.run("federation.yaml", training={"rounds": 3})
    cells = Cells(result._repr_html_())
    metrics = result.summary["evaluation"]["central"]["metrics"]
    assert result.metrics == metrics
    assert f"{metrics['accuracy']:.4f}" in cells.cells
    assert {"svg", "polyline", "table"} <= cells.tags
    assert result.model is not None
    assert result.report.exists()


def test_a_run_without_a_central_test_set() -> None:
    result = fedpipe.run("federation.yaml", training={"rounds": 2}, evaluation={"holdout": 0})
    assert result.metrics
    assert Cells(result._repr_html_())


def test_a_run_of_a_dictionary_and_of_typed_objects_is_that_of_the_file() -> None:
    content = load(Path("federation.yaml"))
    weights = [
        fedpipe.run(source, store=f"store-{number}", training={"rounds": 2}).summary["rounds"][-1]["weights"]
        for number, source in enumerate(("federation.yaml", content, fedpipe.read_federation("federation.yaml")))
    ]
    assert len(set(weights)) == 1


def test_a_store_by_its_keys(minio_server: servers.Server, s3_keys: None) -> None:
    place = {"uri": "s3://tests/python", "endpoint": minio_server.endpoint}
    result = fedpipe.run("federation.yaml", store=place, training={"rounds": 1})
    assert result.summary["store"] == f"s3://tests/python?endpoint={minio_server.endpoint}&region=us-east-1"
    assert [line.name for line in fedpipe.runs("federation.yaml", store=place)] == ["run-1"]


def test_a_compiled_pipeline_has_no_keys() -> None:
    fedpipe.compile("federation.yaml", "pipeline.yaml", training={"rounds": 1}, manifest="objects.yaml")
    assert Path("objects.yaml").exists()
    with pytest.raises(
        InputError, match=r"compiled pipeline, in which 'training' cannot be changed\. Use `parameters`"
    ):
        fedpipe.run("pipeline.yaml", training={"rounds": 2})
    assert len(fedpipe.run("pipeline.yaml").summary["rounds"]) == 1


def test_lists_and_comparisons() -> None:
    for name, rate in (("slow", 0.01), ("fast<b>", 0.5)):
        training = {"rounds": 2, "learning_rate": rate, "start": "fresh"}
        fedpipe.run("federation.yaml", name=name.replace("<b>", ""), training=training)
    listed = fedpipe.runs("federation.yaml")
    assert isinstance(listed, list)
    assert Cells(listed._repr_html_()).cells[:5] == ["run", "rounds", "state", "last accepted", "fast (HEAD)"]
    compared = fedpipe.compare("federation.yaml", ["slow", "fast"])
    assert compared == fedpipe.compare("federation.yaml", "slow", "fast")
    assert Cells(compared._repr_html_()).cells[:6] == ["", "slow", "fast", "training.learning_rate", "0.01", "0.5"]
    page = fedpipe.report("federation.yaml", "fast", beside=["slow"])
    assert 'srcdoc="&lt;!doctype' in page._repr_html_()
    assert not Path("report.html").exists()
    for names in ("slow", ["slow"], []):
        with pytest.raises(InputError, match="at least two runs"):
            fedpipe.compare("federation.yaml", names)
    with pytest.raises(NotFoundError, match=r"there is no run 'none'\. Runs: "):
        fedpipe.compare("federation.yaml", "slow", "none")


def test_names_are_text(here: Path) -> None:
    from fedpipe.commands.shown import Compared, Findings, Result
    from fedpipe.engine.preflight import Checked

    wild = "<script>alert(1)</script>"
    summary = {"federation": wild, "run": wild, "rounds": [], "evaluation": {"central": {"metrics": {wild: 1.0}}}}
    rounds = [{"round": number, "loss": None, "metrics": {wild: 1.0}} for number in (1, 2)]
    shown = [Result({**summary, "rounds": rounds}, here / wild), Findings([Checked(wild, wild)])]
    shown += [Compared((wild, wild), {wild: [wild, wild]}, {wild: [1.0, None]})]
    assert all("<script" not in one._repr_html_() for one in shown)


def test_nothing_has_begun() -> None:
    assert fedpipe.runs("federation.yaml") == []
    assert "no run" in fedpipe.runs("federation.yaml")._repr_html_()


def test_explorations_and_findings() -> None:
    found = fedpipe.explore(
        "federation.yaml", "data.html", learners=[{"name": "a"}, {"name": "b"}], quorum={"min_learners": 1}
    )
    assert [view.learner for view in found.views] == ["a", "b"]
    assert Path("data.html").read_text() == found.page
    assert "<iframe" in found._repr_html_()
    findings = fedpipe.check("federation.yaml", store=False)
    assert "✓ federation" in Cells(findings._repr_html_()).cells
    assert [finding.subject for finding in findings].count("store") == 0
    assert fedpipe.check("federation.yaml", store="file:///tmp/other")[-1].what == "file:///tmp/other"


def test_quiet_unless_asked(capfd: pytest.CaptureFixture[str]) -> None:
    fedpipe.run("federation.yaml", training={"rounds": 2})
    assert capfd.readouterr() == ("", "")
    events: list[Any] = []
    fedpipe.run("federation.yaml", name="two", training={"rounds": 2}, progress=True, listener=events.append)
    assert events
    lines = capfd.readouterr().out.splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["round 1 of 2", "round 2 of 2"]
    steps = {"rounds": 2, "rounds_per_step": 1}
    fedpipe.run("federation.yaml", name="three", training=steps, progress=True)
    lines = capfd.readouterr().out.splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["round 1", "round 2"]
    assert all("accuracy 0." in line for line in lines)


class Cell:
    """Shows objects as a notebook's cell does."""

    def __init__(self) -> None:
        self.drawn: list[str] = []

    def display(self, thing: Any, display_id: bool) -> Cell:
        assert display_id
        self.update(thing)
        return self

    def update(self, thing: Any) -> None:
        self.drawn.append(thing._repr_html_())


@pytest.mark.parametrize("per_step", ["all", 1])
def test_a_cell_shows_progress(per_step: str | int) -> None:
    assert find_display() is None
    cell = Cell()
    live = Live(cell.display)
    fedpipe.run("federation.yaml", training={"rounds": 3, "rounds_per_step": per_step}, listener=live)
    live.draw(last=True)
    assert len(cell.drawn) >= 2
    for shown in cell.drawn:
        Cells(shown)
    assert cell.drawn[-1].count("<svg") >= 2
    assert [entry["round"] for entry in live.rounds] == [1, 2, 3]
    assert ("3 of 3" in cell.drawn[-1]) == (per_step == "all")


def test_a_server_that_stops() -> None:
    fedpipe.run("federation.yaml", training={"rounds": 2})
    with fedpipe.serve("federation.yaml", token="open") as server:
        with urllib.request.urlopen(f"{server.url}/v2/health/ready") as answer:
            assert answer.status == 200
        assert server.url in repr(server)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{server.url}/v2/health/live")
    server.stop()  # once more does no harm
    again = fedpipe.serve("federation.yaml", port=int(server.url.rsplit(":", 1)[1]))
    assert again.url == server.url
    again.stop()


def test_mistakes_of_serve() -> None:
    with pytest.raises(InputError, match="exactly one location"):
        fedpipe.serve()
    with pytest.raises(InputError, match="there is no such folder"):
        fedpipe.serve(models="none")
    with fedpipe.serve("federation.yaml", wait=5) as server:  # without a model: ready, and serves those that come
        port = int(server.url.rsplit(":", 1)[1])
        with pytest.raises(InputError, match="the address is not available"):
            fedpipe.serve("federation.yaml", port=port)


def test_watch_yields_while_a_run_is_in_progress() -> None:
    running = threading.Thread(target=lambda: fedpipe.run("federation.yaml", training={"rounds": 3}))
    seen = []
    for one in fedpipe.watch("federation.yaml", "run-1", again=0.05, wait=True):
        seen.append(one)
        if len(seen) == 1:
            running.start()
    running.join()
    assert "waiting for run run-1" in seen[0].state
    assert [one.record.round for one in seen if one.record] == [0, 1, 2, 3]
    assert seen[-1].line


def test_watch_of_a_run_that_does_not_exist_fails_at_once() -> None:
    with pytest.raises(NotFoundError, match="there is no run 'run-1'"):
        fedpipe.watch("federation.yaml", "run-1")


@pytest.mark.parametrize("name", ["check", "compile", "explore", "export", "run", "simulate", "serve"])
def test_unknown_keys(name: str) -> None:
    with pytest.raises(FedpipeError, match=r"unknown key 'trainin'\. Did you mean 'training'"):
        getattr(fedpipe, name)("federation.yaml", trainin={})


FUNCTIONS = sorted(name for name in fedpipe.__all__ if inspect.isfunction(getattr(fedpipe, name)))
ANY = {("predict", "features")}
"""Arguments of which NumPy decides whether it takes them."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_argument_of_a_wrong_type_is_named(name: str) -> None:
    """Each argument of each function, before anything happens."""
    function = getattr(fedpipe, name)
    fine = {
        "federation": fedpipe.read_federation(Path("federation.yaml")),
        "where": fedpipe.Where(),
        "numbers": [1],
        "names": ["a", "b"],
        "output": Path("x"),
        "features": {},
        "tables": [],
    }
    parameters = inspect.signature(function).parameters.values()
    named = [one for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    needed = {one.name: fine.get(one.name, "x") for one in named if one.default is one.empty}
    assert named
    for argument in [one.name for one in named if (name, one.name) not in ANY]:
        with pytest.raises(InputError, match=r"has the type object\. Pass ") as raised:
            function(**{**needed, argument: object()})
        assert raised.value.where == f"fedpipe.{name}, argument {argument!r}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": 5}, "argument 'out': 5 has the type int. Pass a text, a path or None."),
        ({"workers": True}, "argument 'workers': True has the type bool. Pass a whole number."),
        ({"workers": 1.0}, "argument 'workers': 1.0 has the type float. Pass a whole number."),
        ({"parameters": ["rounds=2"]}, "has the type list. Pass a dictionary or None."),
        ({"listener": "print"}, "'print' has the type str. Pass a function."),
        ({"from_head": "no"}, "'no' has the type str. Pass True or False."),
    ],
)
def test_types_that_arguments_of_run_have(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        fedpipe.run("federation.yaml", **arguments)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("run", {"workers": -2}, "fedpipe.run, argument 'workers': -2 is out of bounds. Use 0 to 1024."),
        ("serve", {"port": 99_999}, "argument 'port': 99999 is out of bounds. Use 0 to 65535."),
        ("serve", {"poll": float("nan")}, "argument 'poll': nan is out of bounds. Use 0.1 to 86400."),
        ("serve", {"batch": 0}, "argument 'batch': 0 is out of bounds. Use 1 to 65536."),
    ],
)
def test_numbers_out_of_bounds(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        getattr(fedpipe, name)("federation.yaml", **arguments)
    assert message in str(raised.value)


def test_the_bounds_are_those_of_the_command_line() -> None:
    from typer.main import get_command

    from fedpipe.cli.main import app

    commands, compared = get_command(app).commands, 0  # type: ignore[attr-defined]
    for name in set(FUNCTIONS) & set(commands):
        own = inspect.signature(getattr(fedpipe, name)).parameters
        for option in inspect.signature(commands[name].callback, eval_str=True).parameters.values():
            for info in getattr(option.annotation, "__metadata__", ()):
                if option.name in own and (high := getattr(info, "max", None)) is not None:
                    assert BOUNDS.get(option.name) == (info.min, high), (name, option.name)
                    compared += 1
    assert compared >= 9


def test_numbers_of_numpy_and_paths_of_any_kind_are_taken(here: Path) -> None:
    result = fedpipe.run(here / "federation.yaml", out=str(here / "out"), workers=np.int64(1), training={"rounds": 1})
    assert result.folder == here / "out"
    assert fedpipe.run.__doc__ is not None


def test_a_wrong_call_names_the_function_and_what_was_meant() -> None:
    with pytest.raises(TypeError, match=r"^fedpipe\.run\(\) missing a required argument: 'source'$"):
        fedpipe.run()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"fedpipe\.prune\(\) .* argument 'keep'\. Did you mean 'keep_runs'\?"):
        fedpipe.prune("federation.yaml", keep=1)  # type: ignore[call-arg]
    with pytest.raises(AttributeError, match="has no attribute 'simulat'") as caught:
        fedpipe.simulat  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("simulat", fedpipe)  # Python says: Did you mean: 'simulate'?


def test_answers_show_themselves() -> None:
    result = fedpipe.run("federation.yaml", training={"rounds": 1})
    assert result.model is not None
    answers = fedpipe.predict_file(result.model, "digits.npz")
    text = answers._repr_html_()
    cells = Cells(text).cells
    assert cells[:2] == ["prediction", "probability"]
    assert len(cells) == 13 * 11  # two columns, one for each of ten classes, and the label
    assert "10 of 1797 shown" in text
    assert f"accuracy {answers.accuracy:.4f} over 1797 examples" in text


def test_a_run_without_an_export_has_no_model_of_an_earlier_run() -> None:
    assert fedpipe.run("federation.yaml", out="out", training={"rounds": 1}).model == Path("out/model.onnx")
    assert fedpipe.run("federation.yaml", out="out", name="run-2", training={"rounds": 1}, export="none").model is None
    assert not Path("out/model.onnx").exists()


def test_a_server_says_that_nothing_is_published(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fedpipe"), fedpipe.serve("federation.yaml") as server:
        assert "nothing is published yet" in repr(server)
        assert "fedpipe run" in server._repr_html_()
    assert "store/digits yet: train and publish a model with `fedpipe run`" in caplog.text
    assert repr(server).endswith("(stopped)>")


def test_choices_of_init(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no framework 'torch'\. Valid: keras, numpy"):
        fedpipe.init(tmp_path / "x", framework="torch")
