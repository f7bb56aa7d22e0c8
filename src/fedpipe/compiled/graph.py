"""Reads a compiled pipeline file as a graph of tasks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml

from fedpipe.errors import PipelineError, one_line
from fedpipe.federation.environments import ENVIRONMENTS, WITH_FRAMEWORK, Environment
from fedpipe.federation.names import YEAR
from fedpipe.rounds.plan import Settings
from fedpipe.store.userinfo import check_no_credentials
from fedpipe.suggestion import closest

_PARAMETER = re.compile(r"\{\{\$\.inputs\.parameters\[(?:'|\")(.+?)(?:'|\")\]\}\}")
_DEEPEST = 100
_UNSUPPORTED = {
    "iteratorPolicy": "loops",
    "parameterIterator": "loops",
    "artifactIterator": "loops",
    "triggerPolicy": "conditions and exit handlers",
}


class Task(NamedTuple):
    """Describes a step: its container, its inputs and their sources, its outputs, and its retries."""

    key: str
    name: str
    command: tuple[str, ...]
    arguments: tuple[str, ...]
    image: str
    inputs: Mapping[str, Any]
    defaults: Mapping[str, Any]
    outputs: tuple[str, ...]
    artifacts: Mapping[str, str]
    after: frozenset[str]
    retries: int
    backoff: float

    @property
    def step(self) -> str | None:
        """Returns the name of the fedpipe step; None for any other container."""
        return self.command[2] if self.command[:2] == ("fedpipe", "step") and len(self.command) == 3 else None

    @property
    def environment(self) -> str:
        """The environment in which a fedpipe step runs, from the name of its image; `core` for other containers."""
        named = re.split("[:@]", self.image.rpartition("/")[2])[0]
        return named if named in get_args(Environment) and self.step else ENVIRONMENTS.get(self.step or "", "core")


class Graph(NamedTuple):
    """Describes a pipeline: its parameters with defaults and types, and its tasks in an order in which they can run."""

    name: str
    parameters: Mapping[str, Any]
    types: Mapping[str, str]
    tasks: tuple[Task, ...]

    @property
    def needs_tensorflow(self) -> bool:
        """Whether a step trains or measures with TensorFlow: an export alone does not need it for every framework."""
        return any(task.step in WITH_FRAMEWORK and task.environment == "keras" for task in self.tasks)


def read_graph(path: Path) -> Graph:
    """Reads a compiled pipeline.

    Raises:
        PipelineError: the file is not a compiled pipeline, or uses features that the local engine cannot run.
    """
    try:
        text = path.read_text()
        _check_nesting(text)
        documents = list(yaml.load_all(text, Loader=yaml.CSafeLoader))
    except OSError as error:
        raise PipelineError(
            f"the file cannot be read: {error.strerror}", where=str(path), remedy="Check the path."
        ) from error
    except (yaml.YAMLError, ValueError, TypeError) as error:  # a date that is none, a key that is a list
        raise PipelineError(f"the file is not YAML: {one_line(error)}", where=str(path)) from error
    spec = documents[0] if documents and isinstance(documents[0], dict) else {}
    try:
        return parse_graph(spec)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise PipelineError(
            "the file is not a compiled KFP v2 pipeline",
            where=str(path),
            remedy="Write one with `fedpipe compile federation.yaml`.",
        ) from error
    except PipelineError as error:
        raise PipelineError(error.what, where=str(path), remedy=error.remedy) from error


def _check_nesting(text: str) -> None:
    """Refuse what libyaml's loader, which is fast, does not survive. Raises yaml.YAMLError."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1 if event.start_mark else 0
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"line {line} is nested too deeply")
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
            raise yaml.YAMLError(f"line {line} has a merge key, which no pipeline has")


def parse_graph(spec: Mapping[str, Any]) -> Graph:
    """Returns the graph of a pipeline specification. Raises PipelineError, and KeyError if it is malformed."""
    executors = spec["deploymentSpec"]["executors"]
    tasks = [_task(key, task, spec["components"], executors) for key, task in spec["root"]["dag"]["tasks"].items()]
    definitions = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    return Graph(
        name=spec["pipelineInfo"]["name"],
        parameters={name: _as_integer(d.get("defaultValue"), d["parameterType"]) for name, d in definitions.items()},
        types={name: d["parameterType"] for name, d in definitions.items()},
        tasks=tuple(_sort(tasks)),
    )


