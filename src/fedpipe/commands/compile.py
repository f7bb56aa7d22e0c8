"""Compiles a federation to a pipeline file for Kubeflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedpipe.compiled.compiler import compile_pipeline, manifest_of, without_local_defaults
from fedpipe.compiled.estimate import Estimate
from fedpipe.errors import InputError
from fedpipe.federation.sources import Source, read_source
from fedpipe.store.files import write_whole


def compile(
    source: Source, output: str | Path = "pipeline.yaml", *, simulation: bool = False,
    manifest: str | Path | None = None, **changes: Any,
) -> Estimate:  # fmt: skip
    """Compiles a federation to one Kubeflow pipeline file.

    Args:
        source: a federation file, or its content.
        output: the .yaml file to write.
        simulation: compiles the rehearsal of `simulate` instead.
        manifest: also writes Pipeline and PipelineVersion objects to this file, for `kubectl apply`.
        changes: keys of the federation file with new values.

    Returns:
        The size and the overhead of the pipeline.

    Raises:
        FederationError: names the key, the mistake and the remedy.
        InputError: a file cannot be written.
        MissingExtraError: kfp is not installed.

    >>> import fedpipe
    >>> estimate = fedpipe.compile("demo/federation.yaml", "pipeline.yaml", training={"rounds": 2})
    >>> estimate.steps > 3
    True
    """
    output = Path(output)
    if output.suffix not in (".yaml", ".yml"):
        raise InputError("is not a .yaml file", where=str(output), remedy="Choose a name that ends with .yaml.")
    estimate = compile_pipeline(read_source(source, changes), output, simulation=simulation)
    if manifest is not None:
        write_whole(Path(manifest), manifest_of(without_local_defaults(output.read_bytes())).encode())
    return estimate
