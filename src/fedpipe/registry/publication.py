"""Reads, signs and checks published models, below `models/`:

    <name>/<version>/origin.json       the run and weights that it was made from, and the digest of its bytes
    <name>/<version>/signature.json    the enrolled coordinator's signature of name, version and origin
    <name>/<version>/model.onnx        the model; written last, so that a version with a model is complete

If a coordinator is enrolled (`fedpipe enroll --coordinator`), the server only serves versions that its key signed. So
write access to the store, without the key, is not enough to publish, or to pass an old version off as a new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from fedpipe.errors import CorruptError
from fedpipe.identity.enrolment import Enrolled, flaw_of, make_signature
from fedpipe.identity.signing import Signature, Signer, verify
from fedpipe.rounds.manifests import Manifest
from fedpipe.store import Store, keys
from fedpipe.store.objects import Digest, digest_of, encode, find


class Origin(Manifest, frozen=True, kw_only=True):
    """Records where a published model comes from, and how it was verified.

    `samples` names the data of the comparison: `holdout` (the central test set), or `random` if there is none.
    `learner` is the one whose personal model it is. `local` says from where weights come that learners do not share.
    """

    federation: str
    run: str
    weights: Digest
    digest: Digest
    opset: int
    samples: str
    compared: int
    max_abs_difference: float
    learner: str = ""
    local: str = ""


LARGEST = 2 * 2**30
"""Most bytes of a model: the limit of one protobuf message."""


class ModelVersion(NamedTuple):
    """Identifies a version of a model; `keys.model(*entry)` is its key in the folder of models."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


def versions(models: Store) -> dict[str, list[int]]:
    """Returns the published versions by model, ascending. Raises StoreError."""
    found: dict[str, list[int]] = {}
    for name, number in filter(None, map(keys.parse_model, models.keys())):
        found.setdefault(name, []).append(number)
    return {name: sorted(numbers) for name, numbers in found.items()}


def find_origin(models: Store, entry: ModelVersion) -> Origin | None:
    """Reads the origin of a version; returns None if there is none. Raises CorruptError and StoreError."""
    return find(models, keys.origin(*entry), Origin)


def read_model(models: Store, entry: ModelVersion, origin: Origin | None) -> bytes:
    """Returns a model's bytes.

    Args:
        models: the folder of models.
        entry: the version.
        origin: origin with the expected digest; None if there is none to check.

    Raises:
        CorruptError: the bytes have another digest.
        StoreError: the model does not exist, is too large, or the store does not answer.
    """
    data = models.read(keys.model(*entry), limit=LARGEST).data
    if origin is not None and digest_of(data) != origin.digest:
        raise CorruptError(
            f"the model has the digest {digest_of(data)}, but its origin has {origin.digest}",
            where=f"{models.uri}/{keys.model(*entry)}",
        )
    return data


def sign_publication(
    models: Store, entry: ModelVersion, origin: Origin, signer: Signer, clock: Callable[[], float] = time.time
) -> None:
    """Signs a version, unless it has a valid signature by this key already.

    Args:
        models: the folder of models.
        entry: the version.
        origin: its origin.
        signer: signs with the coordinator's key.
        clock: returns seconds since 1970.
    """
    try:
        current = find(models, keys.signature(*entry), Signature)
    except CorruptError:
        current = None
    content = _signed_bytes(entry, origin)
    if current is None or current.key != signer.public or not verify(current.key, content(current), current.value):
        models.replace(keys.signature(*entry), encode(make_signature(signer, content, clock)))


def check_publication(models: Store, entry: ModelVersion, origin: Origin, enrolled: Enrolled) -> None:
    """Checks that the enrolled coordinator signed a version; without one, any version is valid.

    Args:
        models: the folder of models.
        entry: the version.
        origin: its origin.
        enrolled: the enrolled identities.

    Raises:
        CorruptError: the enrolled coordinator did not sign it.
        StoreError: the store does not answer.
    """
    if enrolled.coordinator is None:
        return
    signature = find(models, keys.signature(*entry), Signature)
    if flaw := flaw_of(enrolled.coordinator, signature, _signed_bytes(entry, origin), "the coordinator", str(entry)):
        raise CorruptError(
            flaw,
            where=f"{models.uri}/{keys.signature(*entry)}",
            remedy=f"If you trust it, sign it with the coordinator's key: `fedpipe sign {entry.name} {entry.version}`.",
        )


def _signed_bytes(entry: ModelVersion, origin: Origin) -> Callable[[Signature], bytes]:
    """Returns the bytes to sign: canonical, with an empty signature, and a prefix that no other signed content has."""
    return lambda signature: b"fedpipe model\n" + encode((*entry, origin, replace(signature, value="0" * 128)))
