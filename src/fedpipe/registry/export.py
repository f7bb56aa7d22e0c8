"""Converts a trained model to ONNX, verifies it in onnxruntime, and publishes it once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from fedpipe.data.disclosure import schema_of
from fedpipe.data.parts import get_parts, get_shard
from fedpipe.data.ports import TEXT, cast, fed, made_up
from fedpipe.data.schema import Schema
from fedpipe.data.trees import Tree, leaves, length_of, mapped
from fedpipe.errors import DataError, ExportError, InputError, ModelError, NotFoundError
from fedpipe.federation.training import Export
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.signing import COORDINATOR, KEYS, Signer, find_signer
from fedpipe.learners.assembly import plan_model
from fedpipe.learners.check import takes_missing
from fedpipe.learners.cut import TOP
from fedpipe.learners.cut_score import part_to_export, whole_weights
from fedpipe.learners.framework import Arrays, Model, Outline, Predict
from fedpipe.learners.personal import find_personal
from fedpipe.learners.reading import central_test
from fedpipe.learners.score import fetch_global
from fedpipe.learners.sharing import SharedModel
from fedpipe.registry.card import CARD_KEY, Card, Spread, write_card
from fedpipe.registry.publication import ModelVersion, Origin, sign_publication
from fedpipe.rounds.plan import Plan, Port
from fedpipe.store import Store, keys
from fedpipe.store.objects import decode, digest_of, encode

Array = npt.NDArray[Any]
log = logging.getLogger("fedpipe")
_SAMPLES = 256


class Exported(Struct, frozen=True, kw_only=True):
    """Identifies a published model by its version and key, and holds its origin."""

    version: int
    path: str
    origin: Origin


TOLERANCES = {"float16": 1e-2, "bfloat16": 1e-1}
"""Default tolerance of models that compute less precisely than in float32."""
_TOLERANCE = 1e-4
_REMEDY = "Raise export.tolerance if that is acceptable, try another export.opset, or set `export: none`."


def run_onnx(data: bytes | Path, features: Tree) -> list[Array]:
    """Returns all outputs of an ONNX model for a batch, on the CPU.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        InputError: this is not an ONNX model that can be used.
        ModelError: the features do not fit its inputs.
    """
    from fedpipe.registry.prediction import open_model

    model = open_model(data)
    ports = [Port(s.name, TEXT if s.dtype == object else s.dtype.name, tuple(s.shape)) for s in model.inputs]
    return model.run(cast(ports, fed(ports, features)))


def largest_difference(predict: Predict, data: bytes, features: Tree) -> float:
    """Returns the largest absolute difference between the outputs of the model and of its ONNX form."""
    return max(difference for difference, _ in _differences(predict, data, features))


def _differences(predict: Predict, data: bytes, features: Tree) -> list[tuple[float, float]]:
    """Returns for each output the largest absolute difference, and the largest output."""
    found = []
    wanted_outputs, actual_outputs = predict(features), run_onnx(data, features)
    if len(wanted_outputs) != len(actual_outputs):
        raise ExportError(
            f"the ONNX model has {len(actual_outputs)} outputs, not {len(wanted_outputs)}", remedy=_REMEDY
        )
    for expected, actual in zip(wanted_outputs, actual_outputs, strict=True):
        wanted = np.asarray(expected, np.float64)
        if wanted.shape != actual.shape:
            raise ExportError(
                f"an output of the ONNX model has shape {actual.shape}, not {wanted.shape}", remedy=_REMEDY
            )
        if actual.dtype.kind not in "fiub":
            raise ExportError("an output of the ONNX model is not an array of numbers", remedy=_REMEDY)
        with np.errstate(invalid="ignore"):  # infinity less infinity
            gaps = np.abs(wanted - actual.astype(np.float64))
        gaps[(np.isnan(wanted) & np.isnan(actual)) | (wanted == actual)] = 0
        found.append(
            (float(np.max(gaps, initial=0.0)), float(np.max(np.abs(wanted), initial=0.0, where=np.isfinite(wanted))))
        )
    return found


def convert_checked(
    model: Model, arrays: Arrays, settings: Export, features: Tree, metadata: Mapping[str, str]
) -> tuple[bytes, float]:
    """Converts a model to ONNX, runs it in onnxruntime, and compares the two.

    Args:
        model: the built model.
        arrays: its weights.
        settings: opset and tolerance.
        features: examples for the comparison.
        metadata: written into the ONNX model.

    Returns:
        The ONNX model, and the largest absolute difference of an output.

    Raises:
        ExportError: the model cannot be converted, or the difference exceeds the tolerance.
    """
    data = model.convert(arrays, settings.opset, metadata)
    try:
        differences = _differences(model.predictor(arrays), data, features)
    except (DataError, ModelError):
        raise
    except InputError as error:
        cause = error.what.removeprefix("is not an ONNX model, because ")
        raise ExportError(
            f"onnxruntime cannot run the ONNX model, because {cause}", where="model.py", remedy=_REMEDY
        ) from error
    tolerance = settings.tolerance or TOLERANCES.get(model.outline.precision, _TOLERANCE)
    for difference, scale in differences:
        if not np.isfinite(difference):
            raise ExportError(
                "an output is NaN or infinite in the trained model or in the ONNX model, and not in the other",
                where="model.py",
                remedy="Nothing was published. Lower the learning rate if the weights have become very large.",
            )
        if not difference <= tolerance * max(1.0, scale):
            share = f" for outputs up to {scale:.3g}" if scale > 1 else ""
            raise ExportError(
                f"the ONNX model differs from the trained one by {difference:.3g}{share}, but the tolerance is "
                f"{tolerance:g}",
                remedy=f"Nothing was published. {_REMEDY}",
            )
    return data, max(difference for difference, _ in differences)


def convert_and_verify(
    store: Store, plan: Plan, digest: str, learner: str = "", part: str = ""
) -> tuple[bytes, Origin]:  # fmt: skip
    """Converts weights of a run to ONNX, and compares the result with the model on up to 256 samples.

    Args:
        store: the federation's folder of the store.
        plan: plan of the run.
        digest: digest of the shared weights.
        learner: whose personal model is converted; empty for the shared one.
        part: of a cut network, which is converted alone; empty for the whole.

    Returns:
        The ONNX model, and its origin.

    Raises:
        NotFoundError: the learner has no personal model.
        ExportError: the model cannot be converted, or the difference exceeds `export.tolerance`.
    """
    if part:
        model, arrays = part_to_export(store, plan, digest, part)
    else:
        model = plan_model(store, plan)
        arrays = whole_weights(store, digest) if plan.federation.split else fetch_global(store, digest)
    if learner:
        model, arrays = _personal(store, plan, model, arrays, learner)
    settings = plan.federation.exported or Export()
    features, samples = _samples(store, plan, model.outline)
    card, schema = Card() if part not in ("", TOP) else card_of(store, plan), schema_of(store, plan)
    if schema is not None and takes_missing(model.predictor(arrays), mapped(_first, features), schema, always=True):
        card = replace(card, columns=tuple(replace(column, missing=True) for column in card.columns))
    metadata = {CARD_KEY: write_card(card)}
    if local := local_weights_of(model, learner):
        metadata[LOCAL_KEY] = local
    data, difference = convert_checked(model, arrays, settings, features, metadata)
    return data, Origin(
        federation=plan.federation.name, run=plan.run, weights=digest, digest=digest_of(data),
        opset=settings.opset, samples=samples, compared=length_of(features), max_abs_difference=difference,
        learner=learner, local=local,
    )  # fmt: skip


def _first(leaf: Array) -> Array:
    return leaf[:1]


LOCAL_KEY = "fedpipe.local"
"""The key in an ONNX model's metadata that says from where weights come that learners do not share."""


