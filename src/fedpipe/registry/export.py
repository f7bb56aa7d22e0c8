"""Converts a trained model to ONNX, verifies it in onnxruntime, and publishes it once."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from fedpipe.data.parts import get_parts, get_shard
from fedpipe.data.trees import only_array
from fedpipe.errors import ExportError, InputError, NotFoundError
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.signing import COORDINATOR, KEYS, find_key
from fedpipe.learners.assembly import plan_model
from fedpipe.learners.framework import Outline, Predict
from fedpipe.learners.score import fetch_global
from fedpipe.registry.card import CARD_KEY, Card, Spread, write_card
from fedpipe.registry.publication import ModelVersion, Origin, sign_publication
from fedpipe.rounds.plan import Plan
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


def run_onnx(data: bytes | Path, features: Array) -> list[Array]:
    """Returns all outputs of an ONNX model for a batch, on the CPU. Raises MissingExtraError and InputError."""
    from fedpipe.registry.prediction import open_model

    model = open_model(data)
    names = [spec.name for spec in model.inputs]
    return model.run({names[0]: features} if len(names) == 1 else dict(zip(names, features, strict=True)))


def largest_difference(predict: Predict, data: bytes, features: Array) -> float:
    """Returns the largest absolute difference between the outputs of the model and of its ONNX form."""
    expected, actual = predict(features), run_onnx(data, features)
    differences = [
        np.max(np.abs(np.asarray(e, np.float64) - a), initial=0.0) for e, a in zip(expected, actual, strict=True)
    ]
    return float(max(differences))


def convert_and_verify(store: Store, plan: Plan, digest: str) -> tuple[bytes, Origin]:
    """Converts weights of a run to ONNX, and compares the result with the model on up to 256 samples.

    Args:
        store: the federation's folder of the store.
        plan: plan of the run.
        digest: digest of the weights.

    Returns:
        The ONNX model, and its origin.

    Raises:
        ExportError: the difference exceeds `export.tolerance`.
    """
    model, arrays = plan_model(store, plan), fetch_global(store, digest)
    features, samples = _samples(store, plan, model.outline)
    metadata = {CARD_KEY: write_card(card_of(store, plan))}
    data = model.convert(arrays, plan.federation.export.opset, metadata)
    difference = largest_difference(model.predictor(arrays), data, features)
    tolerance = plan.federation.export.tolerance
    if not difference <= tolerance:
        raise ExportError(
            f"the ONNX model differs from the trained one by {difference:.3g}, but the tolerance is {tolerance:g}",
            remedy="Nothing was published. Try another export.opset, or raise export.tolerance if that is acceptable.",
        )
    return data, Origin(
        federation=plan.federation.name, run=plan.run, weights=digest, digest=digest_of(data),
        opset=plan.federation.export.opset, samples=samples, compared=len(features), max_abs_difference=difference,
    )  # fmt: skip


def card_of(store: Store, plan: Plan) -> Card:
    """Returns the card of a run's model.

    It has no label counts if a learner trains with differential privacy, because exact counts are not private.
    """
    private = any(plan.federation.privacy_of(learner.name) for learner in plan.federation.learners)
    labels: Counter[str] = Counter()
    for name, digest in sorted(plan.shards.items()) if not private else ():
        labels.update(get_shard(store, name, digest).labels)
    spread = None
    if plan.test is not None:
        x = only_array(get_parts(store, plan.test)["test"].x, "features").astype(np.float64)
        spread = Spread(minimum=float(x.min()), maximum=float(x.max()), mean=float(x.mean()), deviation=float(x.std()))
    return Card(classes=plan.federation.export.classes, labels=dict(sorted(labels.items())), spread=spread)


def _samples(store: Store, plan: Plan, outline: Outline) -> tuple[Array, str]:
    dtype = np.dtype(outline.dtype)
    if plan.test is not None:
        features = only_array(get_parts(store, plan.test)["test"].x, "features")
        return features[:_SAMPLES].astype(dtype), "holdout"
    shape = (_SAMPLES, *(size or 1 for size in outline.input[1:]))
    return np.random.default_rng(plan.federation.training.seed).random(shape).astype(dtype), "random"


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
    name, key = plan.federation.model_name, _publishing_key(store)
    claimed = _find_claim(store, name, plan.run, digest)
    data, origin = convert_and_verify(store, plan, digest)
    if claimed and claimed.origin.digest == origin.digest and store.size(claimed.path) is not None:
        return claimed
    exported = claimed if claimed and claimed.origin == origin else _claim(store, name, origin)
    if key is not None:
        sign_publication(store.below(keys.MODELS), ModelVersion(name, exported.version), origin, key)
    store.create(exported.path, data)
    log.info(
        "published %s version %d: differs from the trained model by %.2g",
        name,
        exported.version,
        origin.max_abs_difference,
    )
    return exported


def _publishing_key(store: Store) -> str | None:
    """Returns the coordinator's private key; None if there is none and no coordinator is enrolled."""
    enrolment, key = read_enrolled(store).coordinator, find_key(COORDINATOR)
    if enrolment is not None and enrolment.revoked is None and key is None:
        raise InputError(
            "the coordinator is enrolled and must sign the models it publishes, but its key is missing",
            remedy=f"Give the step the secret of `fedpipe enroll --coordinator`, or set {KEYS} to the keys' folder.",
        )
    return key


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
