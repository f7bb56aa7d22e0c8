"""Compiles a federation to a KFP v2 pipeline file."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from fedpipe.compiled.estimate import Estimate, estimate
from fedpipe.compiled.graph import Graph, parse_graph
from fedpipe.errors import MissingExtraError, ModelError
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import split_code
from fedpipe.federation.placement import Placement
from fedpipe.rounds.plan import bare_name
from fedpipe.steps.simulate import check_simulated
from fedpipe.store import is_uri
from fedpipe.store.files import write_whole
from fedpipe.store.objects import encode
from fedpipe.version import __version__

_CODE_LIMIT = 64 * 2**10
"""Most bytes of model.py: it is an argument of a step, and Linux limits an argument to 128 KiB."""


def read_code(federation: Federation) -> str:
    """Reads the text of the federation's model.py. Raises ModelError."""
    return _read_file(federation.model, "model")


def read_simulation_files(federation: Federation) -> tuple[str, str]:
    """Reads the files of `simulation.process` and `simulation.model`; empty texts without. Raises ModelError."""
    settings = federation.simulation
    named = (("process", settings.process), ("model", settings.model))
    process, model = (_read_file(name, f"simulation.{key}") if name else "" for key, name in named)
    return process, model


def _read_file(named: str, key: str) -> str:
    path = Path(split_code(named)[0])
    try:
        code = path.read_text()
    except OSError as error:
        raise ModelError(
            f"the file cannot be read: {error.strerror}", where=str(path), remedy=f"Check the path in `{key}`."
        ) from error
    except UnicodeDecodeError as error:
        raise ModelError("the file is not UTF-8 text", where=str(path), remedy="Save it as UTF-8.") from error
    if len(code.encode()) > _CODE_LIMIT:
        raise ModelError(
            f"the file has {len(code.encode())} bytes, but at most {_CODE_LIMIT} are allowed",
            where=str(path),
            remedy="Move data out of it.",
        )
    return code


def as_json(federation: Federation) -> str:
    """Returns the federation for the steps as JSON, without local folders and without placement."""

    def bare(named: str) -> str:
        return named.rpartition("/")[2]

    simulation = msgspec.structs.replace(
        federation.simulation, placement=Placement(), process=bare(federation.simulation.process),
        model=bare(federation.simulation.model),
    )  # fmt: skip
    learners = tuple(
        msgspec.structs.replace(learner, placement=Placement(), secret="") for learner in federation.learners
    )
    portable = msgspec.structs.replace(
        federation, store="store", model=bare(federation.model), learners=learners, simulation=simulation, placement={},
        data=msgspec.structs.replace(federation.data, uri=bare_name(federation.data.uri)),
    )  # fmt: skip
    return encode(portable).decode()


def rehearsed(federation: Federation, *, from_head: bool) -> Federation:
    """Returns a federation as it is simulated: from fresh weights, or from the model at HEAD."""
    start: Literal["head", "fresh"] = "head" if from_head else "fresh"
    training = msgspec.structs.replace(federation.training, start=start)
    return msgspec.structs.replace(federation, training=training)


def compile_pipeline(
    federation: Federation, output: Path, *, simulation: bool = False, from_head: bool = False
) -> Estimate:
    """Writes the pipeline file.

    Args:
        federation: the federation.
        output: a .yaml file; written atomically.
        simulation: compile a rehearsal on one machine, with TensorFlow Federated, from fresh weights.
        from_head: let the rehearsal continue from the model at HEAD.

    Raises:
        ModelError: model.py cannot be read.
        InputError: the file cannot be written.
        MissingExtraError: kfp is not installed.
    """
    wired = _wired(federation, simulation=simulation, from_head=from_head)
    text, pipeline = _completed(wired, federation)
    write_whole(output, text.encode())
    return estimate(federation, parse_graph(pipeline), len(text.encode()))


def compile_graph(federation: Federation, *, simulation: bool = False, from_head: bool = False) -> Graph:
    """Compiles a federation to the graph of its pipeline file, without writing and reading YAML.

    Args:
        federation: the federation.
        simulation: compile a rehearsal on one machine.
        from_head: let the rehearsal continue from the model at HEAD.

    Raises:
        ModelError: model.py cannot be read.
        MissingExtraError: kfp is not installed.
    """
    from google.protobuf.json_format import MessageToDict

    wired = _wired(federation, simulation=simulation, from_head=from_head)
    text = json.dumps(MessageToDict(wired.pipeline_spec), sort_keys=True)  # the order of the file
    spec: dict[str, Any] = json.loads(text)
    _set_images(spec, federation)
    return parse_graph(spec)