def _task(key: str, task: Mapping[str, Any], components: Mapping[str, Any], executors: Mapping[str, Any]) -> Task:
    name = task["taskInfo"]["name"]
    for field, what in _UNSUPPORTED.items():
        if field in task:
            raise PipelineError(
                f"step {name!r} uses {what}", remedy="Unroll it: the local engine only runs plain steps."
            )
    component = components[task["componentRef"]["name"]]
    if "dag" in component or "container" not in executors[component["executorLabel"]]:
        raise PipelineError(
            f"step {name!r} is a pipeline or an importer", remedy="Replace it: the local engine only runs containers."
        )
    container = executors[component["executorLabel"]]["container"]
    inputs, policy = task.get("inputs", {}), task.get("retryPolicy", {})
    definitions = component.get("inputDefinitions", {}).get("parameters", {})
    outputs = component.get("outputDefinitions", {})
    bindings = {**inputs.get("parameters", {}), **inputs.get("artifacts", {})}
    producers = {b[kind]["producerTask"] for b in bindings.values() for kind in b if kind.startswith("taskOutput")}
    return Task(
        key=key,
        name=name,
        command=tuple(container.get("command", ())),
        arguments=tuple(container.get("args", ())),
        image=container["image"],
        inputs=bindings,
        defaults={
            n: _as_integer(d["defaultValue"], d["parameterType"]) for n, d in definitions.items() if "defaultValue" in d
        },
        outputs=tuple(outputs.get("parameters", {})),
        artifacts={n: d["artifactType"]["schemaTitle"] for n, d in outputs.get("artifacts", {}).items()},
        after=frozenset(task.get("dependentTasks", ())) | producers,
        retries=int(policy.get("maxRetryCount", 0)),
        backoff=float(str(policy.get("backoffDuration", "0s")).rstrip("s")),
    )


def _as_integer(value: Any, kind: str) -> Any:
    """Converts whole numbers, which protobuf writes to YAML as floats."""
    return int(value) if kind == "NUMBER_INTEGER" and isinstance(value, float) else value


def _sort(tasks: list[Task]) -> list[Task]:
    """Sorts tasks topologically."""
    done: set[str] = set()
    ordered: list[Task] = []
    while len(ordered) < len(tasks):
        ready = [t for t in tasks if t.key not in done and t.after <= done]
        if not ready:
            raise PipelineError("its steps wait for each other, or for steps that do not exist")
        ordered += ready
        done |= {t.key for t in ready}
    return ordered


