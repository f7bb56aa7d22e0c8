from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedpipe.commands.run import run
from fedpipe.compiled.compiler import compile_graph, compile_pipeline
from fedpipe.compiled.graph import check_arguments, fill_command, parse_graph, read_graph, resolve
from fedpipe.errors import PipelineError
from fedpipe.federation.file import read_federation
from tests.federations import change


@pytest.fixture
def pipeline(digits: Path) -> Path:
    """Compiles an unrolled pipeline: a step for every training."""
    file = digits / "federation.yaml"
    file.write_text(file.read_text().replace("rounds_per_step: all", "rounds_per_step: 1"))
    compile_pipeline(read_federation(file), digits / "pipeline.yaml")
    return digits / "pipeline.yaml"


def test_steps_have_names_a_person_understands(pipeline: Path) -> None:
    names = [t.name for t in read_graph(pipeline).tasks]
    assert names[:3] == ["shard", "initialise", "1 train hospital-a"]
    assert "10 aggregate" in names
    assert names[-1] == "report"
    assert len(names) == len(set(names))


@pytest.mark.parametrize("simulation", [False, True])
@pytest.mark.parametrize("changes", [{}, {"rounds_per_step: all": "rounds_per_step: 1"}, {"opset: 17": "opset: 18"}])
def test_without_a_file_the_graph_is_the_same(digits: Path, changes: dict[str, str], simulation: bool) -> None:
    federation = read_federation(change(digits, **changes))
    compile_pipeline(federation, digits / "pipeline.yaml", simulation=simulation)
    assert compile_graph(federation, simulation=simulation) == read_graph(digits / "pipeline.yaml")


def test_an_order_in_which_they_can_run(pipeline: Path) -> None:
    done: set[str] = set()
    for task in read_graph(pipeline).tasks:
        assert task.after <= done
        done.add(task.key)


def test_parameters_are_typed_and_have_defaults(pipeline: Path) -> None:
    graph = read_graph(pipeline)
    assert set(graph.parameters) == {
        "store", "run", "data", "learning_rate", "local_epochs", "batch_size", "min_learners", "deadline",
    }  # fmt: skip
    assert graph.parameters["batch_size"] == 16
    assert isinstance(graph.parameters["batch_size"], int)
    assert None not in graph.parameters.values()


def test_arguments(pipeline: Path) -> None:
    graph = read_graph(pipeline)
    found = check_arguments(graph, {"learning_rate": "0.5", "batch_size": "4", "run": "7"})
    assert (found["learning_rate"], found["batch_size"], found["run"]) == (0.5, 4, "7")
    with pytest.raises(PipelineError, match="unknown parameter 'rate'"):
        check_arguments(graph, {"rate": 1})
    with pytest.raises(PipelineError, match="parameter batch_size: 'many' is not a number"):
        check_arguments(graph, {"batch_size": "many"})
    assert check_arguments(graph, {"store": Path("a")})["store"] == "a"
    for wrong in (5, None, ["a"]):
        with pytest.raises(PipelineError, match=r"parameter store: .* is not text"):
            check_arguments(graph, {"store": wrong})


@pytest.mark.parametrize("zero", ["0", 0, "-0"])
def test_a_zero_that_would_have_no_effect_is_refused(pipeline: Path, zero: Any) -> None:
    graph = read_graph(pipeline)
    with pytest.raises(
        PipelineError, match=r"parameter batch_size: 0 means the value of the federation file, which is"
    ):
        check_arguments(graph, {"batch_size": zero})
    for name in ("learning_rate", "min_learners"):
        assert check_arguments(graph, {name: zero})[name] == 0  # as in the file


@pytest.mark.parametrize(("limit", "refused"), [("", False), ("\n  max_seconds: 9", True)])
def test_a_zero_for_no_limit_of_time(pipeline: Path, limit: str, refused: bool) -> None:
    """Where the file has a limit, it would have no effect."""
    file = pipeline.parent / "federation.yaml"
    file.write_text(file.read_text().replace("rounds_per_step: 1", f"rounds_per_step: all{limit}"))
    compile_pipeline(read_federation(file), pipeline)
    graph = read_graph(pipeline)
    with pytest.raises(PipelineError, match="which is 9") if refused else contextlib.nullcontext():
        assert check_arguments(graph, {"max_seconds": "0"})["max_seconds"] == 0


def test_inputs_come_from_parameters_constants_and_other_tasks(pipeline: Path) -> None:
    graph = read_graph(pipeline)
    tasks = {t.name: t for t in graph.tasks}
    shard = resolve(tasks["shard"], {**graph.parameters, "run": "r"}, {}, "job-1")["parameterValues"]
    assert shard["run"] == "r"
    assert shard["job"] == "job-1"
    results: dict[str, Any] = {t.key: {"parameterValues": {"update": t.name}, "artifacts": {}} for t in graph.tasks}
    results["initialise"] = {"parameterValues": {"placed": {"p": 1}, "weights": "w"}, "artifacts": {}}
    combined = resolve(tasks["1 aggregate"], graph.parameters, results, "job")["parameterValues"]
    assert combined["round"] == 1
    assert combined["place"] == {"p": 1}
    assert combined["updates"] == [f"1 train hospital-{k}" for k in "abcde"]