def local_weights_of(model: Model, learner: str = "") -> str:
    """Returns from where a model has the weights that learners do not share; empty if they share all."""
    if not isinstance(model, SharedModel):
        return ""
    origin = f"those of {learner}" if learner else "their first values, because each learner has its own"
    return f"{origin}: {', '.join(sorted(model.local))}"


def _personal(store: Store, plan: Plan, model: Model, arrays: Arrays, learner: str) -> tuple[Model, Arrays]:
    """Returns a learner's personal model and its weights. Raises NotFoundError when it has none."""
    found = find_personal(store, plan, model, learner)
    if found is not None:
        return found[0], arrays if found[1] is None else found[1]
    trained = plan.federation.personal
    raise NotFoundError(
        f"{learner} has no personal model in run {plan.run!r}: "
        + ("none of its updates counted" if trained else "its learners share all weights"),
        where=store.uri,
        remedy="Export the shared model, without a learner." if trained else "See docs/personal.md.",
    )


def card_of(store: Store, plan: Plan) -> Card:
    """Returns the card of a run's model.

    It has no label counts if a learner trains with differential privacy, because exact counts are not private.
    """
    private = any(plan.federation.privacy_of(learner.name) for learner in plan.federation.learners)
    labels: Counter[str] = Counter()
    for name, digest in sorted(plan.shards.items()) if not private else ():
        labels.update(get_shard(store, name, digest).labels)
    exported = plan.federation.exported or Export()
    return described_table(schema_of(store, plan), Card(
        classes=exported.classes, labels=dict(sorted(labels.items())),
        spread=None if plan.test is None else spread_of(get_parts(store, plan.test)["test"].x),
    ))  # fmt: skip


