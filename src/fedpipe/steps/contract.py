"""The contract between a component and its body: KFP's executor input in, executor output out."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import msgspec
from msgspec import Struct

from fedpipe.codec import converted
from fedpipe.errors import InputError, StepError, StoreError
from fedpipe.frameworks import import_frameworks
from fedpipe.rounds.plan import RunPlace
from fedpipe.rounds.timings import Timing, note
from fedpipe.sessions.pacing import drive
from fedpipe.sessions.results import PATIENCE
from fedpipe.steps import STEPS, WAITING
from fedpipe.steps.early import completed, is_early

log = logging.getLogger("fedpipe")

_MOUNTS = {"minio://": "/minio/", "s3://": "/s3/", "gs://": "/gcs/"}


class Artifact(Struct, frozen=True, kw_only=True):
    """An artifact of the UI: flat metadata and, for a page, a file."""

    schema: ClassVar[str] = "system.Artifact"
    metadata: dict[str, Any] = {}
    content: str = ""


class MetricsArtifact(Artifact, frozen=True, kw_only=True):
    """Numbers by name."""

    schema: ClassVar[str] = "system.Metrics"


class ModelArtifact(Artifact, frozen=True, kw_only=True):
    """A model: its digest, round and metrics; the weights themselves are in the store."""

    schema: ClassVar[str] = "system.Model"


class Confusion(Artifact, frozen=True, kw_only=True):
    """A confusion matrix as the UI draws it."""

    schema: ClassVar[str] = "system.ClassificationMetrics"


class Html(Artifact, frozen=True, kw_only=True):
    """A page."""

    schema: ClassVar[str] = "system.HTML"


class Markdown(Artifact, frozen=True, kw_only=True):
    """A short text with tables."""

    schema: ClassVar[str] = "system.Markdown"


def _here(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class Hands(NamedTuple):
    """The surroundings of a waiting step; by default those of a container, where all of it happens in this process.

    Args:
        call: calls a function with its arguments in the environment of the step's framework.
        together: calls one like `call`, which waits for other steps in between, so all of them run at once.
        sleep: waits for some seconds.
        notify: takes a moment, and the metadata of its round.
    """

    call: Callable[..., Any] = _here
    sleep: Callable[[float], None] = time.sleep
    notify: Callable[..., None] = lambda *_: None
    together: Callable[..., Any] = _here


def body(name: str) -> ModuleType:
    """Return the module of a step. Raises InputError for an unknown name."""
    if name not in STEPS:
        raise InputError(f"unknown step {name!r}", remedy=f"Known: {', '.join(STEPS)}.")
    return importlib.import_module(f"fedpipe.steps.{name}")


def parse(name: str, values: dict[str, Any]) -> Any:
    """Return the step's inputs as its struct. Raises InputError."""
    kind = body(name).Inputs
    fields = {f.name: f for f in msgspec.structs.fields(kind)}
    cast = {key: _whole(value, fields[key].type) for key, value in values.items() if key in fields}
    try:
        return converted(cast, kind)
    except msgspec.ValidationError as error:
        raise InputError(str(error).replace("$.", ""), where=f"step {name}") from error


def inputs_of(name: str, executor_input: Mapping[str, Any]) -> Any:
    """Return the inputs in KFP's executor input as the step's struct. Raises InputError."""
    return parse(name, executor_input.get("inputs", {}).get("parameterValues", {}))


def _whole(value: Any, kind: Any) -> Any:
    """Return whole numbers as int, where a type has such: in KFP's protobuf structs all numbers are floats."""
    if isinstance(value, float) and value.is_integer() and kind is int:
        return int(value)
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, Struct):
        return _all_whole(value)
    return value


def _all_whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _all_whole(each) for key, each in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def execute(name: str, executor_input: dict[str, Any], hands: Hands | None = None) -> Any:
    """Run a step and write its executor output.

    Args:
        name: the step.
        executor_input: KFP's executor input, as the launcher or the local engine makes it.
        hands: the surroundings of a waiting step.

    Returns:
        The step's `Outputs`.

    Raises:
        FedpipeError: see the step.
    """
    executor_input = ready(name, executor_input, (hands or Hands()).sleep, prepares=True)
    inputs = inputs_of(name, executor_input)
    started, clock = time.time(), time.monotonic()
    try:
        outputs = body(name).run(inputs, hands or Hands()) if name in WAITING else body(name).run(inputs)
    except OSError as error:
        raise StepError(
            f"the disk of step {name} cannot be used: {error.strerror}",
            where=str(error.filename or tempfile.gettempdir()),
            remedy="Provide space for a few models.",
        ) from error
    _note_time(name, inputs, outputs, started, time.monotonic() - clock)
    write_outputs(outputs, executor_input["outputs"])
    return outputs


