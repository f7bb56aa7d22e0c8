"""Writes docs/catalogue from the faces in components/; `--check` fails when it is out of date.

Each component has a folder in the form of kubeflow/pipelines-components: metadata.yaml, README.md and a pipeline as an
example. Nothing in it is written by hand.
"""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pages import ROOT, generate

from fedpipe.federation.environments import ENVIRONMENTS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # kfp's own deprecations
    from fedpipe import components

FOLDER = Path(__file__).parent / "catalogue"
VERIFIED = "2026-11-28T00:00:00Z"
"""When the components last ran on a Kubeflow; the catalogue refuses a date that is older than a year."""
PIPELINES = ">=2.16.0"
"""The oldest backend on which they ran."""
PYTHON = {"String": "str", "Integer": "int", "Float": "float", "Boolean": "bool", "Dict": "dict", "List": "list"}
TAGS = {
    "data": ("shard", "explore", "describe"), "training": ("initialise", "train", "learn", "simulate"),
    "aggregation": ("aggregate", "coordinate", "vote", "tally"), "evaluation": ("score", "evaluate", "report"),
    "deployment": ("export",),
}  # fmt: skip


class Part(NamedTuple):
    """An input or an output: name, type, default as text and description."""

    name: str
    kind: str
    default: str
    text: str


class Face(NamedTuple):
    """A component in words."""

    name: str
    overview: str
    inputs: list[Part]
    outputs: list[Part]


def face_of(name: str) -> Face:
    """Read a component's declaration."""
    component = getattr(components, name)
    overview, _, rest = (component.pipeline_func.__doc__ or "").partition("Args:")
    texts = dict(re.findall(r"^ {8}(\w+): (.+)$", rest, re.MULTILINE))
    spec = component.component_spec
    inputs = [
        Part(key, PYTHON[one.type], repr(one.default) if one.optional else "", texts[key])
        for key, one in spec.inputs.items()
    ]
    outputs = [
        Part(key, PYTHON.get(one.type, "dsl." + one.type.partition("@")[0].rpartition(".")[2]), "", texts[key])
        for key, one in (spec.outputs or {}).items()
    ]
    return Face(name, " ".join(overview.split()), inputs, outputs)


def metadata(face: Face) -> str:
    """Write the metadata of the catalogue, with the fields in its order."""
    tags = [tag for tag, names in TAGS.items() if face.name in names]
    fields: dict[str, Any] = {
        "name": face.name,
        "stability": "beta",
        "dependencies": {"kubeflow": [{"name": "Pipelines", "version": PIPELINES}]},
        "tags": ["federated-learning", *tags],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}lastVerified: {VERIFIED}\n"


def readme(face: Face) -> str:
    """Describe a component with tables of its inputs and outputs."""
    inputs = [f"| `{p.name}` | `{p.kind}` | {f'`{p.default}`' if p.default else '**required**'} | {p.text} |"
              for p in face.inputs]  # fmt: skip
    outputs = [f"| `{p.name}` | `{p.kind}` | {p.text} |" for p in face.outputs]
    return "\n".join([
        f"# {face.name}", "", "## Overview", "", face.overview, "",
        f"It runs in the image `fedpipe/{ENVIRONMENTS[face.name]}`, as `fedpipe step {face.name}`.", "",
        "## Inputs", "", "| name | type | default | description |", "| --- | --- | --- | --- |", *inputs, "",
        "## Outputs", "", "| name | type | description |", "| --- | --- | --- |", *outputs, "",
        "## Usage", "", "```python", example(face).partition('"""\n\n')[2].rstrip(), "```", "",
    ])  # fmt: skip


def example(face: Face) -> str:
    """Write a pipeline of this component alone, whose parameters are the component's."""
    required = [part for part in face.inputs if not part.default]
    signature = ", ".join(f"{part.name}: {part.kind}" for part in required)
    passed = ", ".join(f"{part.name}={part.name}" for part in required)
    return (
        f'"""A pipeline with the component `{face.name}`."""\n\n'
        "from kfp import dsl\n\nfrom fedpipe import components\n\n\n"
        f'@dsl.pipeline(name="{face.name}-example")\ndef example({signature}):\n'
        f'    """Runs `{face.name}` with its own defaults."""\n    components.{face.name}({passed})\n'
    )


def main() -> None:
    """Write or compare all folders."""
    known = set()
    for name in components.__all__:
        face, folder = face_of(name), FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in (
            ("metadata.yaml", metadata(face)),
            ("README.md", readme(face)),
            ("example.py", example(face)),
        ):
            generate(folder / file, text)
        known.add(folder)
    if left := sorted(set(FOLDER.iterdir()) - known):
        sys.exit(f"{left[0].relative_to(ROOT)} belongs to no component: remove it")


if __name__ == "__main__":
    main()
