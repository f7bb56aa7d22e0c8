"""Rehearses a run on a few examples, once for each model, so that it fails before the training and not after it."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

import msgspec

from fedpipe.data.examples import Examples
from fedpipe.data.ports import made_up, ports_of
from fedpipe.data.schema import Schema
from fedpipe.data.trees import Tree
from fedpipe.errors import InputError, MissingExtraError
from fedpipe.federation.federation import Federation
from fedpipe.federation.names import split_code
from fedpipe.learners.check import built_model, check_model, rehearse_training, shared_ports
from fedpipe.learners.own_data import find_examples
from fedpipe.registry.card import CARD_KEY, Card, write_card
from fedpipe.registry.export import convert_checked, described_table
from fedpipe.registry.imports import imported_files, installed_packages
from fedpipe.store.files import write_whole
from fedpipe.store.objects import digest_of, encode
from fedpipe.version import __version__

_SAMPLES = 32
_ELSEWHERE = {"store", "model", "placement", "secret", "images", "simulation"}
"""Keys of the file that say where, and not what: `check`, `run` and `compile` see them differently."""


def rehearse(
    federation: Federation, code: str, examples: Examples | None, schema: Schema | None = None, *,
    elsewhere: bool = False,
) -> str:  # fmt: skip
    """Checks a model, and does everything once that a run does with it, up to a prediction in onnxruntime.

    The training, the measurement and the export are not repeated for a model, settings and packages that have passed on
    this machine. The files that the model imports count as parts of it.

    Args:
        federation: with its run-time settings.
        code: the text of the user's file.
        examples: a few, including the smallest and the largest label; None to use learners' own data, as far as this
            machine reaches it.
        schema: of the federation's table, if it has one.
        elsewhere: the export runs in another image, so it is left out where its packages are missing.

    Returns:
        A short description of the model.

    Raises:
        ModelError: the mistake in the model or the settings.
        ExportError: the model cannot be exported; the message has the layer.
        MissingExtraError: a framework is not installed.
    """
    if examples is None and not federation.split and any(learner.data for learner in federation.learners):
        examples = find_examples(federation, built_model(federation, code, schema=schema).module, schema)
    text = check_model(federation, code, examples, schema)
    passed = Recalled(_key(federation, code, examples, schema))
    if passed.text is None:
        try:
            _rehearse_all(federation, code, examples, schema)
        except MissingExtraError:
            if not elsewhere:
                raise
        else:
            passed.note()
    return text


def recalled(federation: Federation, code: str, examples: bytes, schema: Schema | None = None) -> Recalled:
    """Returns the note on a rehearsal of exactly this model, settings and examples, in this Python.

    Args:
        federation: with its run-time settings.
        code: the text of the user's file.
        examples: as `dump_examples` writes them.
        schema: of the federation's table, if it has one.
    """
    settings = _without_places(msgspec.to_builtins(federation))
    settings["data"] |= {"uri": ""}
    settings["learners"] = [_without_places(learner) for learner in settings["learners"]]
    return Recalled(digest_of(encode([_key(federation, code, None, schema), settings, digest_of(examples)])))


def _without_places(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _ELSEWHERE}


def _rehearse_all(federation: Federation, code: str, examples: Examples | None, schema: Schema | None) -> None:
    model = built_model(federation, code, inputs=shared_ports(federation, examples), schema=schema)
    outline, seed = model.outline, federation.training.seed
    arrays = model.initial_weights(seed) if examples is None else rehearse_training(federation, model, examples)
    settings = federation.exported
    if settings:
        features: Tree = made_up(outline.inputs, _SAMPLES, seed, outline.words)
        if examples is not None:
            features = examples.rows(slice(_SAMPLES)).x
        card = {CARD_KEY: write_card(described_table(schema, Card(classes=settings.classes)))}
        convert_checked(model, arrays, settings, features, card)


def _key(federation: Federation, code: str, examples: Examples | None, schema: Schema | None) -> str:
    """Returns the digest of all on which the result of a rehearsal depends."""
    private = any(federation.privacy_of(learner.name) for learner in federation.learners)
    training = msgspec.structs.replace(federation.training, rounds=1, rounds_per_step="all", max_seconds=0.0)
    about: dict[str, Any] = {
        "code": code,
        "model": split_code(federation.model)[1],
        "framework": federation.framework,
        "parties": federation.feature_parties,
        "share": msgspec.to_builtins(federation.share),
        "secure": msgspec.to_builtins(federation.secure),
        "training": msgspec.to_builtins(training),
        "export": msgspec.to_builtins(federation.export),
        "private": private,
        "schema": schema,
        "examples": None if examples is None else [
            ports_of(examples.x, "x"), ports_of(examples.y, "y"), examples.weight is not None
        ],
        "imports": imported_files(code),
        "packages": installed_packages(),
        "fedpipe": __version__,
        "machine": [sys.version, platform.machine()],
    }  # fmt: skip
    return digest_of(encode(about))


class Recalled:
    """Notes in the user's cache folder that a rehearsal has passed; without such a folder it is repeated each time.

    Args:
        key: digest of the rehearsal.
    """

    def __init__(self, key: str) -> None:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        self._file = Path(base).expanduser() / "fedpipe" / "rehearsals" / key.removeprefix("sha256:")

    @property
    def text(self) -> str | None:
        """The result of a rehearsal that has passed before; None without one."""
        try:
            return self._file.read_text()
        except (OSError, UnicodeDecodeError):
            return None

    def note(self, text: str = "") -> None:
        """Writes the note."""
        with contextlib.suppress(OSError, InputError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._file, text.encode())
