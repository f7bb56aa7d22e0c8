"""ONNX: the trained model converted, verified in onnxruntime, published once."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from fedpipe.data.parts import get_parts, get_shard
from fedpipe.errors import ExportError, InputError, NotFoundError
from fedpipe.identity.enrolment import read_enrolled
from fedpipe.identity.signing import COORDINATOR, KEYS, find_key
from fedpipe.learners.adapters import plan_model
from fedpipe.learners.framework import Outline, Predict
from fedpipe.learners.score import fetch_global
from fedpipe.registry.card import CARD_KEY, Card, Spread, write_card
from fedpipe.registry.publication import ModelVersion, Origin, sign_publication
from fedpipe.rounds.plan import Plan
from fedpipe.store import Store
from fedpipe.store.objects import decode, digest_of, encode

Array = npt.NDArray[Any]
log = logging.getLogger("fedpipe")
_SAMPLES = 256


class Exported(Struct, frozen=True, kw_only=True):
    """A published model: its version, key, and origin."""

    version: int
    path: str
    origin: Origin


def run_onnx(data: bytes | Path, features: Array) -> list[Array]:
    """All outputs of an ONNX model for a batch, in onnxruntime on the CPU. Raises MissingExtraError, ExportError."""
    from fedpipe.registry.prediction import open_model

    session = open_model(data)
    names = [i.name for i in session.inputs]
    return (
        session.run({names[0]: features}) if len(names) == 1 else session.run(dict(zip(names, features, strict=True)))
    )


def largest_difference(predict: Predict, data: bytes, features: Array) -> float:
    """Return the largest absolute difference between the model's and its ONNX form's outputs on these features."""
    expected, found = predict(features), run_onnx(data, features)
    differences = [
        np.max(np.abs(np.asarray(e, np.float64) - f), initial=0.0) for e, f in zip(expected, found, strict=True)
    ]
    return float(max(differences))


def verified(store: Store, plan: Plan, digest: str) -> tuple[bytes, Origin]:
    """Convert weights of a run and compare the result with the model on real samples.

    Raises:
        ExportError: the difference is beyond `export.tolerance`.
    """
    model, arrays = plan_model(store, plan), fetch_global(store, digest)
    features, samples = _samples(store, plan, model.outline)
    metadata = {CARD_KEY: write_card(signature_of(store, plan))}
    data = model.convert(arrays, plan.federation.export.opset, metadata)
    difference = largest_difference(model.predictor(arrays), data, features)
    tolerance = plan.federation.export.tolerance
    if not difference <= tolerance:
        raise ExportError(
            f"the ONNX model differs from the trained one by {difference:.3g}, the tolerance is {tolerance:g}",
            remedy="Nothing was published. Try another export.opset, or raise export.tolerance if that is acceptable.",
        )
    return data, Origin(
        federation=plan.federation.name, run=plan.run, weights=digest, digest=digest_of(data),
        opset=plan.federation.export.opset, samples=samples, compared=len(features), max_abs_difference=difference,
    )  # fmt: skip


def signature_of(store: Store, plan: Plan) -> Card:
    """What a client of the model has to know.

    How often each label occurs is not told when a learner's training is private: exact counts are not.
    """
    private = any(plan.federation.privacy_of(learner.name) for learner in plan.federation.learners)
    labels: Counter[str] = Counter()
    for name, digest in sorted(plan.shards.items()) if not private else ():
        labels.update(get_shard(store, name, digest).labels)
    spread = None
    if plan.test is not None:
        x = get_parts(store, plan.test)["test"].x.astype(np.float64)
        spread = Spread(minimum=float(x.min()), maximum=float(x.max()), mean=float(x.mean()), deviation=float(x.std()))
    return Card(classes=plan.federation.export.classes, labels=dict(sorted(labels.items())), spread=spread)


def _samples(store: Store, plan: Plan, outline: Outline) -> tuple[Array, str]:
    dtype = np.dtype(outline.dtype)
    if plan.test is not None:
        return get_parts(store, plan.test)["test"].x[:_SAMPLES].astype(dtype), "holdout"
    shape = (_SAMPLES, *(size or 1 for size in outline.input[1:]))
    return np.random.default_rng(plan.federation.training.seed).random(shape).astype(dtype), "random"


def publish(store: Store, plan: Plan, digest: str) -> Exported:
    """Publishes verified weights once as the next version of the model.

    First the version is claimed by its origin, then signed, then the model is written: a repeated step finds its claim
    and completes it, and a server never sees half a version.

    Raises:
        ExportError: the model differs from the trained one; nothing is published.
        InputError: the coordinator is enrolled and its key is not here; nothing is published.
    """
    name, key = plan.federation.model_name, _publishing_key(store)
    claimed = _claimed(store, name, plan.run, digest)
    if claimed and store.size(claimed.path) is not None:
        return claimed
    data, origin = verified(store, plan, digest)
    exported = claimed if claimed and claimed.origin == origin else _claim(store, name, origin)
    if key is not None:
        sign_publication(store.below("models"), ModelVersion(name, exported.version), origin, key)
    store.create(exported.path, data)
    log.info(
        "published %s version %d: differs from the trained model by %.2g",
        name,
        exported.version,
        origin.max_abs_difference,
    )
    return exported


def _publishing_key(store: Store) -> str | None:
    """The coordinator's private key; None where nobody checks who published."""
    enrolment, key = read_enrolled(store).coordinator, find_key(COORDINATOR)
    if enrolment is not None and enrolment.revoked is None and key is None:
        raise InputError(
            "the coordinator is enrolled and must sign what it publishes, and its key is not here",
            remedy=f"Give the step the secret of `fedpipe enroll --coordinator`, or set {KEYS} to the keys' folder.",
        )
    return key


def versions(store: Store, name: str) -> list[int]:
    """The versions of a model that are claimed or published, ascending."""
    keys = (re.fullmatch(rf"models/{name}/(\d+)/.*", key) for key in store.keys(f"models/{name}/"))
    return sorted({int(match[1]) for match in keys if match})


def _claimed(store: Store, name: str, run: str, digest: str) -> Exported | None:
    for version in reversed(versions(store, name)):
        key = f"models/{name}/{version}/origin.json"
        try:
            origin = decode(store.read(key).data, Origin, where=key)
        except NotFoundError:
            continue
        if (origin.run, origin.weights) == (run, digest):
            return Exported(version=version, path=f"models/{name}/{version}/model.onnx", origin=origin)
    return None


def _claim(store: Store, name: str, origin: Origin) -> Exported:
    version = max(versions(store, name), default=0) + 1
    while not store.create(f"models/{name}/{version}/origin.json", encode(origin)):
        version += 1
    return Exported(version=version, path=f"models/{name}/{version}/model.onnx", origin=origin)