def check_arguments(graph: Graph, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the pipeline's parameters with these values, as text or typed. Raises PipelineError, InputError."""
    for name, value in arguments.items():
        if isinstance(value, str):
            check_no_credentials(value, f"parameter {name}")
        if name not in graph.parameters:
            known = ", ".join(sorted(graph.parameters)) or "none"
            close = closest(name, graph.parameters)
            meant = f" Did you mean {close!r}?" if close else ""
            raise PipelineError(f"unknown parameter {name!r}", remedy=f"Choose one of: {known}.{meant}")
    found = {name: _parse(name, value, graph.types[name]) for name, value in arguments.items()}
    for name, value in found.items():
        default = graph.parameters[name]
        derived = (name, default) == ("max_seconds", YEAR) or name == "min_learners"  # the file need not have it
        if name in Settings.__struct_fields__ and value == 0 and default and not derived:
            what = f"0 means the value of the federation file, which is {default:g}"
            raise PipelineError(what, where=f"parameter {name}", remedy="Leave it out, or change it in that file.")
    return {**graph.parameters, **found}


def _parse(name: str, value: Any, kind: str) -> Any:
    """Returns a value of the parameter's kind, from text or typed."""
    if kind == "STRING":
        if not isinstance(value, str | os.PathLike):
            raise PipelineError(f"{value!r} is not text", where=f"parameter {name}", remedy="Write text.")
        return os.fspath(value)
    read, expected, remedy = _READERS.get(kind, _AS_JSON)
    try:
        found = read(value) if isinstance(value, str) else value
        json.dumps(found, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise PipelineError(f"{value!r} is not {expected}", where=f"parameter {name}", remedy=remedy) from error
    return found


def _whole(text: str) -> int:
    """Reads a whole number; Python itself would read 1_0 as 10."""
    return int(text.replace("_", "x"))


def _number(text: str) -> float:
    """Reads a number; Python itself would read 1_0 as 10."""
    return float(text.replace("_", "x"))


_AS_JSON: tuple[Callable[[str], Any], str, str] = (json.loads, "JSON", "Write JSON, in quotes for the shell.")
_READERS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "NUMBER_INTEGER": (_whole, "a number", "Write a whole number, such as 20."),
    "NUMBER_DOUBLE": (_number, "a number", "Write a finite number, such as 0.01."),
    "BOOLEAN": (json.loads, "true or false", "Write true or false."),
}
"""How text is read as a parameter, by its kind in KFP."""


def resolve(
    task: Task, parameters: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]], job: str
) -> dict[str, Any]:
    """Returns the inputs of a task: parameter values and artifacts by name.

    Args:
        task: the task.
        parameters: parameters of the pipeline.
        results: executor outputs of the finished tasks.
        job: the value of `{{$.pipeline_job_uuid}}`.
    """
    values: dict[str, Any] = dict(task.defaults)
    artifacts: dict[str, Any] = {}
    for name, binding in task.inputs.items():
        if "componentInputParameter" in binding:
            values[name] = parameters[binding["componentInputParameter"]]
        elif "taskOutputParameter" in binding:
            source = binding["taskOutputParameter"]
            values[name] = results[source["producerTask"]]["parameterValues"][source["outputParameterKey"]]
        elif "taskOutputArtifact" in binding:
            source = binding["taskOutputArtifact"]
            artifacts[name] = results[source["producerTask"]]["artifacts"][source["outputArtifactKey"]]
        else:
            values[name] = binding["runtimeValue"]["constant"]
    filled = {name: _fill(value, values, job) for name, value in values.items()}
    return {
        "parameterValues": {n: v for n, v in filled.items() if not n.startswith("pipelinechannel--")},
        "artifacts": artifacts,
    }


def _fill(value: Any, values: Mapping[str, Any], job: str) -> Any:
    """Replaces placeholders by values; a placeholder that is the whole text keeps the value's type."""
    if isinstance(value, list):
        return [_fill(item, values, job) for item in value]
    if isinstance(value, dict):
        return {key: _fill(item, values, job) for key, item in value.items()}
    if not isinstance(value, str) or "{{$." not in value:
        return value
    if whole := _PARAMETER.fullmatch(value):
        return values[whole[1]]
    text = _PARAMETER.sub(lambda match: _as_text(values[match[1]]), value)
    return text.replace("{{$.pipeline_job_uuid}}", job).replace("{{$.pipeline_job_name}}", job)


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def fill_command(part: str, executor_input: Mapping[str, Any]) -> str:
    """Fills the placeholders in a part of a container's command, like the launcher."""
    if part == "{{$}}":
        return json.dumps(executor_input)
    inputs, outputs = executor_input["inputs"], executor_input["outputs"]
    text = _fill(part, inputs["parameterValues"], "")
    text = text if isinstance(text, str) else _as_text(text)
    for name, parameter in outputs["parameters"].items():
        text = text.replace(f"{{{{$.outputs.parameters['{name}'].output_file}}}}", parameter["outputFile"])
    for side in ("inputs", "outputs"):
        for name, listed in executor_input[side]["artifacts"].items():
            uri = listed["artifacts"][0]["uri"]
            for field in ("uri", "path"):
                text = text.replace(f"{{{{$.{side}.artifacts['{name}'].{field}}}}}", uri)
    return text.replace("{{$}}", json.dumps(executor_input))