def _wired(federation: Federation, *, simulation: bool, from_head: bool) -> Any:
    """Returns the pipeline of a federation. Raises ModelError and MissingExtraError: see `compile_pipeline`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # kfp's own deprecations do not concern the user
            from fedpipe.pipelines.collective_learning import collective_learning
            from fedpipe.pipelines.federated_averaging import federated_averaging
            from fedpipe.pipelines.sessions import sessions
            from fedpipe.pipelines.split_learning import split_learning
            from fedpipe.pipelines.tff_simulation import tff_simulation
    except ImportError as error:
        raise MissingExtraError(str(error.name or "kfp"), "kubeflow") from error
    in_steps = collective_learning if federation.proposers else federated_averaging
    wire = split_learning if federation.split else sessions if federation.in_sessions else in_steps
    if simulation:
        federation = rehearsed(federation, from_head=from_head)
    texts = (as_json(federation), read_code(federation))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if simulation:
            check_simulated(federation)
            return tff_simulation(federation, *texts, *read_simulation_files(federation))
        return wire(federation, *texts)


def _completed(wired: Any, federation: Federation) -> tuple[str, dict[str, Any]]:
    """Returns the pipeline file with the federation's images and the form's help, and its pipeline specification.

    KFP's own compiler writes YAML in pure Python, which takes most of its time.
    """
    from google.protobuf.json_format import MessageToDict
    from kfp.compiler.pipeline_spec_builder import extract_comments_from_pipeline_spec

    from fedpipe.pipelines.frame import help_of

    documents = [MessageToDict(wired.pipeline_spec), MessageToDict(wired.platform_spec)]
    head = extract_comments_from_pipeline_spec(documents[0], wired.description)
    _set_images(documents[0], federation)
    for name, parameter in documents[0]["root"]["inputDefinitions"]["parameters"].items():
        parameter["description"] = help_of(name)
    written = [document for document in documents if document]
    return head + yaml.dump_all(written, Dumper=yaml.CSafeDumper, sort_keys=True), documents[0]


def _set_images(spec: dict[str, Any], federation: Federation) -> None:
    """Replaces the images of a pipeline's specification by the federation's."""
    for executor in spec["deploymentSpec"]["executors"].values():
        environment = executor["container"]["image"].rpartition("/")[2].partition(":")[0]
        executor["container"]["image"] = image_of(federation, environment)


def without_local_defaults(text: bytes) -> bytes:
    """Returns a pipeline file whose form has no path of this machine: these parameters must be given."""
    spec, *more = yaml.load_all(text, Loader=yaml.CSafeLoader)
    local = [name for name in ("store", "data") if _is_local(spec["root"]["inputDefinitions"]["parameters"], name)]
    for name in local:
        for field in ("defaultValue", "isOptional"):
            del spec["root"]["inputDefinitions"]["parameters"][name][field]
    head = [line for line in text.decode().splitlines(keepends=True) if line.startswith("#")]
    kept = [
        re.sub(rf"^(#    ({'|'.join(local)}): str) \[Default: .*\]", r"\1", line) if local else line for line in head
    ]
    return ("".join(kept) + yaml.dump_all([spec, *more], Dumper=yaml.CSafeDumper, sort_keys=True)).encode()


def _is_local(parameters: dict[str, Any], name: str) -> bool:
    default = parameters.get(name, {}).get("defaultValue", "")
    return bool(default) and (not is_uri(default) or default.startswith("file://"))


def manifest_of(text: bytes, namespace: str = "") -> str:
    """Returns a pipeline file as Kubernetes objects, for Git and `kubectl apply` (KFP's Kubernetes API mode, 2.14+).

    Args:
        text: the pipeline file.
        namespace: namespace of the objects; that of `kubectl` by default.

    Returns:
        `Pipeline`, and a `PipelineVersion` named by its content: other content is another version.
    """
    spec, *platform = yaml.load_all(text, Loader=yaml.CSafeLoader)
    name = spec["pipelineInfo"]["name"]
    where = {"namespace": namespace} if namespace else {}
    version = version_of(text)
    shown = {"displayName": name, "description": spec["pipelineInfo"].get("description", "")}
    pipeline = {"metadata": {"name": name, **where}, "spec": shown}
    body = {"displayName": version, "pipelineName": name, "pipelineSpec": spec}
    body |= {"platformSpec": platform[0]} if platform else {}
    labelled = {"name": f"{name}-{version.replace('.', '-')}", **where}
    head = {"apiVersion": "pipelines.kubeflow.org/v2beta1"}
    objects = [head | {"kind": "Pipeline"} | pipeline,
               head | {"kind": "PipelineVersion", "metadata": labelled, "spec": body}]  # fmt: skip
    return yaml.dump_all(objects, Dumper=yaml.CSafeDumper, sort_keys=False)


def version_of(text: bytes) -> str:
    """Returns the name of a pipeline's version: fedpipe's version, and a digest of the file."""
    return f"{__version__}-{hashlib.sha256(text).hexdigest()[:12]}"


def image_of(federation: Federation, environment: str) -> str:
    """Returns the image of an environment, by the digest in the federation file, or else by a tag."""
    images = federation.images
    digest = {str(name): digest for name, digest in images.digests.items()}.get(environment)
    name = f"{images.registry}/{environment}"
    return f"{name}@{digest}" if digest else f"{name}:{images.tag or __version__}"


def images_of(federation: Federation) -> list[str]:
    """Lists all images that the federation's pipeline needs."""
    return sorted({task.image for task in compile_graph(federation).tasks})