def ready(
    name: str, executor_input: dict[str, Any], sleep: Callable[[float], None], *, prepares: bool = False,
    patience: float = PATIENCE,
) -> dict[str, Any]:  # fmt: skip
    """Return the executor input of a step, completed by what it awaits if it has started early.

    Args:
        name: the step.
        executor_input: KFP's executor input.
        sleep: waits for some seconds.
        prepares: whether this process imports the framework meanwhile, and prepares the step's work.
        patience: seconds without a sign of the step that it awaits.

    Raises:
        RoundError: the step that it awaits failed, or does not work.
        InputError, StoreError: the inputs are wrong; the store fails.
    """
    values = executor_input.get("inputs", {}).get("parameterValues", {})
    if not is_early(name, values):
        return executor_input
    prepare = getattr(body(name), "prepare", None) if prepares else None
    if prepares and values.get("framework") == "keras":
        import_frameworks()
    waiting = completed(
        name, values, lambda given: prepare(parse(name, given)) if prepare else None, patience=patience
    )  # fmt: skip
    return {**executor_input, "inputs": {**executor_input["inputs"], "parameterValues": drive(waiting, sleep)}}


def find(name: str, values: dict[str, Any]) -> Any | None:
    """Return the outputs of a step whose work is already in the store; None when there is work to do.

    This is cheap: bodies that need a framework have a `find` that does not.
    """
    look = getattr(body(name), "find", None)
    return look(parse(name, values)) if look else None


def give_up(name: str, values: dict[str, Any], why: str) -> Any | None:
    """Drop the learner of a step whose process died for good, with the reason; None for a step that the run needs.

    The local engine and the parent in a pod see that. A pod that is deleted or evicted is a failed step of Kubeflow.
    """
    leave = getattr(body(name), "give_up", None)
    return leave(parse(name, values), why) if leave else None


def _note_time(name: str, inputs: Any, outputs: Any, started: float, seconds: float) -> None:
    place = getattr(inputs, "place", None) or getattr(outputs, "place", None)
    if not isinstance(place, RunPlace):
        return
    timing = Timing(
        step=name,
        learner=getattr(inputs, "learner", ""),
        round=getattr(inputs, "round", 0),
        started=started,
        seconds=seconds,
    )
    try:
        note(place.open(), place.run, timing)
    except StoreError as error:
        log.warning("cannot write the time of step %s: %s", name, error)


def write_outputs(outputs: Any, wanted: dict[str, Any]) -> None:
    """Write the executor output that KFP's launcher and the local engine read."""
    parameters: dict[str, Any] = {}
    artifacts: dict[str, Any] = {}
    for field in msgspec.structs.fields(outputs):
        value = getattr(outputs, field.name)
        if not isinstance(value, Artifact):
            parameters[field.name] = msgspec.to_builtins(value)
            continue
        for runtime in wanted.get("artifacts", {}).get(field.name, {}).get("artifacts", []):
            content = value.content
            if isinstance(value, ModelArtifact):  # the store has the model: the artifact shows where
                content = json.dumps(value.metadata, indent=1)
            if content:
                path = local_path(runtime["uri"])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
            kept = {"name": runtime["name"], "uri": runtime["uri"], "metadata": value.metadata}
            artifacts[field.name] = {"artifacts": [kept]}
    path = Path(wanted["outputFile"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"parameterValues": parameters, "artifacts": artifacts}))


def local_path(uri: str) -> Path:
    """Return the path at which the launcher mounts an artifact: `/minio/b/k` for `minio://b/k`."""
    for scheme, mount in _MOUNTS.items():
        if uri.startswith(scheme):
            return Path(mount + uri.removeprefix(scheme))
    return Path(uri.removeprefix("file://"))


def start_log() -> None:
    """Write the log of a step to standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("absl").setLevel(logging.WARNING)


def parse_arguments(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the step's name and the executor input of the container's command. Raises InputError."""
    if len(arguments) != 2:
        raise InputError(
            "a step takes its name and KFP's executor input",
            remedy=f"Steps: {', '.join(STEPS)}. To run a federation, use `fedpipe run`.",
        )
    name, text = arguments
    body(name)
    try:
        executor_input = json.loads(text)
    except ValueError as error:
        raise InputError("the executor input is not JSON", where=f"step {name}") from error
    if not isinstance(executor_input, dict) or "outputFile" not in executor_input.get("outputs", {}):
        raise InputError("the executor input lacks outputs.outputFile", where=f"step {name}")
    return name, executor_input