def described_table(schema: Schema | None, card: Card) -> Card:
    """Returns the card with the columns and classes of a table, whose columns of different kinds have no one spread."""
    if schema is None:
        return card
    numbers = {name: str(number) for number, name in enumerate(schema.classes)}
    named = {numbers[label]: count for label, count in card.labels.items() if label in numbers}
    labels = named if schema.labels == "names" else card.labels  # names may be numbers, such as "1" for class 0
    return replace(
        card, classes=schema.classes, columns=schema.columns, label=schema.label, labels=labels, spread=None
    )  # fmt: skip


def spread_of(features: Tree) -> Spread | None:
    """Returns the spread of the first array of numbers, without missing values; None if there is none."""
    for _, leaf in leaves(features):
        if leaf.dtype.kind in "biuf" and (known := leaf[~np.isnan(leaf)] if leaf.dtype.kind == "f" else leaf).size:
            x = known.astype(np.float64)
            return Spread(
                minimum=float(x.min()), maximum=float(x.max()), mean=float(x.mean()), deviation=float(x.std())
            )
    return None


def _samples(store: Store, plan: Plan, outline: Outline) -> tuple[Tree, str]:
    if plan.test is not None:
        examples = central_test(store, plan)
        assert examples is not None
        return examples.rows(slice(_SAMPLES)).x, "holdout"
    return made_up(outline.inputs, _SAMPLES, plan.federation.training.seed, outline.words), "random"


def publish(store: Store, plan: Plan, digest: str) -> Exported:
    """Publishes verified weights once, as the next version of the model.

    First the origin claims the version, then it is signed, then the model is written. So a retried step finds and
    completes its claim, and a server never sees an incomplete version.

    Args:
        store: the federation's folder of the store.
        plan: plan of the run.
        digest: digest of the weights.

    Raises:
        ExportError: the model differs from the trained one; nothing is published.
        InputError: the coordinator is enrolled, but its key is not on this machine; nothing is published.
    """
    name, signer = plan.federation.model_name, _publishing_signer(store)
    claimed = _find_claim(store, name, plan.run, digest)
    data, origin = convert_and_verify(store, plan, digest)
    if claimed and claimed.origin.digest == origin.digest and store.size(claimed.path) is not None:
        return claimed
    exported = claimed if claimed and claimed.origin == origin else _claim(store, name, origin)
    if signer is not None:
        sign_publication(store.below(keys.MODELS), ModelVersion(name, exported.version), origin, signer)
    store.create(exported.path, data)
    log.info(
        "published %s version %d: differs from the trained model by %.2g",
        name,
        exported.version,
        origin.max_abs_difference,
    )
    return exported


def _publishing_signer(store: Store) -> Signer | None:
    """Returns the coordinator's signer; None if there is none and no coordinator is enrolled."""
    enrolment, signer = read_enrolled(store).coordinator, find_signer(COORDINATOR)
    if enrolment is not None and enrolment.revoked is None and signer is None:
        raise InputError(
            "the coordinator is enrolled and must sign the models it publishes, but its key is missing",
            remedy=f"Give the step the secret of `fedpipe enroll --coordinator`, or set {KEYS} to the keys' folder.",
        )
    return signer


def claimed_versions(store: Store, name: str) -> list[int]:
    """Lists the claimed and the published versions of a model, ascending."""
    return sorted(int(folder) for folder in store.below(f"{keys.MODELS}/{name}").folders() if folder.isdecimal())


def _find_claim(store: Store, name: str, run: str, digest: str) -> Exported | None:
    for version in reversed(claimed_versions(store, name)):
        key = _path(keys.origin(name, version))
        try:
            origin = decode(store.read(key).data, Origin, where=key)
        except NotFoundError:
            continue
        if (origin.run, origin.weights) == (run, digest):
            return Exported(version=version, path=_path(keys.model(name, version)), origin=origin)
    return None


def _claim(store: Store, name: str, origin: Origin) -> Exported:
    version = max(claimed_versions(store, name), default=0) + 1
    while not store.create(_path(keys.origin(name, version)), encode(origin)):
        version += 1
    return Exported(version=version, path=_path(keys.model(name, version)), origin=origin)


def _path(key: str) -> str:
    return f"{keys.MODELS}/{key}"
