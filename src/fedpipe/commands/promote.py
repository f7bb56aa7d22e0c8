"""Chooses the version of a model that servers answer with."""

from __future__ import annotations

from pathlib import Path

import yaml

from fedpipe.federation.sources import Source, read_source
from fedpipe.serving.catalogue import locate
from fedpipe.serving.kserve import check_readable, inference_service
from fedpipe.serving.promotion import promote as decide
from fedpipe.serving.promotion import split_for
from fedpipe.store.files import write_whole


def promote(
    name: str, version: int | None = None, *, source: Source | None = None, store: str | None = None,
    models: str | Path | None = None, latest: bool = False, canary: float | None = None,
    kserve: str | Path | None = None, runtime: str = "fedpipe",
) -> str:  # fmt: skip
    """Chooses the version of a model that answers; servers follow within seconds.

    Args:
        name: the model's name.
        version: a version; choose an older one to roll back.
        source: a federation file, or its content; for its store.
        store: URI of a store, or of one federation in it.
        models: a folder of `NAME/VERSION/model.onnx` instead.
        latest: always the newest version that loads.
        canary: the share of the requests for this version; the current one keeps the rest.
        kserve: a file for the InferenceService that makes KServe do the same.
        runtime: the ServingRuntime in that file.

    Returns:
        The versions that answer, in words.

    Raises:
        InputError: the models' place is not given or wrong, or there is no such version.

    >>> import fedpipe
    >>> result = fedpipe.run("demo/federation.yaml")
    >>> fedpipe.promote("digits", 1, source="demo/federation.yaml")
    'version 1'
    """
    federation = read_source(source) if source is not None else None
    place = locate(source=federation, store=store, folder=Path(models) if models else None)
    home = place.find_folder(name).models
    if kserve is not None:
        check_readable(home)
    split = decide(home, name, split_for(home, name, version, latest=latest, canary=canary)).split
    if kserve is not None:
        manifest = yaml.safe_dump(inference_service(home, name, runtime=runtime), sort_keys=False)
        write_whole(Path(kserve), manifest.encode())
    return str(split)