BAD = {
    "absent": (None, "cannot be read"),
    "not YAML": ("a: [", "is not YAML"),
    "a federation": ("name: x", "is not a compiled KFP v2 pipeline"),
    "text": ("hello", "is not a compiled KFP v2 pipeline"),
    "empty": ("", "is not a compiled KFP v2 pipeline"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_files_that_are_not_pipelines(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(PipelineError, match=message):
        read_graph(tmp_path / "p.yaml")


def spec(**task: Any) -> dict[str, Any]:
    return {
        "pipelineInfo": {"name": "p"},
        "deploymentSpec": {"executors": {"e": {"container": {"image": "i", "command": ["c"]}}}},
        "components": {"k": {"executorLabel": "e"}},
        "root": {"dag": {"tasks": {"t": {"taskInfo": {"name": "t"}, "componentRef": {"name": "k"}, **task}}}},
    }


def test_features_that_the_engine_cannot_run() -> None:
    with pytest.raises(PipelineError, match="'t' uses loops"):
        parse_graph(spec(parameterIterator={}))
    with pytest.raises(PipelineError, match="'t' uses conditions"):
        parse_graph(spec(triggerPolicy={"condition": "x"}))
    with pytest.raises(PipelineError, match="wait for each other"):
        parse_graph(spec(dependentTasks=["t"]))
    assert parse_graph(spec()).tasks[0].step is None


def test_placeholders_of_other_containers() -> None:
    executor_input = {
        "inputs": {"parameterValues": {"n": 3, "s": "x"}, "artifacts": {"m": {"artifacts": [{"uri": "/in/m"}]}}},
        "outputs": {
            "parameters": {"o": {"outputFile": "/out/o"}},
            "artifacts": {"a": {"artifacts": [{"uri": "/out/a"}]}},
            "outputFile": "/out/x",
        },
    }
    assert fill_command("--n={{$.inputs.parameters['n']}}", executor_input) == "--n=3"
    assert fill_command("{{$.inputs.parameters['n']}}", executor_input) == "3"
    assert fill_command("{{$.outputs.parameters['o'].output_file}}", executor_input) == "/out/o"
    assert fill_command("{{$.inputs.artifacts['m'].path}}", executor_input) == "/in/m"
    assert fill_command("{{$.outputs.artifacts['a'].uri}}", executor_input) == "/out/a"
    assert fill_command("{{$}}", executor_input).startswith('{"inputs"')


def test_the_compiled_file_is_one_kfp_pipeline(pipeline: Path) -> None:
    """Reads it with kfp's own loader, and checks retries and caching."""
    from kfp import components as kfp_components

    loaded = kfp_components.load_component_from_file(str(pipeline))
    assert loaded.name == "digits"
    assert "5 learners, 10 rounds" in loaded.description
    documents = list(yaml.load_all(pipeline.read_text(), yaml.CSafeLoader))
    tasks = documents[0]["root"]["dag"]["tasks"]
    assert all(t["retryPolicy"]["maxRetryCount"] == 2 for t in tasks.values())
    assert not any(t.get("cachingOptions", {}).get("enableCache") for t in tasks.values())


def test_the_form_explains_each_parameter(pipeline: Path) -> None:
    """In the specification, and in the description that Kubeflow shows on the pipeline's page."""
    file = pipeline.parent / "federation.yaml"
    file.write_text(file.read_text().replace("rounds_per_step: 1", "rounds_per_step: all"))
    compile_pipeline(read_federation(file), pipeline)
    spec = next(yaml.load_all(pipeline.read_text(), yaml.CSafeLoader))
    form, shown = spec["root"]["inputDefinitions"]["parameters"], spec["pipelineInfo"]["description"]
    assert {"store", "run", "rounds", "max_seconds"} <= set(form)
    for name, parameter in form.items():
        assert len(parameter["description"]) > 10, name
        assert f"\n{name}: {parameter['description']}" in shown
    zeros = [name for name, parameter in form.items() if parameter.get("defaultValue") == 0]
    assert zeros
    assert all("0: " in form[name]["description"] for name in zeros)


def test_the_parameters_of_a_placement_are_explained_too(pipeline: Path) -> None:
    file = pipeline.parent / "federation.yaml"
    pool = "{in_form: true, node_selector: {pool: a}, accelerator: {count: 2}}"
    file.write_text(file.read_text().replace("- name: hospital-a", f"- name: hospital-a\n    placement: {pool}"))
    compile_pipeline(read_federation(file), pipeline)
    form = next(yaml.load_all(pipeline.read_text(), yaml.CSafeLoader))["root"]["inputDefinitions"]["parameters"]
    assert form["hospital_a_accelerators"]["description"] == "number of accelerators for hospital_a"
    assert form["hospital_a_node_selector"]["description"] == "labels of the nodes for hospital_a as JSON"


def test_two_compilations_are_the_same_bytes(pipeline: Path) -> None:
    first = pipeline.read_bytes()
    compile_pipeline(read_federation(pipeline.parent / "federation.yaml"), pipeline)
    assert pipeline.read_bytes() == first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pipelineInfo: " + "[" * 100_000, "is nested too deeply"),
        ("pipelineInfo: " + "{a: " * 5000, "is nested too deeply"),
        ("pipelineInfo:\n" + "- " * 5000, "is nested too deeply"),
        ("a: &a {x: 1}\npipelineInfo: {<<: *a}", "line 2 has a merge key, which no pipeline has"),
        ("pipelineInfo: {name: x}\n[a]: b", "is not YAML"),
        ("pipelineInfo: {name: x}\nd: 2024-99-99", "is not YAML: month must be in 1..12"),
        ("pipelineInfo: {name: x}", "is not a compiled KFP v2 pipeline"),
        ("pipelineInfo: 3\nroot: []", "is not a compiled KFP v2 pipeline"),
        ('{"pipelineInfo": {"name": "x"}}', "is not a compiled KFP v2 pipeline"),
    ],
    ids=lambda value: value[:20],
)
def test_files_that_are_no_pipelines(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    with pytest.raises(PipelineError, match=message):
        run(path)
